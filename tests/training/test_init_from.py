"""Starting from another run: classes by name and alias, parameters by name and shape."""

import jax
import numpy as np
import pytest

from scratchdet_jax.data import coco_classes
from scratchdet_jax.datasets import shapes
from scratchdet_jax.datasets.voc_xml import VOC_CLASSES
from scratchdet_jax.detector import build_detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.ops.anchors import anchors_per_cell
from scratchdet_jax.run.checkpoints import Checkpoints, RunInfo
from scratchdet_jax.run.state import TrainState
from scratchdet_jax.training import loop
from scratchdet_jax.training.init_from import init_from_run, map_classes, split_run
from tests.tiny import random_variables, tiny_config

SOURCE = ("person", "airplane", "tv", "dining table", "dog")
TARGET = ("aeroplane", "diningtable", "person", "unicorn")


def variables_of(config, names, seed):
    """Builds a detector and random variables for it."""
    detector = build_detector(config, names)
    return detector, random_variables(
        detector.model, config.image_size, np.random.default_rng(seed)
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("source")
    config = tiny_config()
    detector, variables = variables_of(config, SOURCE, 1)
    checkpoints = Checkpoints(workdir)
    state = TrainState(step=np.int32(7), opt_state=(), **variables)
    checkpoints.save(7, jax.tree.map(jax.numpy.asarray, state), RunInfo(config, SOURCE), None)
    checkpoints.close()
    return workdir, detector, variables


def test_all_voc_classes_are_found_in_coco():
    found = [coco_classes.NAMES[i - 1] for i in map_classes(VOC_CLASSES, coco_classes.NAMES)]
    other = {
        "aeroplane": "airplane",
        "diningtable": "dining table",
        "motorbike": "motorcycle",
        "pottedplant": "potted plant",
        "sofa": "couch",
        "tvmonitor": "tv",
    }
    assert found == [other.get(name, name) for name in VOC_CLASSES]


def test_classes_are_mapped_by_name_before_alias():
    assert map_classes(("tv", "sofa", "x"), ("tvmonitor", "couch", "tv")) == (3, 2, 0)


def test_a_run_is_named_with_or_without_a_checkpoint(tmp_path):
    assert split_run("runs/coco@120") == (tmp_path.__class__("runs/coco"), "120")
    assert split_run("runs/coco")[1] == "best"
    (tmp_path / "a@b").mkdir()
    assert split_run(str(tmp_path / "a@b")) == (tmp_path / "a@b", "best")


def test_mapped_classes_get_the_sources_logits_and_others_keep_their_weights(source, capsys):
    workdir, source_detector, source_variables = source
    config = tiny_config()
    detector, initial = variables_of(config, TARGET, 2)
    moved = init_from_run(f"{workdir}@7", detector, initial)
    image = np.random.default_rng(0).normal(0, 50, (1, 64, 64, 3)).astype(np.float32)
    before, before_boxes = source_detector.model.apply(source_variables, image, train=False)
    after, after_boxes = detector.model.apply(moved, image, train=False)
    np.testing.assert_allclose(after_boxes, before_boxes, atol=1e-5)
    np.testing.assert_allclose(after[..., :4], before[..., [0, 2, 4, 1]], atol=1e-5)

    cells = anchors_per_cell(config.anchors.aspect_ratios)
    for group, values in (("params", "kernel"), ("params", "scale"), ("batch_stats", "mean")):
        name = "class_conv" if values == "kernel" else "class_norm"
        for level, anchors in enumerate(cells, 1):
            new, old = (x[group]["head"][f"level{level}"][name][values] for x in (moved, initial))
            last = [x.reshape(*x.shape[:-1], anchors, 5)[..., 4] for x in (new, old)]
            np.testing.assert_array_equal(*last)  # unicorn

    printed = capsys.readouterr().out
    assert "aeroplane from airplane, diningtable from dining table, person" in printed
    assert "classes not in the source: unicorn" in printed
    assert "remapped  head/level1/class_conv/kernel 3x3x32x12 to 3x3x32x10" in printed
    assert "copied    head/level1/box_conv/kernel 3x3x32x8" in printed
    assert " 0 unmatched" in printed


def test_levels_with_other_anchors_or_shapes_keep_their_weights(source, capsys):
    workdir, _, source_variables = source
    config = tiny_config(
        **{"anchors.aspect_ratios": ((2,), (), (), (), (), ()), "model.extra_channels": 64}
    )
    with config.unlocked():
        config.model.extra_channels = 256
    detector, initial = variables_of(config, SOURCE, 2)
    moved = init_from_run(str(workdir), detector, initial)
    level = moved["params"]["head"]["level1"]["box_conv"]["kernel"]
    np.testing.assert_array_equal(level, initial["params"]["head"]["level1"]["box_conv"]["kernel"])
    level = moved["params"]["head"]["level2"]["class_conv"]["kernel"]  # same classes, same anchors
    expected = source_variables["params"]["head"]["level2"]["class_conv"]["kernel"]
    np.testing.assert_array_equal(level, expected)
    printed = capsys.readouterr().out
    assert "unmatched head/level1/box_conv/kernel" in printed
    assert "4 anchors per cell here, 2 in the source" in printed
    assert "remapped  " not in printed
    assert "in the source" in printed.split("unmatched head/level6/class_conv/kernel")[1]


def test_a_missing_run_and_a_run_without_a_match_are_named(source, tmp_path):
    config = tiny_config()
    detector, initial = variables_of(config, TARGET, 2)
    with pytest.raises(UserError, match=r"config\.init_from .*there is no run"):
        init_from_run(str(tmp_path / "none"), detector, initial)
    other = {"params": {"other": {"kernel": np.zeros(3)}}, "batch_stats": {}}
    with pytest.raises(UserError, match="no parameter of step 7 matches"):
        init_from_run(str(source[0]), detector, other)


@pytest.mark.slow  # trains two runs
def test_a_new_run_starts_from_another_and_a_resumed_one_does_not(
    source, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"train": 16, "validation": 1})
    workdir, _, source_variables = source
    config = tiny_config(
        **{
            "init_from": str(workdir),
            "num_steps": 1,
            "batch_size": 8,
            "data.dir": str(tmp_path / "data"),
            "data.train": "shapes:train",
            "data.eval": "",
            "data.max_boxes": 16,
            "data.threads": 1,
            "optimizer.learning_rate": 1e-9,
        }
    )
    state = loop.train_and_evaluate(config, tmp_path / "run")
    assert int(state.step) == 1
    kernel = state.params["head"]["level1"]["box_conv"]["kernel"]
    expected = source_variables["params"]["head"]["level1"]["box_conv"]["kernel"]
    np.testing.assert_allclose(kernel, expected, atol=1e-6)
    assert "copied    head/level1/box_conv/kernel" in capsys.readouterr().out
    with config.unlocked():
        config.init_from = "nowhere"
    with pytest.raises(UserError, match=r"config\.init_from: was '.*', now 'nowhere'"):
        loop.train_and_evaluate(config, tmp_path / "run")
    resumed = loop.train_and_evaluate(config, tmp_path / "run", "force")
    jax.tree.map(np.testing.assert_array_equal, resumed.params, state.params)
    assert "already finished" in capsys.readouterr().out
