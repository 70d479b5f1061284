"""The scales of multi-scale testing that `config.eval.multiscale` names."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from scratchdet_jax.errors import UserError

MERGE_METHODS = ("nms", "vote")

_ENTRY = re.compile(r"(?P<size>[1-9]\d*)(?P<flip>f?)(:(?P<keep>small|large))?")


class Scale(NamedTuple):
    """One pass of the network.

    Attributes:
        size: side of the square input, in pixels.
        flip: whether the input is mirrored left–right; the boxes are mirrored back.
        keep: "small" or "large" to keep such objects only, or "" for all.
    """

    size: int
    flip: bool = False
    keep: str = ""


def parse_scales(entries: Sequence[int | str]) -> tuple[Scale, ...]:
    """Parses `config.eval.multiscale`.

    An entry is SIZE, then optionally f for a flip, then optionally :small or :large, such as 300,
    "300f" or "512f:small". A string may hold several entries joined by +, which needs no quotes on
    a command line.

    Raises:
        UserError: an entry is malformed or occurs twice.
    """
    scales = []
    for entry in entries:
        for text in str(entry).split("+"):
            match = _ENTRY.fullmatch(text.strip())
            if not match:
                raise UserError(
                    f"config.eval.multiscale has the entry {text!r}: write a size in pixels, then "
                    "optionally f to flip, then optionally :small or :large, such as 300, 300f or "
                    "512f:small; join several by +"
                )
            scale = Scale(int(match["size"]), bool(match["flip"]), match["keep"] or "")
            if scale in scales:
                raise UserError(f"config.eval.multiscale has the entry {text!r} twice: remove one")
            scales.append(scale)
    return tuple(scales)
