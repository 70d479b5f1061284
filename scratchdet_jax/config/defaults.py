"""The reference of all config fields: meaning and default. A recipe overrides what differs.

Override any field on the command line: `--config.batch_size=256`,
`--config.optimizer.learning_rate=0.02`, `--config.model.extra_strides="(2,2,1,1)"`. Of several
overrides of a field, the last one counts.
"""

import re
from collections.abc import Iterable
from typing import Any

import ml_collections

from scratchdet_jax.errors import UserError
from scratchdet_jax.ops import anchors

ROOT_RESNET_STEPS_300 = (8, 16, 32, 64, 100, 150)  # anchor steps for maps of 38, 19, 10, 5, 3, 2

# ImageNet's mean and deviation, RGB in 0…255, as torchvision and mmdetection use them.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

COCO_EPOCH_IMAGES = 5 * 118_287  # an epoch of the mmdetection release: train2017 five times


def anchor_fields(name: str, **changes: Any) -> dict[str, Any]:
    """Returns `config.anchors` for one of `anchors.SPECIFICATIONS`, with some fields replaced."""
    fields = anchors.SPECIFICATIONS[name]._replace(**changes)._asdict()
    fields.pop("image_size")
    return fields


def check_row(row: str, rows: Iterable[str], file: str) -> None:
    """Raises UserError, naming the known rows, unless `row` is one of them.

    For recipes that are tables: `file`:ROW on the command line.
    """
    known = tuple(rows)
    if row not in known:
        problem = f"has no row {row!r}" if row else "needs a row"
        raise UserError(f"{file} {problem}: write {file}:ROW with ROW one of {', '.join(known)}")


def use_caffe(config: ml_collections.ConfigDict) -> None:
    """Sets what all networks of the authors' Caffe release share, and their 32 images a GPU."""
    config.model.norm_span = 32
    config.model.norm_decay = 0.999
    config.model.head_norm_epsilon = 1e-3
    config.model.initializer = "caffe"
    config.optimizer.warmup_steps = 0
    config.optimizer.no_decay = "biases,head_norms"
    config.optimizer.bias_lr_mult = 2.0


def use_ssd_schedule(config: ml_collections.ConfigDict) -> None:
    """Sets SSD's schedule on VOC: batch 32, rate 0.001, drops at 80k and 100k of 120k updates."""
    config.batch_size = 32
    config.train_images = 120_000 * 32
    config.optimizer.learning_rate = 0.001
    config.optimizer.reference_batch_size = 32
    config.optimizer.drop_at = (80 / 120, 100 / 120)


def use_coco(config: ml_collections.ConfigDict) -> None:
    """Sets what all recipes on COCO share: data, larger canvas, metric, score threshold."""
    config.data.train = "coco/2017:train"
    config.data.eval = "coco/2017:validation"
    config.data.canvas = (640, 640)
    config.data.max_boxes = 200
    config.data.train_on_ignored = False  # crowd regions are not objects
    config.eval.metric = "coco"
    config.eval.every_steps = 25_000
    config.eval.score_threshold = 0.02


def use_own_images(config: ml_collections.ConfigDict) -> None:
    """Sets what recipes for a user's own images share: a narrow Root-ResNet-18, a short run."""
    config.data.train = "train"
    config.data.eval = "val"
    config.anchors.steps = ()  # follow image_size, so that image_size can be overridden alone
    config.augment.expand_probability = 0.0  # hundreds of images need less augmentation than SSD's
    config.augment.crop_scale = (0.6, 1.0)
    config.model.depth = 18
    config.model.width = 0.25
    config.batch_size = 16
    config.train_images = 24_000
    config.optimizer.reference_batch_size = 0  # the rate of 0.05 does not follow the batch size
    config.optimizer.warmup_steps = 100
    config.optimizer.drop_at = (0.7, 0.9)
    config.eval.batch_size = 16
    config.eval.every_steps = 500
    config.checkpoint_every = 250


