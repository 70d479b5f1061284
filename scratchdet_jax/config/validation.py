"""Rejects a config that cannot run, naming the field, before anything is built."""

import functools
import math
from typing import Any

import jax
import ml_collections
from flax import traverse_util

from scratchdet_jax.config.defaults import flatten, run_ends
from scratchdet_jax.config.scales import MERGE_METHODS, parse_scales, preset_of
from scratchdet_jax.detector import Detector, augment_options, build_detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.models.norm_groups import check_norm_span
from scratchdet_jax.models.parts import KINDS, PARTS, is_frozen, split_names
from scratchdet_jax.paths import local_path, run_path, user_path

CHOICES = {
    "parallel": ("shard_map", "pmap"),
    "data.on_error": ("stop", "substitute"),
    "eval.metric": ("voc_11point", "voc_area", "coco", "none"),
    "eval.multiscale_merge": MERGE_METHODS,
}
POSITIVE = (
    "image_size",
    "batch_size",
    "accumulate_steps",
    "data.max_boxes",
    "optimizer.learning_rate",
    "optimizer.drop_factor",
    "eval.batch_size",
    "eval.candidates_per_class",
    "eval.max_detections",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "eval.multiscale_small",
    "eval.multiscale_large",
)
NOT_NEGATIVE = (
    "seed",
    "num_steps",
    "train_images",
    "data.threads",
    "optimizer.warmup_steps",
    "optimizer.reference_batch_size",
    "optimizer.weight_decay",
    "optimizer.bias_lr_mult",
    "eval.every_steps",
    "eval.stop_after",
    "eval.log_pictures",
    "loss.negative_ratio",
    "stall_seconds",
)
PATHS = {
    "data.dir": user_path,
    "data.cache": local_path,
    "data.folder": local_path,
    "init_from": user_path,
    "compilation_cache": run_path,
}
SHARES = (
    "optimizer.momentum",
    "optimizer.warmup_start",
    "loss.match_iou",
    "data.repeat_threshold",
    "eval.score_threshold",
    "eval.nms_iou",
)


def validate(config: ml_collections.ConfigDict, device_count: int) -> None:
    """Raises UserError, naming the field, if `config` cannot run on `device_count` devices."""
    values: dict[str, Any] = flatten(config)

    def require(holds: bool, name: str, what: str) -> None:
        if not holds:
            raise UserError(f"config.{name} is {values[name]!r}; it must be {what}")

    for name, choices in CHOICES.items():
        require(values[name] in choices, name, f"one of {', '.join(choices)}")
    for name in POSITIVE:
        require(0 < values[name] < math.inf, name, "a finite number above 0")
    for name in NOT_NEGATIVE:
        require(values[name] >= 0, name, "0 or more")
    for name, path in PATHS.items():
        path(values[name])
    for name in SHARES:
        require(0 <= values[name] <= 1, name, "between 0 and 1")
    canvas, std = config.data.canvas, config.normalize.std
    pair = len(canvas) == 2 and all(isinstance(side, int) and side > 0 for side in canvas)
    require(pair, "data.canvas", "(height, width), two whole numbers above 0")
    require(len(std) == 3 and min(std) > 0, "normalize.std", "three numbers above 0")
    ratios = [ratio for level in config.anchors.aspect_ratios for ratio in level]
    require(all(r > 0 for r in ratios), "anchors.aspect_ratios", "ratios above 0")
    decay = 0 <= config.ema_decay < 1
    require(decay, "ema_decay", "0 (off) or above, and below 1, such as 0.999")
    drops = all(0 < share < 1 for share in config.optimizer.drop_at)
    require(drops, "optimizer.drop_at", "shares of training between 0 and 1")
    known = set(split_names(config.optimizer.no_decay)) <= set(KINDS)
    require(known, "optimizer.no_decay", f"some of {', '.join(KINDS)}, joined by commas")
    require(run_ends(config)[0] > 0, "train_images", "enough for one step, or num_steps above 0")
    scored = config.data.eval and config.eval.metric != "none" and config.eval.every_steps
    need = "0 unless config.data.eval, eval.metric and eval.every_steps give a mAP while training"
    require(bool(scored) or not config.eval.stop_after, "eval.stop_after", need)
    part = device_count * config.accumulate_steps
    whole = f"a multiple of {part}, the devices ({device_count}) times config.accumulate_steps"
    require(config.batch_size % part == 0, "batch_size", whole)
    check_norm_span(config.model.norm_span, config.batch_size // part, device_count)
    _check_multiscale(config)
    # Augmentation, model and anchors check their own fields when they are built.
    augment_options(config)
    detector = build_detector(config, class_names=("any",))
    if config.freeze:
        _check_freeze(detector)


def _check_freeze(detector: Detector) -> None:
    config = detector.config
    if not config.init_from:
        raise UserError(
            f"config.freeze is {config.freeze!r}, but the run starts from random weights: name the "
            "run whose weights it starts from with config.init_from"
        )
    images = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), "float32")
    init = functools.partial(detector.model.init, train=False)
    params = jax.eval_shape(init, {"params": jax.random.key(0)}, images)["params"]
    names, paths = split_names(config.freeze), traverse_util.flatten_dict(params)
    for name in names:
        if not any(is_frozen(path, [name]) for path in paths):
            raise UserError(
                f"config.freeze has {name!r}, which this network does not have: use "
                f"{', '.join((*PARTS, *params))}, or a module inside one of these"
            )
    if all(is_frozen(path, names) for path in paths):
        raise UserError(
            f"config.freeze {config.freeze!r} leaves nothing to train: name fewer parts"
        )


def _check_multiscale(config: ml_collections.ConfigDict) -> None:
    parse_scales(config.eval.multiscale)
    merge = config.eval.multiscale_merge
    preset = preset_of(config.eval.multiscale)
    # nms is the default of the merge, and thus nobody's choice.
    if preset and (config.image_size != preset.image_size or merge not in ("nms", preset.merge)):
        raise UserError(
            f"config.eval.multiscale {config.eval.multiscale[0]} is for config.image_size "
            f"{preset.image_size} and merges by {preset.merge}, and the run has "
            f"{config.image_size} and multiscale_merge {merge!r}: write out sizes that suit it"
        )
