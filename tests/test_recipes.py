"""Every recipe is valid and has the published network, and its training step runs.

Complete runs of the recipes need a GPU. These tests check the shapes of each without computing
anything. Two steps run on random images at an eighth of the width: for one VGG-16, and for every
row in `make test-slow` (tests/training trains ResNets).
"""

import importlib
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from scratchdet_jax import cli
from scratchdet_jax.config import defaults
from scratchdet_jax.config.fields import number_of_steps
from scratchdet_jax.config.validation import validate
from scratchdet_jax.detector import build_detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.models import backbone_name, feature_sizes
from scratchdet_jax.parallel.devices import DeviceMapping
from scratchdet_jax.run.state import create_state
from scratchdet_jax.training.optimizer import make_optimizer
from scratchdet_jax.training.step import make_train_step
from tests.tiny import random_batch

ROOT = Path(__file__).parent.parent
ROOT_MAPS, VGG_MAPS = (38, 19, 10, 5, 3, 2), (38, 19, 10, 5, 3, 1)
FILES_OF_ROWS = ("voc300", "bn_ablation", "first_layers", "stock_ssd")


def recipes():
    """Recipe (FILE or FILE:ROW, as on the command line) → backbone, maps, number of anchors."""
    root34 = ("Root-ResNet-34", ROOT_MAPS, 8744)
    vgg = ("VGG-16", VGG_MAPS, 8732)
    return {
        "configs/voc300.py": root34,
        **{f"configs/voc300.py:{row}": root34 for row in rows("voc300")},
        **{f"configs/bn_ablation.py:{row}": vgg for row in rows("bn_ablation")},
        "configs/first_layers.py:conv7_stride2": ("ResNet-18", ROOT_MAPS, 8744),
        "configs/first_layers.py:root_stride2": (
            "Root-ResNet-18 (stem of stride 2)",
            ROOT_MAPS,
            8744,
        ),
        "configs/first_layers.py:conv7_stride1": ("ResNet-18 (stem of stride 1)", ROOT_MAPS, 8744),
        "configs/first_layers.py:root_stride1": ("Root-ResNet-18", ROOT_MAPS, 8744),
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


@pytest.mark.parametrize("recipe", RECIPES)
def test_network_and_anchors(recipe):
    config = cli.load_recipe(recipe)
    validate(config, device_count=1)
    detector = build_detector(config, ("any",))
    name, maps, anchors = RECIPES[recipe]
    assert backbone_name(config.model) == name
    assert feature_sizes(detector.model, config.image_size) == tuple((n, n) for n in maps)
    assert detector.anchors.shape == (anchors, 4)


def test_every_row_is_tested_and_has_a_unique_name():
    for file in FILES_OF_ROWS:
        for row in rows(file):
            assert f"configs/{file}.py:{row}" in RECIPES
    names = [cli.load_recipe(recipe).name for recipe in RECIPES if recipe != "configs/voc300.py"]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("file", FILES_OF_ROWS)
@pytest.mark.parametrize(("row", "problem"), [(":best", "has no row 'best'"), (":", "needs a row")])
def test_an_unknown_row_lists_the_known_rows(file, row, problem):
    with pytest.raises(UserError) as error:
        cli.load_recipe(f"configs/{file}.py{row}")
    assert f"configs/{file}.py {problem}" in str(error.value)
    assert all(known in str(error.value) for known in rows(file))


@pytest.mark.parametrize("file", ["bn_ablation", "first_layers"])
def test_a_table_needs_a_row(file):
    with pytest.raises(UserError, match="needs a row"):
        cli.load_recipe(f"configs/{file}.py")


def test_published_figures_are_the_papers():
    ablation = importlib.import_module("configs.bn_ablation").PUBLISHED
    assert list(ablation.values()) == [67.6, 71.0, 75.6, 72.8, 77.8, 78.0, 71.8, 77.3, 78.7, 77.2]
    first = importlib.import_module("configs.first_layers").PUBLISHED
    assert list(first.values()) == [73.1, 75.4, 77.6, 78.5]
    voc = importlib.import_module("configs.voc300").PUBLISHED
    assert list(voc.values()) == [80.4, 84.0, 78.5, 82.1]


@pytest.mark.parametrize("row", rows("bn_ablation"))
def test_rows_of_the_batch_norm_table(row):
    config = cli.load_recipe(f"configs/bn_ablation.py:{row}")
    places, _, rate = row.partition("_")
    assert config.model.norm == ("batch" if places in ("backbone", "both") else "none")
    assert config.model.head_norm == ("batch" if places in ("head", "both") else "none")
    assert config.optimizer.learning_rate == float(rate or 0.001)
    assert bool(config.init_from) == (row == "pretrained")


def test_schedules():
    config = cli.load_recipe("configs/voc300.py")
    assert number_of_steps(config) == 100_000
    assert [round(s * 1e5) for s in config.optimizer.drop_at] == [40_000, 75_000, 90_000]
    assert number_of_steps(cli.load_recipe("configs/coco300.py")) == 325_000


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
            assert f"| {value} |" in listed[name].replace("**", "")


def test_defaults_complete_an_older_config():
    old = cli.load_recipe("configs/voc300.py")
    old.model.depth = 18
    for name in ("backbone", "stem", "stem_convs", "stem_stride", "last_convolutions"):
        del old.model[name]
    del old.init_from
    new = defaults.with_defaults(old)
    assert new.model.depth == 18 and new.name == "voc300"
    want = cli.load_recipe("configs/voc300.py")
    want.model.depth = 18
    assert new.to_dict() == want.to_dict()


def small(recipe):
    """The recipe at an eighth of the width, with two small images and without augmentation."""
    config = cli.load_recipe(recipe)
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


def two_steps(recipe):
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


def test_two_steps():
    two_steps("configs/bn_ablation.py:head_0.01")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_two_steps_of_every_recipe(recipe):
    two_steps(recipe)


def test_the_defaults_are_voc300():
    """The doctor measures with the defaults and calls them voc300."""
    recipe = importlib.import_module("configs.voc300").get_config()
    default = defaults.get_config()
    default.name = recipe.name
    assert default.to_dict() == recipe.to_dict()
