"""Parameter counts and shapes of all backbones: published totals and computation by hand."""

import itertools

import pytest

from scratchdet_jax.errors import UserError
from scratchdet_jax.models.ssd import SSD, backbone_name, build_model, feature_shapes, feature_sizes
from tests.models.shapes import abstract_variables, count

# Totals that torchvision publishes with its weights, minus the classifier.
RESNETS = {
    18: 11_689_512 - (512 * 1000 + 1000),
    34: 21_797_672 - (512 * 1000 + 1000),
    50: 25_557_032 - (2048 * 1000 + 1000),
    101: 44_549_160 - (2048 * 1000 + 1000),
}
CLASSIFIER = (7 * 7 * 512 * 4096 + 4096) + (4096 * 4096 + 4096) + (4096 * 1000 + 1000)
VGG = {"none": 138_357_544 - CLASSIFIER, "batch": 138_365_992 - CLASSIFIER}
SSD300 = {"backbone": "vgg16", "extra_strides": (2, 2, 1, 1)}
FC6_FC7 = (9 * 512 * 1024) + (1024 * 1024)
ANCHORS = (4, 6, 6, 6, 4, 4)


def parameters(model: SSD, size: int = 300) -> dict[str, int]:
    """Number of parameters by top-level name."""
    params = abstract_variables(model, size)["params"]
    return {name: count(tree) for name, tree in params.items()}


def backbone(counts: dict[str, int]) -> int:
    return sum(n for name, n in counts.items() if not name.startswith(("extra", "head")))


def test_published_totals():
    assert RESNETS == {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160}
    assert VGG["none"] == 14_714_688


@pytest.mark.parametrize("depth", RESNETS)
def test_resnet_equals_torchvisions(make_config, depth):
    config = make_config(depth=depth, stem="conv7", stem_stride=2, extra_strides=(2, 2, 2))
    model = build_model(config, 20, ANCHORS)
    assert backbone(parameters(model)) == RESNETS[depth]
    # At 224, ResNet's stages give maps of 56, 28, 14 and 7 (He et al. 2016a, table 1).
    channels = (128, 256, 512) if depth < 50 else (512, 1024, 2048)
    want = [(n, n, c) for n, c in zip((28, 14, 7), channels, strict=True)]
    assert list(feature_shapes(model, 224))[:3] == want
    assert feature_sizes(model, 300) == tuple((n, n) for n in (38, 19, 10, 5, 3, 2))


@pytest.mark.parametrize("depth", RESNETS)
def test_the_root_block_replaces_the_first_convolution(make_config, depth):
    counts = parameters(build_model(make_config(depth=depth), 20, ANCHORS))
    root = (9 * 3 * 64) + 2 * (9 * 64 * 64) + 3 * 2 * 64
    assert counts["root"] == root
    assert backbone(counts) == RESNETS[depth] - (49 * 3 * 64 + 2 * 64) + root


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_vgg_equals_torchvisions_with_ssds_fc6_and_fc7(make_config, norm):
    counts = parameters(build_model(make_config(norm=norm, **SSD300), 20, ANCHORS))
    features = sum(n for name, n in counts.items() if name.startswith("conv") and "l2" not in name)
    # With norms, torchvision keeps the biases. A norm cancels them, so here there are none.
    biases = sum(n * c for n, c in ((2, 64), (2, 128), (3, 256), (6, 512)))
    assert features == VGG[norm] - (biases if norm == "batch" else 0)
    fc = sum(n for name, n in counts.items() if name.startswith("fc"))
    assert fc == FC6_FC7 + (2 * 1024 if norm == "none" else 2 * 2 * 1024)
    assert counts.get("conv4_3_l2", 0) == (512 if norm == "none" else 0)


