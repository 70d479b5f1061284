"""Every recipe is valid and has the published network, and its training step runs.

Complete runs of the recipes need a GPU. These tests check the shapes of each without computing
anything. `make test-slow` runs two steps of each network on random images, at an eighth of its
width.
"""

import importlib
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from scratchdet_jax.config import defaults
from scratchdet_jax.config.defaults import number_of_steps
from scratchdet_jax.config.recipes import load_recipe
from scratchdet_jax.config.validation import validate
from scratchdet_jax.detector import build_detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.models import ssd
from scratchdet_jax.parallel.devices import DeviceMapping
from scratchdet_jax.run.state import create_state
from scratchdet_jax.training.optimizer import make_optimizer
from scratchdet_jax.training.step import make_train_step
from tests.models.shapes import feature_shapes
from tests.tiny import random_batch

ROOT = Path(__file__).parent.parent
ROOT_MAPS, VGG_MAPS = (38, 19, 10, 5, 3, 2), (38, 19, 10, 5, 3, 1)
FILES_OF_ROWS = ("voc300", "bn_ablation", "first_layers", "stock_ssd")


def recipes():
    """Recipe (FILE or FILE:ROW, as on the command line) → backbone, maps, number of anchors."""
    root34 = ("Root-ResNet-34", ROOT_MAPS, 8744)
    vgg = ("VGG-16", VGG_MAPS, 8732)
    caffe34 = ("Root-ResNet-34", (38, 19, 10, 5, 5, 5), 8892)
    return {
        "configs/voc300.py": root34,
        **{f"configs/voc300.py:{row}": root34 for row in rows("voc300")},
        **{f"configs/bn_ablation.py:{row}": vgg for row in rows("bn_ablation")},
        "configs/first_layers.py:conv7_stride2": ("ResNet-18", VGG_MAPS, 8732),
        "configs/first_layers.py:conv7_stride2_no_pool": (
            "ResNet-18 (no pooling in the stem)",
            VGG_MAPS,
            8732,
        ),
        "configs/first_layers.py:root_stride2": (
            "Root-ResNet-18 (stem of stride 2)",
            VGG_MAPS,
            8732,
        ),
        "configs/first_layers.py:conv7_stride1": ("ResNet-18 (stem of stride 1)", VGG_MAPS, 8732),
        "configs/first_layers.py:root_stride1": ("Root-ResNet-18", VGG_MAPS, 8732),
        "configs/caffe_release/voc300.py": caffe34,
        "configs/caffe_release/coco300.py": caffe34,
        "configs/coco300.py": root34,
        # 4096·4 + 1024·6 + 256·6 + 64·6 + 16·6 + 4·4 + 4
        "configs/coco512.py": ("Root-ResNet-34", (64, 32, 16, 8, 4, 2, 1), 24564),
        "configs/mmdet_release/ssd300.py": ("Root-ResNet-34", (38, 19, 10, 5, 3, 3), 8764),
        "configs/mmdet_release/ssd512.py": ("Root-ResNet-34", (64, 32, 16, 8, 4, 2, 1), 24564),
        **{f"configs/stock_ssd.py:{row}": vgg for row in rows("stock_ssd")},
        "configs/stock_ssd.py:mmdetection512": ("VGG-16", (64, 32, 16, 8, 4, 2, 1), 24564),
    }


def rows(file):
    return tuple(importlib.import_module(f"configs.{file}").PUBLISHED)


RECIPES = recipes()


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(ssd, "feature_shapes", feature_shapes)


@pytest.mark.parametrize("recipe", RECIPES)
def test_network_and_anchors(recipe):
    config = load_recipe(recipe)
    validate(config, device_count=1)
    detector = build_detector(config, ("any",))
    name, maps, anchors = RECIPES[recipe]
    assert ssd.backbone_name(config.model) == name
    assert ssd.feature_sizes(detector.model, config.image_size) == tuple((n, n) for n in maps)
    assert detector.anchors.shape == (anchors, 4)


def test_every_row_is_tested_and_has_a_unique_name():
    for file in FILES_OF_ROWS:
        for row in rows(file):
            assert f"configs/{file}.py:{row}" in RECIPES
    names = [load_recipe(recipe).name for recipe in RECIPES if recipe != "configs/voc300.py"]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("file", FILES_OF_ROWS)
@pytest.mark.parametrize(("row", "problem"), [(":best", "has no row 'best'"), (":", "needs a row")])
def test_an_unknown_row_lists_the_known_rows(file, row, problem):
    with pytest.raises(UserError) as error:
        load_recipe(f"configs/{file}.py{row}")
    assert f"configs/{file}.py {problem}" in str(error.value)
    assert all(known in str(error.value) for known in rows(file))


