"""Every default of a run, with its meaning. A recipe starts from here and overrides.

Override any field on the command line: `--config.batch_size=256`,
`--config.optimizer.learning_rate=0.02`, `--config.model.extra_strides="(2,2,1,1)"`.
"""

from collections.abc import Iterable

import ml_collections

from scratchdet_jax.errors import UserError
from scratchdet_jax.ops import anchors


def anchor_fields(name: str, **changes: tuple | bool) -> dict[str, tuple | bool]:
    """The fields of `config.anchors` for a published specification (see anchors.py)."""
    fields = anchors.SPECIFICATIONS[name]._replace(**changes)._asdict()
    fields.pop("image_size")
    return fields


def check_row(row: str, rows: Iterable[str], file: str) -> None:
    """For recipes of several rows, FILE.py:ROW: UserError if there is no such row, naming them."""
    known = tuple(rows)
    if row not in known:
        problem = f"has no row {row!r}" if row else "needs a row"
        raise UserError(f"{file} {problem}: write {file}:ROW with ROW one of {', '.join(known)}")


def use_coco(config: ml_collections.ConfigDict) -> None:
    """Sets what every recipe on COCO shares: data, larger canvas, metric and its threshold."""
    config.data.train = "coco/2017:train"
    config.data.eval = "coco/2017:validation"
    config.data.canvas = (640, 640)
    config.data.max_boxes = 200
    config.data.train_on_ignored = False  # crowd regions are no objects
    config.eval.metric = "coco"
    config.eval.every_steps = 25_000
    config.eval.score_threshold = 0.02


def with_defaults(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A config with the fields it lacks at their defaults: runs of before a field was added.

    A default is what the program did before it had the field.
    """
    complete = get_config()
    with complete.unlocked(), complete.ignore_type():
        complete.update(config)
    return complete


def get_config() -> ml_collections.ConfigDict:
    """ScratchDet-300 (Root-ResNet-34) as published; recipes override what differs."""
    config = ml_collections.ConfigDict()
    config.name = "common"  # the recipe's name; --workdir defaults to runs/<name>
    config.init_from = ""  # a run (WORKDIR or WORKDIR@STEP) whose parameters, as far as they fit,
    # a new run starts from; empty: random weights
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

    config.data.on_error = "stop"  # at a training image that cannot be read or decoded: stop |
    # substitute (the next one of the data set takes its place; counted and told at the end)

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
    config.model.backbone = "resnet"  # resnet | vgg16 (truncated, as SSD has it; the four fields
    # depth, stem… and preactivation are ResNet's)
    config.model.depth = 34  # layers of the ResNet: 18 | 34 | 50 | 101
    config.model.stem = "root"  # first layers: root (3×3 convolutions, Root-ResNet) | conv7 (7×7)
    config.model.stem_convs = 3  # 3×3 convolutions of the root block
    config.model.stem_stride = 1  # of the first convolution: 1 | 2. With 2 the stages give three
    # source maps (38, 19, 10 at S = 300) instead of two: take one extra block less
    config.model.width = 1.0  # multiplies every channel count but the head's outputs
    config.model.preactivation = False  # BN-ReLU-conv units instead of conv-BN-ReLU
    config.model.norm = "batch"  # BatchNorm in backbone and extra blocks: batch | none
    config.model.head_norm = "batch"  # BatchNorm after the predictors: batch | none
    config.model.norm_span = 0  # images that share BatchNorm statistics; 0 = the whole batch
    config.model.norm_decay = 0.9  # of the running statistics
    config.model.norm_epsilon = 1e-5  # added to the variance
    config.model.extra_channels = 128  # of the residual blocks after the backbone; with vgg16 of
    # the 1×1 convolutions of SSD's extra pairs, whose outputs have twice as many
    config.model.extra_strides = (2, 2, 2, 2)  # their strides: maps of 10, 5, 3, 2 at S = 300;
    # with vgg16 a stride of 1 is a 3×3 convolution without padding: SSD300 has (2, 2, 1, 1)
    config.model.last_convolutions = False  # one more map by a 4×4 convolution, 2×2 → 1×1: SSD512
    # with vgg16; with resnet a 3×3 convolution comes before it (the mmdetection release at 512)
    config.model.dtype = "float32"  # of the computation: float32 | bfloat16

    config.anchors = ml_collections.ConfigDict()  # one entry a source map, in percent of S:
    # min_percent, max_percent, aspect_ratios, and steps in pixels (empty: S / map size); rounded:
    # corners in whole pixels, as the authors' mmdetection release has them
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
    config.eval.metric = "voc_11point"  # voc_11point | voc_area | coco: what "best" means;
    # none: detections alone, as for test images whose boxes are not published
    config.eval.score_threshold = 0.01  # detections below are dropped
    config.eval.nms_iou = 0.45
    config.eval.candidates_per_class = 400  # that enter NMS
    config.eval.max_detections = 200  # per image, over all classes
    config.eval.multiscale = ()  # input sizes of multi-scale testing; empty: image_size alone.
    # An entry is SIZE[f][:small|:large]: f flips, small or large keeps such objects only; several
    # may be joined by +, as in --config.eval.multiscale=300+300f+512:small+192:large
    config.eval.multiscale_small = 128.0  # :small keeps boxes whose shorter side is below, and
    config.eval.multiscale_large = 32.0  # :large whose longer side is above; original pixels
    config.eval.multiscale_merge = "nms"  # how scales are merged, at nms_iou: nms | vote

    config.log_every = 10  # updates between lines in metrics.jsonl
    config.checkpoint_every = 1_000  # updates between checkpoints (one is written at the end too)
    config.keep_checkpoints = 3  # the latest; the best by mAP is kept besides. 2 or more: should
    # the latest be damaged, the run goes on from the one before
    config.stall_seconds = 1_800.0  # a run in which no step or batch of an evaluation ends for so
    # long (more than compiling takes) tells where each of its threads stands, and ends with exit
    # status 69; 0 = never
    config.compilation_cache = ""  # a directory, such as "~/.cache/scratchdet_jax", that keeps
    # compiled programs for the next start; empty: compile at every start
    return config
