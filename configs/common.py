"""Every default of a run, with its meaning. A recipe starts from here and overrides.

Override any field on the command line: ``--config.batch_size=256``,
``--config.optimizer.learning_rate=0.02``, ``--config.model.extra_strides="(2,2,1,1)"``.
"""

import ml_collections

from scratchdet_jax import anchors


def anchor_fields(name: str, **changes: tuple) -> dict[str, tuple]:
    """The fields of ``config.anchors`` for a published specification (see anchors.py)."""
    fields = anchors.SPECIFICATIONS[name]._replace(**changes)._asdict()
    fields.pop("image_size")
    return fields


def get_config() -> ml_collections.ConfigDict:
    """ScratchDet-300 (Root-ResNet-34) as published; recipes override what differs."""
    config = ml_collections.ConfigDict()
    config.name = "common"  # the recipe's name; --workdir defaults to runs/<name>
    config.seed = 0  # initial weights, order of examples and every augmentation draw
    config.image_size = 300  # side S of the square network input, pixels

    # Length and batch. Training sees train_images images, whatever the batch size.
    config.batch_size = 128  # images per update, over all devices and processes
    config.accumulate_steps = 1  # an update's batch is run in this many parts (less memory);
    # BatchNorm then sees batch_size / accumulate_steps images: this does not enlarge its batch
    config.train_images = 12_800_000  # length of training; updates = train_images / batch_size
    config.num_steps = 0  # if above 0: the number of updates, instead of train_images
    config.parallel = "shard_map"  # how the step is mapped over devices: shard_map | pmap

    config.data = ml_collections.ConfigDict()
    # Data sets are NAME[/CONFIG]:SPLIT[@DIR], several joined by commas; SPLIT in TFDS's language,
    # DIR where that one lies if not in data.dir. A comma always begins the next data set.
    config.data.train = "voc/2007:train+validation,voc/2012:train+validation"
    config.data.eval = "voc/2007:test"  # may be empty: then no evaluation
    config.data.dir = "data"  # where prepared (ArrayRecord) data sets lie, as TFDS's data_dir
    config.data.folder = ""  # own data: a folder in VOC layout, prepared at first use; then
    # data.train and data.eval name splits of it (ImageSets/Main), such as "train" and "val"
    config.data.canvas = (500, 500)  # height, width of the padded uint8 canvas; larger images
    # are reduced to fit on the host
    config.data.max_boxes = 100  # slots for ground truth per image; more in a file is an error
    config.data.train_on_ignored = True  # train on difficult (VOC) or crowd (COCO) boxes
    config.data.threads = 0  # decoding threads per process; 0 = the number of cores

    config.normalize = ml_collections.ConfigDict()
    config.normalize.mean = (123.0, 117.0, 104.0)  # RGB, subtracted from pixels 0…255
    config.normalize.std = (1.0, 1.0, 1.0)  # RGB, divided by

    config.augment = ml_collections.ConfigDict()  # SSD's augmentation, run inside the step
    config.augment.photometric_probability = 0.5  # of each of the four colour changes
    config.augment.brightness = 32.0  # added: uniform in ±
    config.augment.contrast = (0.5, 1.5)  # factor
    config.augment.saturation = (0.5, 1.5)  # factor
    config.augment.hue = 18.0  # added: uniform in ±, on OpenCV's 0…180 scale
    config.augment.expand_probability = 0.5  # place the image on a larger canvas of mean colour
    config.augment.expand_max_ratio = 4.0  # of the sides
    config.augment.crop = True  # the batch sampler
    config.augment.crop_min_ious = (0.1, 0.3, 0.5, 0.7, 0.9)  # one constrained sampler each
    config.augment.crop_trials = 50  # per sampler
    config.augment.crop_scale = (0.3, 1.0)  # sqrt of a crop's share of the area
    config.augment.crop_aspect = (0.5, 2.0)  # width / height
    config.augment.interpolations = ("linear", "area", "nearest", "cubic", "lanczos")
    config.augment.flip_probability = 0.5  # left–right

    config.model = ml_collections.ConfigDict()
    config.model.depth = 34  # layers of Root-ResNet: 18 | 34
    config.model.width = 1.0  # multiplies every channel count but the head's outputs
    config.model.preactivation = False  # BN-ReLU-conv units instead of conv-BN-ReLU
    config.model.norm = "batch"  # BatchNorm in backbone and extra blocks: batch | none
    config.model.head_norm = "batch"  # BatchNorm after the predictors: batch | none
    config.model.norm_span = 0  # images that share BatchNorm statistics; 0 = the whole batch
    config.model.norm_decay = 0.9  # of the running statistics
    config.model.norm_epsilon = 1e-5  # added to the variance
    config.model.extra_channels = 128  # of the four residual blocks after the backbone
    config.model.extra_strides = (2, 2, 2, 2)  # their strides: maps of 10, 5, 3, 2 at S = 300
    config.model.dtype = "float32"  # of the computation: float32 | bfloat16

    config.anchors = ml_collections.ConfigDict()  # one entry a source map, in percent of S:
    # min_percent, max_percent, aspect_ratios, and steps in pixels (empty: S / map size)
    config.anchors.update(anchor_fields("voc300", steps=(8, 16, 32, 64, 100, 150)))

    config.loss = ml_collections.ConfigDict()
    config.loss.match_iou = 0.5  # an anchor is positive from this IoU on
    config.loss.negative_ratio = 3.0  # hard negatives per positive, per image

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.learning_rate = 0.05  # at reference_batch_size
    config.optimizer.reference_batch_size = 128  # the rate is scaled by batch_size over this;
    # 0 = leave the rate as it is
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4  # added to the gradient (L2 form), of every parameter
    config.optimizer.warmup_steps = 500  # updates of linear warm-up; at most a tenth of the run
    config.optimizer.warmup_start = 1.0 / 3.0  # share of the rate at the first update
    config.optimizer.drop_at = (0.4, 0.75, 0.9)  # shares of training after which the rate drops
    config.optimizer.drop_factor = 0.1

    config.eval = ml_collections.ConfigDict()
    config.eval.every_steps = 5_000  # updates between evaluations; 0 = only at the end
    config.eval.batch_size = 64  # over all devices and processes
    config.eval.metric = "voc_11point"  # voc_11point | voc_area | coco: what "best" means
    config.eval.score_threshold = 0.01  # detections below are dropped
    config.eval.nms_iou = 0.45
    config.eval.candidates_per_class = 400  # that enter NMS
    config.eval.max_detections = 200  # per image, over all classes

    config.log_every = 10  # updates between lines in metrics.jsonl
    config.checkpoint_every = 1_000  # updates between checkpoints (one is written at the end too)
    config.keep_checkpoints = 3  # the latest; the best by mAP is kept besides
    return config