@pytest.mark.parametrize("file", ["bn_ablation", "first_layers"])
def test_a_table_needs_a_row(file):
    with pytest.raises(UserError, match="needs a row"):
        load_recipe(f"configs/{file}.py")


def test_published_figures_are_the_papers():
    ablation = importlib.import_module("configs.bn_ablation").PUBLISHED
    want = [67.6, 71.0, 75.6, 72.8, 77.8, 78.0, 71.8, 77.3, 78.7, 77.2, 78.2]
    assert list(ablation.values()) == want
    first = importlib.import_module("configs.first_layers").PUBLISHED
    assert list(first.values()) == [73.1, 75.3, 75.4, 77.6, 78.5]
    voc = importlib.import_module("configs.voc300").PUBLISHED
    assert list(voc.values()) == [80.4, None, 84.0, 78.5, 82.1]


# What the sources fix, by hand (paper, releases, SSD): BatchNorm in backbone and head, images that
# share its statistics, decay of its averages, rate, batch, updates in thousands, updates in
# thousands after which the rate drops, warm-up, no decay on, factor on the rate of biases.
SSD_DROPS, VOC_DROPS, COCO_DROPS = (80, 100), (40, 75, 90), (150, 250, 310, 320)
CAFFE = (0, "biases,head_norms", 2.0)
OURS = (500, "", 1.0)
FIXED = {
    "configs/voc300.py": ("batch", "batch", 32, 0.9, 0.05, 128, 100, VOC_DROPS, *OURS),
    "configs/voc300.py:voc07": ("batch", "batch", 32, 0.9, 0.05, 128, 100, VOC_DROPS, *OURS),
    "configs/voc300.py:voc07_sync_bn": ("batch", "batch", 0, 0.9, 0.05, 128, 100, VOC_DROPS, *OURS),
    "configs/voc300.py:voc07_coco": ("batch", "batch", 32, 0.9, 0.001, 128, 100, VOC_DROPS, *OURS),
    "configs/voc300.py:voc12": ("batch", "batch", 32, 0.9, 0.05, 128, 100, VOC_DROPS, *OURS),
    "configs/voc300.py:voc12_coco": ("batch", "batch", 32, 0.9, 0.001, 128, 100, VOC_DROPS, *OURS),
    "configs/coco300.py": ("batch", "batch", 16, 0.9, 0.05, 128, 325, COCO_DROPS, *OURS),
    "configs/caffe_release/voc300.py": (
        *("batch", "none", 32, 0.999, 0.05, 128, 100, VOC_DROPS, *CAFFE),
    ),
    "configs/caffe_release/coco300.py": (
        *("batch", "batch", 16, 0.999, 0.05, 128, 325, COCO_DROPS, *CAFFE),
    ),
    **{
        f"configs/bn_ablation.py:{row}": (*norms, 32, 0.999, rate, batch, length, drops, *CAFFE)
        for row, norms, rate, batch, length, drops in (
            ("none", ("none", "none"), 0.001, 32, 120, SSD_DROPS),
            ("head_0.001", ("none", "batch"), 0.001, 32, 120, SSD_DROPS),
            ("head_0.01", ("none", "batch"), 0.01, 128, 100, VOC_DROPS),
            ("backbone_0.001", ("batch", "none"), 0.001, 32, 120, SSD_DROPS),
            ("backbone_0.01", ("batch", "none"), 0.01, 128, 100, VOC_DROPS),
            ("backbone_0.05", ("batch", "none"), 0.05, 128, 100, VOC_DROPS),
            ("both_0.001", ("batch", "batch"), 0.001, 32, 120, SSD_DROPS),
            ("both_0.01", ("batch", "batch"), 0.01, 128, 100, VOC_DROPS),
            ("both_0.05", ("batch", "batch"), 0.05, 128, 100, VOC_DROPS),
            ("pretrained", ("none", "none"), 0.001, 32, 120, SSD_DROPS),
            ("pretrained_bn", ("batch", "none"), 0.001, 32, 120, SSD_DROPS),
        )
    },
    **{
        f"configs/first_layers.py:{row}": (
            *("batch", "batch", 32, 0.999, 0.05, 128, 100, VOC_DROPS, *CAFFE),
        )
        for row in (
            *("conv7_stride2", "conv7_stride2_no_pool", "root_stride2"),
            *("conv7_stride1", "root_stride1"),
        )
    },
    **{
        f"configs/stock_ssd.py:{row}": (
            *("none", "none", 32, 0.999, 0.001, 32, 120, SSD_DROPS, *CAFFE),
        )
        for row in ("ssd_pytorch", "torchvision", "mmdetection300", "mmdetection512")
    },
}
EPOCHS_OF_RELEASE = {  # images a GPU, GPUs, rate, epochs with a drop, epochs of 5 × train2017
    "configs/mmdet_release/ssd300.py": (50, 4, 0.05, (34, 46, 50), 52),
    "configs/mmdet_release/ssd512.py": (20, 4, 0.03, (38, 70, 80), 84),
    "configs/coco512.py": (20, 4, 0.03, (38, 70, 80), 84),
}
# Anchors, image size, strides of the extra blocks; channels that the head sees.
ROOT34 = (256, 512, 128, 128, 128, 128)
SSD_CHANNELS = (512, 1024, 512, 256, 256, 256)
SHAPES = {
    "configs/voc300.py": ("voc300", 300, (2, 2, 2, 2), ROOT34),
    "configs/coco300.py": ("coco300", 300, (2, 2, 2, 2), ROOT34),
    "configs/coco512.py": ("coco512", 512, (2, 2, 2, 2, 2), (*ROOT34, 128)),
    "configs/mmdet_release/ssd300.py": ("coco300", 300, (2, 2, 2, 1), ROOT34),
    "configs/mmdet_release/ssd512.py": ("coco512", 512, (2, 2, 2, 2), (*ROOT34, 128)),
    "configs/caffe_release/voc300.py": ("voc300", 300, (2, 2, 1, 1), ROOT34),
    "configs/caffe_release/coco300.py": ("coco300", 300, (2, 2, 1, 1), ROOT34),
    "configs/first_layers.py": ("voc300", 300, (2, 2, 1, 1), (256, 512, 512, 256, 256, 256)),
    "configs/bn_ablation.py": ("voc300", 300, (2, 2, 1, 1), SSD_CHANNELS),
    "configs/stock_ssd.py:ssd_pytorch": ("voc300", 300, (2, 2, 1, 1), SSD_CHANNELS),
    "configs/stock_ssd.py:mmdetection512": ("coco512", 512, (2, 2, 2, 2), (*SSD_CHANNELS, 256)),
    "configs/stock_ssd.py": ("coco300", 300, (2, 2, 1, 1), SSD_CHANNELS),
}


