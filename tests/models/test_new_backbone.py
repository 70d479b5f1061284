"""A backbone from outside the package: one module and one row of the table make a detector."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scratchdet_jax
from scratchdet_jax.config import defaults
from scratchdet_jax.config.validation import validate
from scratchdet_jax.detector import build_detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.models.backbone import Backbone, scale_channels
from scratchdet_jax.models.layers import Layers
from scratchdet_jax.models.resnet import extra_blocks
from scratchdet_jax.models.ssd import BACKBONES, backbone_name, feature_sizes
from scratchdet_jax.run.open import open_run
from scratchdet_jax.tools import eval as eval_command
from scratchdet_jax.tools import export
from scratchdet_jax.tools.predict import __main__ as predict
from tests.command import exit_status
from tests.training.small_run import small_config, train

CLASSES = ("a", "b", "c")


class Plain(nn.Module):
    """Convolutions of stride 2; the last `depth` of five give source maps."""

    depth: int
    channels: int
    extra_strides: tuple[int, ...]
    last_convolutions: bool
    layers: Layers

    @nn.compact
    def __call__(self, images, train):
        x, maps = images.astype(self.layers.dtype), []
        for i in range(1, 6):
            x = self.layers.convolve(x, self.channels, 3, stride=2, name=f"conv{i}")
            x = nn.relu(self.layers.normalize(x, train, name=f"norm{i}"))
            maps.append(x)
        extras = extra_blocks(
            x,
            train,
            channels=self.channels,
            strides=self.extra_strides,
            last_convolutions=self.last_convolutions,
            layers=self.layers,
        )
        return (*maps[-self.depth :], *extras)


def build(config, layers):
    return Plain(
        depth=config.depth,
        channels=scale_channels(64, config.width),
        extra_strides=tuple(config.extra_strides),
        last_convolutions=config.last_convolutions,
        layers=layers,
    )


PLAIN = Backbone(
    build=build,
    name=lambda config: f"Plain-{config.depth}",
    sources=lambda config: config.depth,
    checks=lambda config: {"depth": (1 <= config.depth <= 5, "1 to 5 source maps")},
)


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(BACKBONES, "plain", PLAIN)
    config = defaults.get_config()
    config.image_size = 64
    config.model.backbone = "plain"
    config.model.depth = 3
    config.model.width = 0.25
    config.model.extra_strides = (2,)
    config.anchors.update(
        min_percent=(10, 25, 40, 60),
        max_percent=(25, 40, 60, 80),
        aspect_ratios=((), (2,), (2,), ()),
        steps=(),
    )
    return config


def test_forward_pass(config):
    detector = build_detector(config, CLASSES)
    assert feature_sizes(detector.model, 64) == ((8, 8), (4, 4), (2, 2), (1, 1))
    anchors = 64 * 2 + 16 * 4 + 4 * 4 + 2
    assert detector.anchors.shape == (anchors, 4)
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)

    @jax.jit
    def run(images):
        variables = detector.model.init(jax.random.key(0), images, train=False)
        outputs = detector.model.apply(variables, images, train=False)
        return variables, detector.model.apply(variables, images, False, method="sources"), outputs

    variables, sources, (logits, offsets) = run(images)
    assert [m.shape for m in sources] == [(2, n, n, 16) for n in (8, 4, 2, 1)]
    assert logits.shape == (2, anchors, len(CLASSES) + 1) and offsets.shape == (2, anchors, 4)
    assert jnp.isfinite(logits).all() and jnp.isfinite(offsets).all()
    names = {"head", "extra1"} | {f"{kind}{i}" for kind in ("conv", "norm") for i in range(1, 6)}
    assert set(variables["params"]) == names


def test_the_packed_layout_leaves_its_maps_plain(config):
    """A backbone that applies JAX's own functions to maps works on TPUs, too."""
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    outputs = []
    for layout in ("plain", "packed"):
        config.model.layout = layout
        model = build_detector(config, CLASSES).model
        variables = model.init(jax.random.key(0), images, train=False)
        outputs.append(model.apply(variables, images, train=False))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *outputs)


def test_it_is_a_valid_config(config):
    assert validate(config, device_count=1) is None
    config.model.backbone = "nothing"
    with pytest.raises(UserError, match=r"config\.model\.backbone is 'nothing'"):
        validate(config, device_count=1)


def test_last_convolutions_add_a_map(config):
    config.image_size = 128
    config.model.last_convolutions = True
    config.model.depth = 2
    assert build_detector(config, CLASSES).anchors.shape == (64 * 2 + 16 * 4 + 4 * 4 + 2, 4)


def test_display_name(config):
    assert backbone_name(config.model) == "Plain-3 x 0.25"
    config.model.width = 1.0
    assert backbone_name(config.model) == "Plain-3"


def test_its_checks_name_the_field(config):
    config.model.depth = 6
    message = r"config\.model\.depth is 6: use 1 to 5 source maps"
    with pytest.raises(UserError, match=message):
        build_detector(config, CLASSES)
    with pytest.raises(UserError, match=message):
        validate(config, device_count=1)


def test_source_maps_are_counted_by_its_row(config):
    config.model.depth = 4
    with pytest.raises(UserError, match=r"4 levels but .* \(2,\) gives 5 source maps: use 0 extra"):
        build_detector(config, CLASSES)


def test_unknown_names_list_the_known(config):
    config.model.backbone = "other"
    with pytest.raises(UserError, match=r"is 'other': use 'resnet' or 'vgg16' or 'plain'"):
        build_detector(config, CLASSES)


def test_an_import_path_names_a_backbone():
    config = defaults.get_config()
    config.model.backbone = "tests.plain:PLAIN"
    assert backbone_name(config.model) == "Plain"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.module:BACKBONE", r"'nowhere\.module' cannot be imported \(No module named"),
        ("tests.plain:NOTHING", r"tests\.plain has no Backbone called 'NOTHING'"),
        ("tests.plain:FIELDS", r"tests\.plain has no Backbone called 'FIELDS'"),
    ],
)
def test_a_backbone_that_cannot_be_imported_is_named(path, message):
    config = defaults.get_config()
    config.model.backbone = path
    with pytest.raises(UserError, match=message):
        backbone_name(config.model)


def test_a_run_with_an_outside_backbone_is_evaluated_drawn_and_exported(tmp_path, monkeypatch):
    """The package knows the backbone only by the import path that the run records."""
    outside = {"model.backbone": "tests.plain:PLAIN", "num_steps": 1, "eval.every_steps": 0}
    config = small_config(tmp_path, monkeypatch, **outside)
    monkeypatch.delitem(BACKBONES, "plain")
    workdir = tmp_path / "run"
    train(config, workdir)
    assert open_run(workdir, "latest").info.config.model.backbone == "tests.plain:PLAIN"
    assert exit_status(eval_command.main, f"--workdir={workdir}", "--checkpoint=latest") == 0
    drawn = (f"--workdir={workdir}", f"--output={tmp_path / 'pictures'}", "--count=1")
    assert exit_status(predict.main, *drawn) == 0
    file = tmp_path / "plain.jaxexport"
    assert exit_status(export.main, f"--workdir={workdir}", f"--output={file}") == 0
    assert scratchdet_jax.load(file).class_names == scratchdet_jax.load(workdir).class_names
