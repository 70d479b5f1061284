"""Shapes, sizes, order, initial values and configuration of the detector."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scratchdet_jax.errors import UserError
from scratchdet_jax.models.backbone import scale_channels
from scratchdet_jax.models.layers import CAFFE_GAUSSIAN, CAFFE_XAVIER, Layers
from scratchdet_jax.models.pooling import max_pool_2x2
from scratchdet_jax.models.ssd import Head, build_model, feature_shapes, feature_sizes
from tests.models.shapes import abstract_variables, count
from tests.tiny import random_variables

ANCHORS_300 = (4, 6, 6, 6, 4, 4)


def trunk_parameters(model):
    params = dict(abstract_variables(model)["params"])
    params.pop("head")
    return count(params)


@pytest.mark.parametrize("preactivation", [False, True])
def test_shapes_at_300(make_config, preactivation):
    config = make_config(preactivation=preactivation, dtype="bfloat16")
    model = build_model(config, 20, ANCHORS_300, axis_name="batch")
    sizes = feature_sizes(model, 300)
    assert sizes == ((38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (2, 2))
    assert sum(h * w * a for (h, w), a in zip(sizes, ANCHORS_300, strict=True)) == 8744
    variables = abstract_variables(model)
    images = jax.ShapeDtypeStruct((2, 300, 300, 3), jnp.float32)
    logits, offsets = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images)
    assert (logits.shape, logits.dtype) == ((2, 8744, 21), jnp.float32)
    assert (offsets.shape, offsets.dtype) == ((2, 8744, 4), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_source_channels_and_strides(make_config):
    model = build_model(make_config(depth=18), 20, ANCHORS_300)
    assert list(feature_shapes(model, 320)) == [
        (40, 40, 256),
        (20, 20, 512),
        (10, 10, 128),
        (5, 5, 128),
        (3, 3, 128),
        (2, 2, 128),
    ]


@pytest.mark.parametrize(
    ("strides", "image_size", "want"),
    [
        ((2, 2, 2, 1), 300, (38, 19, 10, 5, 3, 3)),
        ((2, 2, 1, 1), 300, (38, 19, 10, 5, 5, 5)),
        ((2, 2, 2, 2, 2), 512, (64, 32, 16, 8, 4, 2, 1)),
        ((2, 2, 2, 2), 301, (38, 19, 10, 5, 3, 2)),  # floor in the pooling: 150
    ],
)
def test_extra_strides(make_config, strides, image_size, want):
    model = build_model(make_config(depth=18, extra_strides=strides), 3, (4,) * (2 + len(strides)))
    assert feature_sizes(model, image_size) == tuple((n, n) for n in want)


def test_parameters_of_the_authors_trunk(make_config):
    # REFERENCE §2: 23.07 M with the strides of the mmdetection release.
    model = build_model(make_config(extra_strides=(2, 2, 2, 1)), 20, ANCHORS_300)
    assert trunk_parameters(model) == 23_074_112
    # A last stride of 2 adds its projection: 128 × 128 and a norm.
    model = build_model(make_config(), 20, ANCHORS_300)
    assert trunk_parameters(model) == 23_074_112 + 128 * 128 + 2 * 128


def test_parameter_names(make_config):
    params = abstract_variables(build_model(make_config(), 20, ANCHORS_300))["params"]
    stages = [f"stage{i}" for i in range(1, 5)]
    extras = [f"extra{i}" for i in range(1, 5)]
    assert set(params) == {"root", *stages, *extras, "head"}
    assert set(params["root"]) == {f"{kind}{i}" for kind in ("conv", "norm") for i in (1, 2, 3)}
    assert [len(params[stage]) for stage in stages] == [3, 4, 6, 3]
    plain = {"conv1", "norm1", "conv2", "norm2"}
    assert set(params["stage1"]["block1"]) == plain
    for block in (params["stage2"]["block1"], params["extra1"]):
        assert set(block) == plain | {"projection", "projection_norm"}
    assert set(params["head"]) == {f"level{i}" for i in range(1, 7)}
    assert set(params["head"]["level6"]) == {"class_conv", "class_norm", "box_conv", "box_norm"}
    assert params["head"]["level1"]["class_conv"]["kernel"].shape == (3, 3, 256, 4 * 21)
    assert set(params["root"]["conv1"]) == {"kernel"}
    assert set(params["root"]["norm1"]) == {"scale", "bias"}


@pytest.mark.parametrize("preactivation", [False, True])
def test_without_norms_convolutions_are_biased(make_config, preactivation):
    config = make_config(norm="none", head_norm="none", depth=18, preactivation=preactivation)
    variables = abstract_variables(build_model(config, 20, ANCHORS_300))
    assert set(variables) == {"params"}
    for path, _ in jax.tree.leaves_with_path(variables["params"]):
        assert "norm" not in jax.tree_util.keystr(path)
    assert "bias" in variables["params"]["root"]["conv1"]
    assert "bias" in variables["params"]["head"]["level1"]["box_conv"]


def test_norms_of_trunk_and_head_are_independent(make_config):
    config = make_config(norm="none", head_norm="batch", depth=18)
    variables = abstract_variables(build_model(config, 20, ANCHORS_300))
    assert set(variables["batch_stats"]) == {"head"}
    config = make_config(norm="batch", head_norm="none", depth=18)
    variables = abstract_variables(build_model(config, 20, ANCHORS_300))
    assert "head" not in variables["batch_stats"]
    assert set(variables["params"]["head"]["level1"]) == {"class_conv", "box_conv"}


@pytest.mark.parametrize(
    ("channels", "width", "want"),
    [(64, 1.0, 64), (64, 0.5, 32), (64, 0.05, 8), (128, 0.3, 40), (64, 0.1875, 16), (512, 2, 1024)],
)
def test_scale_channels(channels, width, want):
    assert scale_channels(channels, width) == want


def test_width_scales_every_part(make_config):
    params = abstract_variables(build_model(make_config(width=0.25), 20, ANCHORS_300))["params"]
    widths = {
        name: params[name]["block1"]["conv2"]["kernel"].shape[-1]
        for name in ("stage1", "stage2", "stage3", "stage4")
    }
    assert widths == {"stage1": 16, "stage2": 32, "stage3": 64, "stage4": 128}
    assert params["root"]["conv3"]["kernel"].shape[-1] == 16
    assert params["extra4"]["conv2"]["kernel"].shape[-1] == 32


def test_initial_values(make_config):
    config = make_config(depth=18, width=0.5, extra_strides=())
    model = build_model(config, 20, (4, 6))
    params = jax.jit(lambda x: model.init(jax.random.key(3), x, train=False))(
        jnp.zeros((1, 32, 32, 3))
    )["params"]
    for path, leaf in jax.tree.leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        if "kernel" not in name:
            np.testing.assert_array_equal(leaf, 1.0 if "scale" in name else 0.0, err_msg=name)
            continue
        height, width, fan_in, fan_out = leaf.shape
        if "head" in name:  # Glorot & Bengio 2010: uniform in ±sqrt(6 / (fan in + fan out))
            bound = np.sqrt(6 / (height * width * (fan_in + fan_out)))
            assert 0.98 * bound < np.abs(leaf).max() <= bound, name
            deviation = bound / np.sqrt(3)
        else:  # He et al. 2015: normal, variance 2 / fan out
            deviation = np.sqrt(2 / (height * width * fan_out))
            # Not truncated: among many values some are beyond two deviations.
            assert np.abs(leaf).max() > 2.5 * deviation, name
        # Six standard errors of the deviation's estimate.
        np.testing.assert_allclose(leaf.std(), deviation, rtol=6 / np.sqrt(2 * leaf.size))


def test_predictions_run_over_level_row_column_anchor():
    anchors, classes = (2, 3), 4
    sizes = ((2, 3), (1, 2))
    layers = Layers(norm="none")
    head = Head(anchors, classes, layers)
    # Each cell holds its number, which the centre tap of every kernel copies to every output.
    sources = tuple(
        jnp.arange(h * w, dtype=jnp.float32).reshape(1, h, w, 1) * 1000 + level * 100_000
        for level, (h, w) in enumerate(sizes)
    )
    params = head.init(jax.random.key(0), sources, train=False)["params"]
    for level in params.values():
        for convolution in level.values():
            kernel, bias = convolution["kernel"], convolution["bias"]
            convolution["kernel"] = jnp.zeros_like(kernel).at[1, 1].set(1)
            convolution["bias"] = jnp.arange(len(bias), dtype=jnp.float32)
    logits, offsets = head.apply({"params": params}, sources, train=False)
    for values, got in ((classes, logits), (4, offsets)):
        want = [
            [
                level * 100_000 + (row * sizes[level][1] + column) * 1000 + anchor * values + value
                for value in range(values)
            ]
            for level in range(2)
            for row in range(sizes[level][0])
            for column in range(sizes[level][1])
            for anchor in range(anchors[level])
        ]
        np.testing.assert_array_equal(got[0], want)


def test_max_pool_drops_the_last_odd_row_and_column():
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype(np.float32)
    got = max_pool_2x2(jnp.asarray(x))
    assert got.shape == (2, 2, 3, 3)
    for i in range(2):
        for j in range(3):
            window = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            np.testing.assert_array_equal(got[:, i, j], window.max((1, 2)))


def test_bfloat16_is_close_to_float32(make_config):
    images = np.random.default_rng(1).normal(size=(4, 64, 64, 3)).astype(np.float32)
    fields = {"depth": 18, "width": 0.125, "extra_strides": ()}
    models = {
        dtype: build_model(make_config(dtype=dtype, **fields), 3, (4, 6))
        for dtype in ("float32", "bfloat16")
    }
    variables = random_variables(models["bfloat16"], 64, np.random.default_rng(0))
    exact, rounded = (
        jax.jit(lambda v, x, m=model: m.apply(v, x, train=True, mutable=["batch_stats"]))(
            variables, images
        )
        for model in models.values()
    )
    for (path, a), b in zip(
        jax.tree.leaves_with_path(rounded), jax.tree.leaves(exact), strict=True
    ):
        assert a.dtype == jnp.float32, path
        # 20 convolutions rounded to 8 bits each: a few percent of the spread.
        error = np.sqrt(np.mean((a - b) ** 2)) / np.sqrt(np.mean(b**2))
        assert error < 0.05, (path, error)
    assert (rounded[0][0] != exact[0][0]).any()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("depth", 35),
        ("norm", "group"),
        ("head_norm", True),
        ("dtype", "float16"),
        ("width", 0),
        ("extra_channels", 0),
        ("extra_strides", (2, 3, 1, 1)),
        ("norm_span", -1),
        ("norm_decay", 1.0),
        ("norm_epsilon", 0.0),
    ],
)
def test_bad_field_is_named(make_config, field, value):
    with pytest.raises(UserError, match=rf"config\.model\.{field} is "):
        build_model(make_config(**{field: value}), 20, ANCHORS_300)


def test_levels_of_anchors_and_model_must_agree(make_config):
    with pytest.raises(UserError, match=r"6 levels but config\.model\.extra_strides \(2, 2\)"):
        build_model(make_config(extra_strides=(2, 2)), 20, ANCHORS_300)
    with pytest.raises(UserError, match="0 classes"):
        build_model(make_config(), 0, ANCHORS_300)


def test_image_too_small(make_config):
    with pytest.raises(UserError, match=r"1 x 1 pixels is too small"):
        feature_sizes(build_model(make_config(), 20, ANCHORS_300), 1)


def test_initial_kernels_of_caffe(make_config):
    """Caffe's xavier: uniform up to ±√(3 / fan-in); its gaussian in a head with BatchNorm."""
    shape = (3, 3, 64, 128)
    xavier = np.asarray(CAFFE_XAVIER(jax.random.key(0), shape))
    limit = np.sqrt(3 / (3 * 3 * 64))
    assert xavier.std() == pytest.approx(limit / np.sqrt(3), rel=0.01)
    assert 0.999 * limit < np.abs(xavier).max() <= limit
    gaussian = np.asarray(CAFFE_GAUSSIAN(jax.random.key(0), shape))
    assert gaussian.std() == pytest.approx(0.01, rel=0.01) and np.abs(gaussian).max() > 0.04
    for norm, head in (("batch", CAFFE_GAUSSIAN), ("none", CAFFE_XAVIER)):
        model = build_model(make_config(initializer="caffe", head_norm=norm), 20, ANCHORS_300)
        assert model.trunk.layers.kernel_init is CAFFE_XAVIER
        assert model.head.layers.kernel_init is head
