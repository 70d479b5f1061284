"""A network that compiles in seconds, for tests of everything around the network.

`python -m tests.plain train.py …` runs a program that knows it.
"""

import contextlib
import runpy
import sys

import flax.linen as nn
import pytest

from scratchdet_jax.models.backbone import Backbone
from scratchdet_jax.models.resnet import extra_blocks
from scratchdet_jax.models.ssd import BACKBONES

FIELDS = {
    "model.backbone": "plain",
    "model.extra_strides": (2,),
    "anchors.min_percent": (20, 50),
    "anchors.max_percent": (50, 80),
    "anchors.aspect_ratios": ((), ()),
    "augment.interpolations": ("linear",),
}


class Plain(nn.Module):
    """Three convolutions and an extra block; two source maps."""

    layers: object

    @nn.compact
    def __call__(self, images, train):
        x = images
        for i, stride in enumerate((4, 2, 2), 1):
            x = self.layers.convolve(x, 8, 3, stride=stride, name=f"conv{i}")
            x = nn.relu(self.layers.normalize(x, train, name=f"norm{i}"))
        settings = {"channels": 8, "strides": (2,), "last_convolutions": False}
        return (x, *extra_blocks(x, train, **settings, layers=self.layers))


PLAIN = Backbone(
    build=lambda config, layers: Plain(layers),
    name=lambda config: "Plain",
    sources=lambda config: 1,
    checks=lambda config: {},
)


@contextlib.contextmanager
def plain_backbone():
    """Makes `model.backbone="plain"` known; FIELDS are the fields of a config with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "plain", PLAIN)
        yield


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    with plain_backbone():
        runpy.run_path(sys.argv[0], run_name="__main__")