def test_ssd300_has_the_published_number_of_parameters(make_config):
    # torchvision's ssd300_vgg16, 91 classes with the background: 35,641,826.
    config = make_config(norm="none", head_norm="none", **SSD300)
    assert sum(parameters(build_model(config, 90, ANCHORS)).values()) == 35_641_826


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_vgg_shapes(make_config, norm):
    model = build_model(make_config(norm=norm, **SSD300), 20, ANCHORS)
    sizes, channels = (38, 19, 10, 5, 3, 1), (512, 1024, 512, 256, 256, 256)
    want = [(n, n, c) for n, c in zip(sizes, channels, strict=True)]
    assert list(feature_shapes(model, 300)) == want
    assert sum(n * n * a for n, a in zip(sizes, ANCHORS, strict=True)) == 8732


@pytest.mark.parametrize("name", ["resnet", "vgg16"])
def test_seven_maps_at_512(make_config, name):
    seven = (4, 6, 6, 6, 6, 4, 4)
    config = make_config(backbone=name, last_convolutions=True)
    model = build_model(config, 80, seven)
    want = tuple((n, n) for n in (64, 32, 16, 8, 4, 2, 1))
    assert feature_sizes(model, 512) == want
    spatial = {"resnet": (9 + 16) * 128 * 128 + 4 * 128, "vgg16": 128 * (256 + 16 * 256) + 768}
    assert parameters(model, 512)["extra5"] == spatial[name]
    blocks = build_model(make_config(backbone=name, extra_strides=(2,) * 5), 80, seven)
    assert feature_sizes(blocks, 512) == want


def test_every_combination_builds(make_config):
    for depth, stem, stride, preactivation in itertools.product(
        (18, 50), ("root", "conv7"), (1, 2), (False, True)
    ):
        config = make_config(
            depth=depth,
            stem=stem,
            stem_stride=stride,
            preactivation=preactivation,
            width=0.25,
            extra_strides=(2,) * (5 - stride),
        )
        model = build_model(config, 3, ANCHORS)
        assert feature_sizes(model, 300) == tuple((n, n) for n in (38, 19, 10, 5, 3, 2))


def test_stem_convolutions(make_config):
    for number in (1, 2, 4):
        model = build_model(make_config(depth=18, stem_convs=number), 3, ANCHORS)
        want = 9 * 3 * 64 + (number - 1) * 9 * 64 * 64 + number * 128
        assert parameters(model)["root"] == want


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "Root-ResNet-34"),
        ({"stem": "conv7", "stem_stride": 2, "depth": 101}, "ResNet-101"),
        ({"stem": "conv7"}, "ResNet-34 (stem of stride 1)"),
        ({"stem_stride": 2}, "Root-ResNet-34 (stem of stride 2)"),
        ({"backbone": "vgg16", "width": 0.5}, "VGG-16 x 0.5"),
    ],
)
def test_backbone_name(make_config, fields, name):
    assert backbone_name(make_config(**fields)) == name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "vgg"}, r"config\.model\.backbone is 'vgg': use 'resnet' or 'vgg16'"),
        ({"stem": "conv3"}, r"config\.model\.stem is 'conv3'"),
        ({"stem_stride": 3}, r"config\.model\.stem_stride is 3"),
        ({"stem_convs": 0}, r"config\.model\.stem_convs is 0"),
        ({"backbone": "vgg16", "preactivation": True}, r"preactivation is True.*VGG-16"),
        ({"stem_stride": 2}, r"6 levels but .* gives 7 source maps: use 3 extra strides"),
        ({"last_convolutions": True}, r"gives 7 source maps: use 3 extra strides"),
    ],
)
def test_bad_backbone_is_named(make_config, fields, message):
    with pytest.raises(UserError, match=message):
        build_model(make_config(**fields), 20, ANCHORS)


def test_an_image_with_an_empty_last_map_is_refused(make_config):
    with pytest.raises(UserError, match=r"200 x 200 pixels is too small"):
        feature_sizes(build_model(make_config(**SSD300), 20, ANCHORS), 200)
