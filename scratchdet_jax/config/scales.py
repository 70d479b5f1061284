"""The scales of multi-scale testing that `config.eval.multiscale` names."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import ml_collections

from scratchdet_jax.errors import UserError

MERGE_METHODS = ("nms", "vote", "soft_vote")

_ENTRY = re.compile(
    r"(?P<height>[1-9]\d*)(x(?P<width>[1-9]\d*))?(?P<flip>f?)"
    r"(:(?P<keep>small|large|wide|tall|(below|above)(?P<limit>[1-9]\d*)))?"
)


class Scale(NamedTuple):
    """One pass of the network.

    Attributes:
        height: of the input, in pixels.
        width: likewise.
        flip: whether the input is mirrored left–right; the boxes are mirrored back.
        keep: which detections are kept. "small" or "large": such objects only. "below" or "above":
            those whose shorter side is below `limit`, or whose longer side is above it. "wide" or
            "tall": only those of images that are wider than high, or of the others. "": all.
        limit: for "below" and "above", in pixels of the original image.
    """

    height: int
    width: int
    flip: bool = False
    keep: str = ""
    limit: int = 0


class Preset(NamedTuple):
    """A published protocol.

    Attributes:
        image_size: side of the input that its networks are trained with.
        entries: its scales, in the form that `parse_scales` reads.
        merge: one of MERGE_METHODS.
    """

    image_size: int
    entries: str
    merge: str


# RefineDet's test at 320 pixels, at 300: 1.0, 1.0 × 0.6 with the long side along that of the image,
# 0.6, 1.2, 1.4, 1.6, 1.8 and 2.2 times the size, each also flipped. The limits are in pixels of the
# original image and do not change.
_REFINEDET300 = (
    "300+300f+180x300:wide+180x300f:wide+300x180:tall+300x180f:tall+180:above32+180f:above32+"
    "360:below160+360f:below160+420:below128+420f:below128+480:below96+480f:below96+"
    "540:below64+540f:below64+660:below32+660f:below32"
)
PRESETS = {
    "refinedet300": Preset(300, _REFINEDET300, "vote"),
    "refinedet300_coco": Preset(300, f"{_REFINEDET300}+600:below48+600f:below48", "soft_vote"),
}


def preset_of(entries: Sequence[int | str]) -> Preset | None:
    """Returns the preset that `config.eval.multiscale` names; None if it writes the scales out."""
    return PRESETS.get(str(entries[0]).strip()) if len(entries) == 1 else None


def merge_method(settings: ml_collections.ConfigDict) -> str:
    """Returns the one of MERGE_METHODS for the scales of `config.eval`; a preset has its own."""
    preset = preset_of(settings.multiscale)
    return preset.merge if preset else settings.multiscale_merge


def parse_scales(entries: Sequence[int | str]) -> tuple[Scale, ...]:
    """Parses `config.eval.multiscale`, whose form config/defaults.py explains.

    Raises:
        UserError: an entry is malformed or occurs twice.
    """
    preset = preset_of(entries)
    scales = []
    for entry in (preset.entries,) if preset else entries:
        for text in str(entry).split("+"):
            match = _ENTRY.fullmatch(text.strip())
            if not match:
                raise UserError(
                    f"config.eval.multiscale has the entry {text!r}: write SIZE or HEIGHTxWIDTH in "
                    "pixels, then optionally f to flip, then optionally :small, :large, :belowN, "
                    ":aboveN, :wide or :tall, such as 300, 300f or 512f:below64, and join several "
                    f"by +; or name one preset alone: {', '.join(PRESETS)}"
                )
            scale = Scale(
                int(match["height"]),
                int(match["width"] or match["height"]),
                bool(match["flip"]),
                (match["keep"] or "").removesuffix(match["limit"] or ""),
                int(match["limit"] or 0),
            )
            if scale in scales:
                raise UserError(f"config.eval.multiscale has the entry {text!r} twice: remove one")
            scales.append(scale)
    return tuple(scales)
