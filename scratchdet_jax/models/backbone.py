"""What a backbone's file gives the detector; `ssd.BACKBONES` is the table of them."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from scratchdet_jax.errors import UserError, one_line
from scratchdet_jax.models.layers import Layers

Check = tuple[bool, str]
"""Whether a field's value can be built, and otherwise what to use ("at least 1 convolution")."""


class Backbone(NamedTuple):
    """A row of the table; every function takes `config.model`.

    Attributes:
        build: makes the Flax module, called as `module(images, train)`, that maps images
            [B, H, W, 3] to the source maps [B, h, w, c], finest first, including those of the extra
            blocks. Name the extra blocks extra1, extra2 …; `resnet.extra_blocks` makes
            ScratchDet's.
        name: display name, such as "ResNet-34", at width 1.
        sources: number of source maps without the extra blocks. Each entry of `extra_strides`
            adds one, and so does `last_convolutions`.
        checks: the checks of the fields that this backbone alone reads, by field name. The fields
            that all backbones share are checked in ssd.py.
        packs: whether the module takes packed maps (models/packing.py): it then uses only
            `layers.add`, `layers.relu` and models/pooling.py on maps. Otherwise all maps are
            arrays.
    """

    build: Callable[[Any, Layers], nn.Module]
    name: Callable[[Any], str]
    sources: Callable[[Any], int]
    checks: Callable[[Any], dict[str, Check]]
    packs: bool = False


def imported(path: str) -> Backbone:
    """Imports a backbone from outside the package by its path, "package.module:NAME".

    Raises:
        UserError: the module cannot be imported, or it has no such `Backbone`.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # a user's module may fail in any way
        raise UserError(
            f"config.model.backbone is {path!r}, but {module!r} cannot be imported "
            f"({one_line(error)}): run the command in the folder of the module, or install it"
        ) from None
    if not isinstance(found, Backbone):
        raise UserError(
            f"config.model.backbone is {path!r}, but {module} has no Backbone called {name!r}"
        )
    return found


def one_of(value: object, allowed: Sequence[object]) -> Check:
    """Returns the check of a field with a fixed set of values."""
    return value in allowed, " or ".join(repr(choice) for choice in allowed)


def scale_channels(channels: int, width: float) -> int:
    """Returns channels × width, rounded to the nearest multiple of 8 (halves up), at least 8."""
    return max(8, int(channels * width / 8 + 0.5) * 8)