@pytest.mark.parametrize("recipe", FIXED)
def test_fields_that_the_sources_fix(recipe):
    norm, head_norm, span, decay, rate, batch, length, drops, warmup, no_decay, biases = FIXED[
        recipe
    ]
    config = load_recipe(recipe)
    model, optimizer = config.model, config.optimizer
    assert (model.norm, model.head_norm) == (norm, head_norm)
    assert (model.norm_span, model.norm_decay, model.norm_epsilon) == (span, decay, 1e-5)
    assert (optimizer.learning_rate, config.batch_size) == (rate, batch)
    assert optimizer.reference_batch_size == batch
    assert number_of_steps(config) == 1000 * length
    assert [round(share * length) for share in optimizer.drop_at] == list(drops)
    assert optimizer.warmup_steps == warmup
    assert (optimizer.no_decay, optimizer.bias_lr_mult) == (no_decay, biases)
    assert (optimizer.momentum, optimizer.weight_decay) == (0.9, 5e-4)
    assert (optimizer.drop_factor, config.loss.negative_ratio) == (0.1, 3.0)
    assert model.initializer == ("caffe" if warmup == 0 else "kaiming")
    if warmup == 0 and head_norm == "batch":
        assert model.head_norm_epsilon == 1e-3


@pytest.mark.parametrize("recipe", EPOCHS_OF_RELEASE)
def test_the_schedule_of_the_mmdetection_release(recipe):
    images, gpus, rate, drops, epochs = EPOCHS_OF_RELEASE[recipe]
    config = load_recipe(recipe)
    assert (config.model.norm_span, config.batch_size) == (images, images * gpus)
    assert config.optimizer.learning_rate == rate
    assert config.optimizer.reference_batch_size == config.batch_size
    assert config.train_images == epochs * 5 * 118_287
    assert [round(share * epochs) for share in config.optimizer.drop_at] == list(drops)
    assert config.optimizer.warmup_steps == 500
    assert config.eval.score_threshold == 0.02


@pytest.mark.parametrize("recipe", RECIPES)
def test_anchors_extra_blocks_and_channels(recipe):
    file = recipe.partition(":")[0]
    anchors, size, strides, channels = SHAPES.get(recipe) or SHAPES[file]
    config = load_recipe(recipe)
    assert config.image_size == size
    assert config.model.extra_strides == strides
    fields = defaults.anchor_fields(anchors)
    for name in ("min_percent", "max_percent", "aspect_ratios"):
        assert config.anchors[name] == fields[name]
    model = build_detector(config, ("any",)).model
    assert tuple(c for _, _, c in ssd.feature_shapes(model, size)) == channels


