"""The authors' Caffe networks against PyTorch, layer by layer, written from their description.

Root-ResNet-34: three 3×3 convolutions, 2×2 pooling, pre-activation units whose first one has no
norm before its first convolution; source maps are the outputs of the last convolution of stages 3
and 4 and of four pre-activation extra blocks, before the addition. Root-ResNet-18: a norm before
the first unit too, and SSD's pairs as extra layers. VGG-16: norm and ReLU also after each pooling.
All are narrow here; depths, strides and order of layers are the published ones.
"""

import jax
import numpy as np
import pytest

from scratchdet_jax.config.recipes import load_recipe
from scratchdet_jax.models.ssd import build_model, feature_shapes
from scratchdet_jax.ops.anchors import anchors_per_cell

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from tests.caffe_release import VGG, Detector, RootResNet  # noqa: E402
from tests.models.torch_comparison import (  # noqa: E402
    NETWORK_TOLERANCE,
    assert_near,
    randomised,
    to_nchw,
    torch_tensors,
)

CLASSES = 4
NETWORKS = {  # recipe → (trunk, channels of the sources in full width, BatchNorm in the head)
    "configs/caffe_release/voc300.py": (
        lambda width: RootResNet(34, width),
        (256, 512, 128, 128, 128, 128),
        False,
    ),
    "configs/caffe_release/coco300.py": (
        lambda width: RootResNet(34, width),
        (256, 512, 128, 128, 128, 128),
        True,
    ),
    "configs/first_layers.py:root_stride1": (
        lambda width: RootResNet(18, width),
        (256, 512, 512, 256, 256, 256),
        True,
    ),
    "configs/bn_ablation.py:both_0.05": (VGG, (512, 1024, 512, 256, 256, 256), True),
}


def recorded(torch_module, x):
    """The output of every convolution and norm, by name, then the results."""
    found = {}

    def record(name):
        def hook(module, inputs, output):
            found[name] = output.detach()

        return hook

    hooks = [
        module.register_forward_hook(record(name.removeprefix("trunk.")))
        for name, module in torch_module.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    result = torch_module(x)
    for hook in hooks:
        hook.remove()
    return found, result


@pytest.mark.parametrize("recipe", NETWORKS)
def test_every_convolution_agrees(recipe):
    make_trunk, channels, norm = NETWORKS[recipe]
    config = load_recipe(recipe)
    assert config.model.norm_decay == 0.999
    config.model.width = 0.125
    anchors = anchors_per_cell(config.anchors.aspect_ratios)
    model = build_model(config.model, CLASSES - 1, anchors)
    full = build_model(load_recipe(recipe).model, 20, anchors)
    assert [shape[2] for shape in feature_shapes(full, 300)] == list(channels)

    size = 300 if "vgg" in config.model.backbone else 160
    if config.model.extras == "plain":
        size = 300  # the last two maps need it
    x = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    variables = randomised(shapes, 0)
    narrow = [channel // 8 for channel in channels]
    torch_module = Detector(make_trunk(8), narrow, anchors, CLASSES, norm)
    for _, leaf, tensor in torch_tensors(torch_module, variables):
        tensor.copy_(torch.from_numpy(np.array(leaf)))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert parameters == sum(p.numel() for p in torch_module.parameters())

    for train in (False, True):
        torch_module.train(train)
        with torch.no_grad():
            convolutions, want = recorded(torch_module, to_nchw(x))
        got, state = jax.jit(
            lambda v, x, train=train: model.apply(
                v,
                x,
                train=train,
                mutable=["intermediates", "batch_stats"],
                capture_intermediates=lambda module, _: type(module).__name__ == "Convolution",
            )
        )(variables, x)
        ours = {
            ".".join(entry.key for entry in path[:-2]): leaf
            for path, leaf in jax.tree.leaves_with_path(state["intermediates"])
        }
        assert ours.keys() == convolutions.keys()
        for name, value in convolutions.items():
            assert_near(ours[name], value.permute(0, 2, 3, 1), NETWORK_TOLERANCE, name)
        for a, b in zip(got, want, strict=True):
            assert_near(a, b, NETWORK_TOLERANCE, "head")


@pytest.mark.parametrize(
    "row", ["conv7_stride2", "conv7_stride2_no_pool", "root_stride2", "conv7_stride1"]
)
def test_the_head_sees_the_same_maps_with_all_first_layers(row):
    def shapes(row):
        config = load_recipe(f"configs/first_layers.py:{row}")
        anchors = anchors_per_cell(config.anchors.aspect_ratios)
        return feature_shapes(build_model(config.model, 20, anchors), 300)

    assert shapes(row) == shapes("root_stride1")
    assert [h for h, _, _ in shapes(row)] == [38, 19, 10, 5, 3, 1]