def with_defaults(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Completes the config of an older run: fields that it lacks get their defaults.

    The default of a new field is what the program did before the field existed.
    """
    complete = get_config()
    with complete.unlocked(), complete.ignore_type():
        complete.update(config)
    return complete


def get_config() -> ml_collections.ConfigDict:
    """Configures ScratchDet-300 (Root-ResNet-34) as published; recipes override what differs."""
    config = ml_collections.ConfigDict()
    config.name = "scratchdet300"  # name of the recipe; --workdir defaults to runs/<name>
    # A run, WORKDIR or WORKDIR@STEP, or an exported file, whose parameters a new run starts from,
    # as far as they fit; empty = random weights.
    config.init_from = ""
    # Parts of a run with init_from that are not trained: backbone, extras, head, or modules of the
    # network such as root,stage1 or head/level1, joined by commas; empty = everything is trained.
    # Their BatchNorm uses its running statistics and keeps them; there is no weight decay on them.
    config.freeze = ""
    config.seed = 0  # for the initial weights, the order of examples and the augmentation
    config.image_size = 300  # side S of the square network input, in pixels

    # Length and batch. Training sees train_images images, whatever the batch size is.
    config.batch_size = 128  # images per update, over all devices and processes
    # Microbatches per update; more of them need less memory. BatchNorm sees one microbatch at a
    # time, batch_size / accumulate_steps images: accumulation does not enlarge its batch.
    config.accumulate_steps = 1
    config.train_images = 12_800_000  # length of training; updates = train_images / batch_size
    config.num_steps = 0  # if above 0: number of updates, instead of train_images
    # Continues the run beyond its length: the new total, as 1.5x that length or as a number of
    # images, such as 1.5x or 9600000; 1.5x,2x extends it twice. Up to the length everything is as
    # without this field; from there on, the learning rate is that of a run of the new total.
    config.extend = ""
    config.parallel = "shard_map"  # how the step is mapped over devices: shard_map | pmap

    config.data = ml_collections.ConfigDict()
    # Data sets are NAME[/CONFIG]:SPLIT[@DIR], joined by commas; a comma always starts the next data
    # set. SPLIT is in TFDS's syntax; DIR is the data set's directory if it is not in data.dir.
    config.data.train = "voc/2007:train+validation,voc/2012:train+validation"
    config.data.eval = "voc/2007:test"  # empty = no evaluation
    config.data.dir = "data"  # directory of the prepared (ArrayRecord) data sets: TFDS's data_dir
    # Local folder for copies of what is read of a data.dir in a bucket: as large as its splits.
    config.data.cache = "~/.cache/scratchdet_jax"
    # Your own data: a folder in VOC layout, prepared at first use. data.train and data.eval then
    # name splits of it (ImageSets/Main), such as "train" and "val".
    config.data.folder = ""
    # Height and width of the padded uint8 canvas; the host reduces larger images to fit.
    config.data.canvas = (500, 500)
    config.data.max_boxes = 100  # ground-truth slots per image; an image with more is an error
    config.data.train_on_ignored = True  # train on difficult (VOC) or crowd (COCO) boxes
    # Repeat-factor sampling (LVIS) for unbalanced classes: an image is repeated max(1, √(t / f))
    # times in an epoch, f = the share of the images with its rarest class, such as t = 0.1; 0 = no.
    config.data.repeat_threshold = 0.0
    config.data.threads = 0  # decoding threads per process; 0 = number of cores
    # If a training image cannot be read or decoded: stop | substitute (use the next image of the
    # data set; substitutions are counted and reported at the end).
    config.data.on_error = "stop"

    # The network input is (pixel − mean) / std, with RGB pixels in 0…255.
    config.normalize = ml_collections.ConfigDict()
    config.normalize.mean = (123.0, 117.0, 104.0)  # R, G, B
    config.normalize.std = (1.0, 1.0, 1.0)  # R, G, B

    # SSD's augmentation, run inside the step. A probability of 0 switches a part off.
    config.augment = ml_collections.ConfigDict()
    config.augment.photometric_probability = 0.5  # of each of the four colour changes below
    config.augment.brightness = 32.0  # added to all channels, uniform in ±brightness; 0…255
    config.augment.contrast = (0.5, 1.5)  # factor on all channels, uniform in this range
    config.augment.saturation = (0.5, 1.5)  # factor on HSV's saturation, uniform in this range
    config.augment.hue = 18.0  # added to HSV's hue (OpenCV's scale, 0…180), uniform in ±hue
    config.augment.expand_probability = 0.5  # place the image on a larger canvas of mean colour
    config.augment.expand_max_ratio = 4.0  # largest canvas side / image side; at least 1
    config.augment.crop = True  # crop by SSD's batch sampler
    # Minimum IoU with some box, one constrained sampler each. The full image and an unconstrained
    # sample are always among the candidates.
    config.augment.crop_min_ious = (0.1, 0.3, 0.5, 0.7, 0.9)
    config.augment.crop_trials = 50  # per constrained sampler
    config.augment.crop_scale = (0.3, 1.0)  # range of sqrt(crop area / image area); at most 1
    config.augment.crop_aspect = (0.5, 2.0)  # range of width / height, as shares of the image's
    # Kernels that resize the crop to S × S; one is drawn uniformly.
    config.augment.interpolations = ("linear", "area", "nearest", "cubic", "lanczos")
    config.augment.flip_probability = 0.5  # of a left–right flip

    config.model = ml_collections.ConfigDict()
    # resnet | vgg16 (truncated, as in SSD) | package.module:NAME, a Backbone of your own
    config.model.backbone = "resnet"
    # The next nine fields apply to resnet, and extras.
    config.model.depth = 34  # layers of the ResNet: 18 | 34 | 50 | 101
    config.model.stem = "root"  # first layers: root (3×3 convolutions: Root-ResNet) | conv7 (7×7)
    config.model.stem_convs = 3  # number of 3×3 convolutions in the root stem
    # Stride of the first convolution: 1 | 2. At 2 the stages give three source maps (38, 19, 10 at
    # S = 300) instead of two: use one extra block less.
    config.model.stem_stride = 1
    config.model.stem_pool = True  # whether a max-pooling of stride 2 follows these convolutions
    config.model.stage_strides = (1, 2, 2, 2)  # of the four stages
    config.model.preactivation = False  # BN-ReLU-conv units instead of conv-BN-ReLU
    # With preactivation: whether the first unit begins with BN-ReLU, too. In the authors' Caffe
    # release it does so with 18 layers, but not with 34.
    config.model.first_preactivation = True
    # What the head reads of each stage and extra block: output (after the addition, BN and ReLU) |
    # convolution (the output of the last convolution itself, as in the authors' Caffe release).
    config.model.source_maps = "output"
    # The next two fields apply to vgg16.
    config.model.l2_norm = True  # L2 normalisation of conv4_3 if norm is none, as in SSD
    config.model.pool_norms = False  # BN and ReLU after each pooling, as in the Caffe release
    config.model.width = 1.0  # factor on all channel counts except those of the head's outputs
    config.model.norm = "batch"  # BatchNorm in the backbone and the extra blocks: batch | none
    config.model.head_norm = "batch"  # BatchNorm after the predictors: batch | none
    # Images that share BatchNorm statistics: a divisor or a multiple of a device's images;
    # 0, or more than there are = all images of the (micro)batch.
    config.model.norm_span = 0
    config.model.norm_decay = 0.9  # running = decay · running + (1 − decay) · batch
    config.model.norm_epsilon = 1e-5  # added to the variance
    config.model.head_norm_epsilon = 0.0  # the same in the head; 0 = norm_epsilon
    # Initial kernels: kaiming (normal by the fan-out; Xavier in the head) | caffe (Caffe's xavier,
    # uniform by the fan-in; in a head with BatchNorm, normal with a deviation of 0.01).
    config.model.initializer = "kaiming"
    # The blocks after the backbone: residual | preactivation (residual, as in the Caffe release) |
    # plain (SSD's pairs of a 1×1 and a 3×3 convolution). vgg16 always has the plain ones.
    config.model.extras = "residual"
    # Their channels. Of plain ones: channels of the 1×1 convolutions, whose pairs' outputs have
    # twice as many; the first pair has twice that.
    config.model.extra_channels = 128
    # Strides of the extra blocks: maps of 10, 5, 3, 2 at S = 300. In plain ones, stride 1 is a 3×3
    # convolution without padding: SSD300 has (2, 2, 1, 1).
    config.model.extra_strides = (2, 2, 2, 2)
    # One more source map by a 4×4 convolution, 2×2 → 1×1. After plain blocks as in SSD512, after
    # others behind a 3×3 convolution, as in the mmdetection release at 512.
    config.model.last_convolutions = False
    config.model.dtype = "float32"  # of the computation: float32 | bfloat16
    # How narrow maps are stored while computing: packed | plain | auto, which is packed on TPUs.
    # Parameters, results and checkpoints do not depend on it.
    config.model.layout = "auto"

    # The anchors, one entry per source map: min_percent and max_percent (sizes in percent of S),
    # aspect_ratios (besides 1; r also gives 1/r), steps (between cells, in pixels; empty = S / map
    # size). rounded: corners in whole pixels, as in the authors' mmdetection release.
    # sides_clipped: no side longer than S, as in ssd.pytorch and torchvision.
    config.anchors = ml_collections.ConfigDict()
    config.anchors.update(anchor_fields("voc300", steps=ROOT_RESNET_STEPS_300))

    config.loss = ml_collections.ConfigDict()
    config.loss.match_iou = 0.5  # an anchor is positive from this IoU with a box upwards
    config.loss.negative_ratio = 3.0  # hard negatives per positive, in each image

    # SGD with linear warm-up and step decay.
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.learning_rate = 0.05  # at reference_batch_size
    # The rate is multiplied by batch_size / reference_batch_size; 0 = not scaled.
    config.optimizer.reference_batch_size = 128
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4  # added to the gradient (L2 form)
    # Parameters without weight decay, joined by commas: biases (of convolutions), norms (scales and
    # biases of BatchNorm, L2-Norm), head_norms (of those in the head).
    config.optimizer.no_decay = ""
    config.optimizer.bias_lr_mult = 1.0  # factor on the rate of convolutions' biases; Caffe: 2
    config.optimizer.warmup_steps = 500  # updates of linear warm-up; at most a tenth of the run
    config.optimizer.warmup_start = 1.0 / 3.0  # share of the rate at the first update
    config.optimizer.drop_at = (0.4, 0.75, 0.9)  # shares of training after which the rate drops
    config.optimizer.drop_factor = 0.1  # factor on the rate at each drop

    # Exponential moving average of parameters and BatchNorm statistics, which evaluation, the
    # best checkpoint, predict and init_from then use: average = decay · average + (1 − decay) ·
    # new, such as 0.999; 0 = off. The decay is lower at first: (1 + step) / (10 + step).
    config.ema_decay = 0.0

    config.eval = ml_collections.ConfigDict()
    config.eval.every_steps = 5_000  # updates between evaluations; 0 = only at the end
    # The run ends early after this many evaluations in a row without a better mAP; 0 = never. A run
    # that ended so continues if this is raised or 0.
    config.eval.stop_after = 0
    # Images of the split whose detections and ground truth TensorBoard shows after each evaluation
    # while training, the first ones of data.eval.
    config.eval.log_pictures = 0
    # Images per batch, over all devices and processes; rounded up to a multiple of the devices.
    config.eval.batch_size = 64
    # The mAP that is reported and that selects the best checkpoint: voc_11point | voc_area | coco.
    # none: only write detections, e.g. for test images whose boxes are not published.
    config.eval.metric = "voc_11point"
    config.eval.score_threshold = 0.01  # detections with a lower score are dropped
    config.eval.nms_iou = 0.45  # NMS drops a detection that overlaps a better one by more
    config.eval.candidates_per_class = 400  # detections of a class that enter NMS
    config.eval.max_detections = 200  # per image, over all classes
    # Input sizes of multi-scale testing; empty = image_size alone. Either a preset, refinedet300 or
    # refinedet300_coco (config/scales.py), RefineDet's test at 320 px applied to a network of 300,
    # or entries joined by +, as in --config.eval.multiscale=300+300f+512:small+192:above32
    # An entry is SIZE or HEIGHTxWIDTH in pixels, then f for a flip, then what it keeps:
    # :belowN = boxes whose shorter side is below N pixels of the original image,
    # :aboveN = boxes whose longer side is above N; a side counts its first and last pixel,
    # :small, :large = :below and :above with the limits of the next two fields,
    # :wide, :tall = only images that are wider than high, or only the others.
    config.eval.multiscale = ()
    config.eval.multiscale_small = 128.0
    config.eval.multiscale_large = 32.0
    # How to merge the scales, at nms_iou: nms | vote | soft_vote. The last two are RefineDet's, for
    # VOC and for COCO. A preset has its own way, which replaces nms.
    config.eval.multiscale_merge = "nms"

    config.log_every = 10  # updates between lines in metrics.jsonl
    config.checkpoint_every = 1_000  # updates between checkpoints; one is also written at the end
    # Number of latest checkpoints to keep, in addition to the best by mAP. Use 2 or more: if the
    # latest is damaged, the run resumes from the previous one.
    config.keep_checkpoints = 3
    # A run in which no step and no evaluation batch finishes for this long (longer than compilation
    # takes) reports the stack of each thread and ends with exit status 69; 0 = never.
    config.stall_seconds = 1_800.0
    # A directory that keeps compiled programs for the next start, such as
    # "~/.cache/scratchdet_jax"; empty = compile at every start.
    config.compilation_cache = ""
    return config


# Fields that change neither the parameters nor the AP of a run, so they may differ when a run is
# resumed. data.max_boxes is one: random numbers do not depend on the number of slots.
WITHOUT_EFFECT = (
    "name",
    "parallel",
    "data.dir",
    "data.cache",
    "data.threads",
    "data.max_boxes",
    "data.on_error",
    "eval.every_steps",
    "eval.batch_size",
    "eval.stop_after",
    "eval.log_pictures",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "stall_seconds",
    "compilation_cache",
)


def flatten(config: ml_collections.ConfigDict, prefix: str = "") -> dict[str, object]:
    """Returns all fields of a config by dotted name."""
    leaves: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def run_ends(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    """Returns the updates after which the run, and then each of its extensions, is complete.

    The first is `num_steps`, or the number that `train_images` gives; `extend` gives the others.

    Raises:
        UserError: an entry of `extend` is malformed or not above the one before it.
    """
    ends = [config.num_steps or config.train_images // config.batch_size]
    for entry in filter(None, map(str.strip, config.extend.split(","))):
        match = re.fullmatch(r"(\d+(?:\.\d*)?)x|(\d+)", entry)
        if not match:
            raise UserError(
                f"config.extend has the entry {entry!r}: write the new total as a multiple of the "
                "run's length, such as 1.5x, or as a number of images; join several by commas"
            )
        factor, images = match.groups()
        end = round(float(factor) * ends[0]) if factor else int(images) // config.batch_size
        if end <= ends[-1]:
            raise UserError(
                f"config.extend has the entry {entry!r}, a total of {end} updates, but the run is "
                f"complete after {ends[-1]}: choose a larger total"
            )
        ends.append(end)
    return tuple(ends)


def number_of_steps(config: ml_collections.ConfigDict) -> int:
    """Returns the number of updates in a complete run, its extensions included."""
    return run_ends(config)[-1]