def test_every_recipe_is_held_by_the_tables():
    assert set(RECIPES) == set(FIXED) | set(EPOCHS_OF_RELEASE)


def test_what_distinguishes_the_rows_of_the_batch_norm_table():
    for row in rows("bn_ablation"):
        config = load_recipe(f"configs/bn_ablation.py:{row}")
        assert bool(config.init_from) == row.startswith("pretrained")
        assert config.model.l2_norm == (row == "pretrained")
        assert config.model.pool_norms == row.startswith(("backbone", "both"))


def test_docs_list_every_recipe_with_its_published_figure():
    lines = (ROOT / "docs/recipes.md").read_text().splitlines()
    listed = {}
    for line in lines:
        if found := re.match(r"\| `--config=(\S+)` \|", line):
            listed[found[1]] = line
    assert set(listed) == set(RECIPES) - {"configs/voc300.py:voc07"}
    for file in FILES_OF_ROWS:
        for row, value in importlib.import_module(f"configs.{file}").PUBLISHED.items():
            name = "configs/voc300.py" if row == "voc07" else f"configs/{file}.py:{row}"
            assert f"| {value or '–'} |" in listed[name].replace("**", "")


def test_defaults_complete_an_older_config():
    old = load_recipe("configs/voc300.py")
    old.model.depth = 18
    for name in ("backbone", "stem", "stem_convs", "stem_stride", "last_convolutions"):
        del old.model[name]
    del old.init_from
    new = defaults.with_defaults(old)
    assert new.model.depth == 18 and new.name == "voc300"
    want = load_recipe("configs/voc300.py")
    want.model.depth = 18
    assert new.to_dict() == want.to_dict()


def small(recipe):
    """The recipe at an eighth of the width, with two small images and without augmentation."""
    config = load_recipe(recipe)
    config.model.width = 0.125
    config.batch_size = 2
    config.accumulate_steps = 1
    config.num_steps = 2
    config.optimizer.reference_batch_size = 0  # keep the rate for 128 images
    config.data.canvas = (96, 96)
    config.data.max_boxes = 4
    config.augment.crop = False
    config.augment.expand_probability = 0.0
    config.augment.photometric_probability = 0.0
    config.augment.interpolations = ("linear",)
    return config


def one_of_each_step():
    """The first recipe of those whose steps differ in rates and data alone."""
    found = {}
    for recipe in RECIPES:
        fields = load_recipe(recipe).to_dict()
        parts = [fields[name] for name in ("model", "anchors", "image_size", "loss", "normalize")]
        kinds = [fields["optimizer"][name] for name in ("no_decay", "bias_lr_mult")]
        found.setdefault(repr(parts + kinds), recipe)
    return list(found.values())


@pytest.mark.slow
@pytest.mark.parametrize("recipe", one_of_each_step())
def test_two_steps(recipe):
    config = small(recipe)
    validate(config, device_count=1)
    mapping = DeviceMapping(config.parallel, jax.devices()[:1])
    detector = build_detector(config, ("a", "b", "c"), "batch")
    optimizer = make_optimizer(config)
    state = mapping.replicate(
        create_state(detector.model, optimizer, config.image_size, config.seed)
    )
    before = jax.device_get(state.params)
    step = mapping.map_train_step(make_train_step(detector, optimizer))
    for seed in (1, 2):
        batch = random_batch(config, seed)
        batch["boxes"][:, :, 0] = (0.1, 0.1, 0.6, 0.7)
        batch["labels"][:, :, 0] = 1
        batch.pop("original_size")
        state, metrics = step(state, mapping.put_batch(batch))
        metrics = jax.device_get(metrics)
        assert metrics["positives"] >= 2
        assert all(np.isfinite(value) for value in metrics.values()), metrics
        assert metrics["loss"] > 0
    assert state.step == 2
    after = jax.device_get(state.params)
    for (path, a), b in zip(jax.tree.leaves_with_path(after), jax.tree.leaves(before), strict=True):
        assert np.isfinite(a).all(), path
        assert "kernel" not in jax.tree_util.keystr(path) or (a != b).any(), path


def test_the_defaults_are_voc300():
    """The doctor measures with the defaults and calls them voc300."""
    recipe = importlib.import_module("configs.voc300").get_config()
    default = defaults.get_config()
    default.name = recipe.name
    default.model.norm_span = recipe.model.norm_span  # not measured
    assert default.to_dict() == recipe.to_dict()
