"""Recipes are valid, and invalid values are reported by field before anything is built."""

import importlib

import jax
import pytest

from scratchdet_jax.config.validation import validate
from scratchdet_jax.errors import UserError
from scratchdet_jax.parallel.devices import DeviceMapping
from tests.tiny import tiny_config

RECIPES = ("shapes", "voc300", "coco300", "voc_folder")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_valid_and_named_as_their_file(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    validate(config, device_count=1)
    assert config.name == name


def test_an_evaluation_batch_need_not_divide_among_the_devices():
    validate(tiny_config(**{"eval.batch_size": 9}), device_count=8)
    mapping = DeviceMapping("shard_map", jax.devices()[:8])
    assert [mapping.whole_batch(images) for images in (1, 8, 9, 16)] == [8, 8, 16, 16]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("parallel", "both", r"config\.parallel is 'both'.*shard_map, pmap"),
        ("batch_size", 12, r"batch_size is 12; it must be a multiple of 8, the devices \(8\)"),
        ("eval.batch_size", 0, r"eval\.batch_size is 0"),
        ("optimizer.drop_at", (0.5, 40_000.0), r"optimizer\.drop_at"),
        ("optimizer.learning_rate", -1.0, r"optimizer\.learning_rate is -1\.0"),
        ("loss.match_iou", 50.0, r"loss\.match_iou is 50\.0; it must be between 0 and 1"),
        ("model.depth", 35, r"model\.depth is 35"),
        ("model.extra_strides", (2, 2), r"source maps"),
        ("augment.interpolations", ("linear", "quintic"), r"quintic"),
        ("data.canvas", (64,), r"data\.canvas is \(64,\); it must be \(height, width\)"),
        ("normalize.std", (0.0, 1.0, 1.0), r"normalize\.std"),
        ("model.norm_span", 7, r"model\.norm_span is 7.*multiple of 2 that divides 16"),
        ("anchors.aspect_ratios", ((0,),) * 6, r"aspect_ratios"),
        ("image_size", 7, r"level 0 are 0 and 1 pixels at config\.image_size 7"),
        ("anchors.steps", (8, 16, 32, 64, 100, 128), r"64 x 64 pixels is too small .* step 128 of"),
        ("ema_decay", 1.0, r"ema_decay is 1\.0; it must be 0 \(off\) or above, and below 1"),
        ("freeze", "backbone", r"freeze is 'backbone', but the run starts from random weights"),
        ("eval.log_pictures", -1, r"eval\.log_pictures is -1"),
        ("eval.stop_after", -1, r"eval\.stop_after is -1"),
        ("eval.stop_after", 2, r"stop_after is 2; it must be 0 unless .* give a mAP while"),
        ("extend", "half", r"extend has the entry 'half': write the new total as a multiple"),
        ("extend", "2x,1.5x", r"entry '1\.5x', a total of 30 updates, but .* after 40"),
        ("extend", "320", r"entry '320', a total of 20 updates, but .* after 20"),
        ("data.repeat_threshold", -0.1, r"repeat_threshold is -0\.1; it must be between 0 and 1"),
        ("eval.metric", "voc", r"eval\.metric is 'voc'.*voc_11point"),
    ],
)
def test_an_invalid_value_is_reported_by_field(field, value, message):
    with pytest.raises(UserError, match=message):
        validate(tiny_config(**{field: value}), device_count=8)


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (
            "root,stage9",
            r"freeze has 'stage9', which .* not have: use backbone, extras, head, .*root",
        ),
        ("backbone,extras,head", r"leaves nothing to train"),
        ("stage1,head/level1/class_conv, extra2", None),
    ],
)
def test_frozen_parts_exist_and_leave_something_to_train(freeze, message):
    config = tiny_config(freeze=freeze, init_from="runs/other")
    if message is None:
        validate(config, device_count=1)
    else:
        with pytest.raises(UserError, match=message):
            validate(config, device_count=1)


def test_a_run_without_steps_is_refused():
    with pytest.raises(UserError, match="train_images is 3; it must be enough for one step"):
        validate(tiny_config(num_steps=0, train_images=3), device_count=1)
