"""The summary's figures against hand computation and the network's parameters."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from configs import bn_ablation, first_layers
from scratchdet_jax.config import defaults
from scratchdet_jax.detector import build_detector
from scratchdet_jax.tools import summary

ROOT = Path(__file__).parents[2]


def layers(config, classes):
    names = tuple(f"class {i}" for i in range(classes))
    return summary.layers_of(build_detector(config, names))


def test_layers_of_the_default_network():
    config = defaults.get_config()
    found = layers(config, 20)
    root = found["root"]
    assert root.kernels == ["3×3"] * 3
    assert root.shapes == [(300, 300, 64)]
    assert root.parameters == 9 * 3 * 64 + 2 * 9 * 64 * 64 + 6 * 64
    assert root.flop == 2 * 9 * (3 * 64 + 2 * 64 * 64) * 300 * 300
    block = found["stage2/block1"]
    assert sorted(block.kernels) == ["1×1/2", "3×3", "3×3/2"]
    assert block.shapes == [(75, 75, 128)]
    assert found["head/level2"].shapes == [(19, 19, 6 * 21), (19, 19, 6 * 4)]
    lines = summary.summarize(config, 20).splitlines()
    start = next(i for i, line in enumerate(lines) if line.split()[:1] == ["map"])
    assert [line.split() for line in lines[start + 1 : start + 7]] == [
        ["1", "38×38×256", "4", "5,776"],
        ["2", "19×19×512", "6", "2,166"],
        ["3", "10×10×128", "6", "600"],
        ["4", "5×5×128", "6", "150"],
        ["5", "3×3×128", "4", "36"],
        ["6", "2×2×128", "4", "16"],
    ]


def test_the_authors_trunk():
    # REFERENCE §2: 23.07 M parameters and 65.4 GFLOP in the trunk, strides of the mmdet release.
    config = defaults.get_config()
    config.model.extra_strides = (2, 2, 2, 1)
    found = summary.totals(layers(config, 20))
    (parameters, flop), (more, and_more) = found["backbone"], found["extras"]
    assert parameters + more == 23_074_112
    assert round((flop + and_more) / 1e9, 1) == 65.4


@pytest.mark.parametrize(
    "config",
    [
        bn_ablation.get_config("none"),
        bn_ablation.get_config("both_0.05"),
        first_layers.get_config("conv7_stride2"),
    ],
    ids=lambda c: c.name,
)
def test_every_parameter_is_counted_once(config):
    model = build_detector(config, ("a", "b")).model
    images = jax.ShapeDtypeStruct((1, 300, 300, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    total = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    found = summary.totals(layers(config, 2))
    assert found["total"][0] == total
    assert sum(found[name][0] for name in summary.PARTS) == total


def test_vgg_layers():
    found = layers(bn_ablation.get_config("pretrained"), 20)
    fc6 = found["fc6"]
    assert fc6.kernels == ["3×3 d6"]
    assert fc6.flop == 2 * 9 * 512 * 1024 * 19 * 19
    assert found["conv4_3"].parameters == 9 * 512 * 512 + 512 + 512  # with its L2-Norm
    assert found["extra3"].shapes == [(3, 3, 256)]
    scratch = layers(bn_ablation.get_config("none"), 20)
    assert scratch["conv4_3"].parameters == 9 * 512 * 512 + 512


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "scratchdet_jax.tools.summary", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_line():
    done = run("--config=configs/bn_ablation.py:none", "--config.model.width=0.5", "--classes=3")
    assert done.returncode == 0, done.stderr
    assert "VGG-16 x 0.5 at 300 px, BatchNorm: none, 3 classes" in done.stdout
    assert "8,732 anchors" in done.stdout
    for wrong in (("--classes=0",), ("--config.model.stem_stride=2",)):
        done = run("--config=configs/voc300.py", *wrong)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
