"""Anchors: SSD's prior boxes.

The sizes follow SSD's reference code to the pixel. Its scripts compute them as `min_dim * percent /
100.`, which is fractional at 512 pixels (35.84 at 7 %), and its PriorBox layer stores each as an
`int`: 35, not 35.84. At 300 pixels all sizes are whole numbers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scratchdet_jax.errors import UserError


class AnchorSpecification(NamedTuple):
    """What defines the anchors of a detector; every tuple has one entry per level.

    Attributes:
        image_size: side in pixels of the square input that the network is trained with.
        min_percent: size of the small square anchor, in percent of `image_size`.
        max_percent: the larger square anchor's size is the geometric mean of the min and max sizes.
        aspect_ratios: width over height, other than 1; each ratio r also gives 1/r.
        steps: distance between neighbouring cells in pixels, or a pair (down, across); () means
            image size over map size.
        rounded: corners in whole pixels, as in the authors' mmdetection release.
        sides_clipped: no side longer than the image, as in ssd.pytorch and torchvision.
    """

    image_size: int
    min_percent: tuple[float, ...]
    max_percent: tuple[float, ...]
    aspect_ratios: tuple[tuple[float, ...], ...]
    steps: tuple[float | tuple[float, float], ...] = ()
    rounded: bool = False
    sides_clipped: bool = False


_RATIOS_300 = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
_RATIOS_512 = ((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,))
_STEPS_300 = (8, 16, 32, 64, 100, 300)
_STEPS_512 = (8, 16, 32, 64, 128, 256, 512)

SPECIFICATIONS = {
    "voc300": AnchorSpecification(
        300, (10, 20, 37, 54, 71, 88), (20, 37, 54, 71, 88, 105), _RATIOS_300, _STEPS_300
    ),
    "coco300": AnchorSpecification(
        300, (7, 15, 33, 51, 69, 87), (15, 33, 51, 69, 87, 105), _RATIOS_300, _STEPS_300
    ),
    "voc512": AnchorSpecification(
        512, (7, 15, 30, 45, 60, 75, 90), (15, 30, 45, 60, 75, 90, 105), _RATIOS_512, _STEPS_512
    ),
    "coco512": AnchorSpecification(
        512, (4, 10, 26, 42, 58, 74, 90), (10, 26, 42, 58, 74, 90, 106), _RATIOS_512, _STEPS_512
    ),
}
"""SSD's specifications, by name, with SSD's steps. Replace the steps for a model whose last maps
have other sizes, e.g. `specification._replace(steps=(8, 16, 32, 64, 100, 150))`."""


def anchors_per_cell(aspect_ratios: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """Counts the anchors in a cell of each level: two squares, and two for each aspect ratio."""
    return tuple(2 + 2 * len(ratios) for ratios in aspect_ratios)


def sizes_in_pixels(specification: AnchorSpecification) -> tuple[tuple[int, int], ...]:
    """Returns (min, max) size of each level in whole pixels, truncated as in SSD's PriorBox."""
    size = specification.image_size
    percents = zip(specification.min_percent, specification.max_percent, strict=True)
    return tuple((int(size * low / 100), int(size * high / 100)) for low, high in percents)


def make_anchors(
    specification: AnchorSpecification,
    feature_sizes: Sequence[int | tuple[int, int]],
    input_size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Makes the anchors of all levels.

    The centre of cell i is at (i + 0.5) · step. Each cell has, in SSD's order: a square of the min
    size; a square of sqrt(min · max); for each ratio r, a box of the first square's area with
    width / height = r, and one with 1/r.

    Args:
        specification: the sizes, ratios and steps.
        feature_sizes: the size of each level's feature map in cells, a side or (height, width).
        input_size: height and width of the input in pixels, if other than that of the
            specification. The anchors keep their sides in pixels, as in SSD's PriorBox layer.

    Returns:
        [A, 4] float32 (ymin, xmin, ymax, xmax) over the input size, not clipped, in the order
        level, row, column, anchor in the cell.

    Raises:
        UserError: the specification and the model have different levels, or a size is invalid.
    """
    maps = [(m, m) if isinstance(m, int) else tuple(m) for m in feature_sizes]
    size = specification.image_size
    input_size = input_size or (size, size)
    _check(specification, len(maps), input_size)
    levels = []
    for level, (height, width) in enumerate(maps):
        if specification.steps:
            step_y, step_x = np.broadcast_to(specification.steps[level], 2)
        else:
            step_y, step_x = input_size[0] / height, input_size[1] / width
        sides = _cell_sides(
            *sizes_in_pixels(specification)[level], specification.aspect_ratios[level]
        )
        if specification.sides_clipped:
            sides = np.minimum(sides, size)
        centre_y, centre_x = np.meshgrid(
            (np.arange(height) + 0.5) * step_y, (np.arange(width) + 0.5) * step_x, indexing="ij"
        )
        centre = np.stack([centre_y, centre_x], axis=-1)[:, :, None]  # [h, w, 1, 2]
        corners = np.concatenate([centre - sides / 2, centre + sides / 2], axis=-1)
        if specification.rounded:  # the first and last pixel inside, halves to even
            past_last = np.array([0, 0, 1, 1])
            corners = np.round(corners - past_last) + past_last
        levels.append(corners.reshape(-1, 4) / np.tile(input_size, 2))
    return np.concatenate(levels).astype(np.float32)


def _cell_sides(low: int, high: int, ratios: Sequence[float]) -> np.ndarray:
    """Returns heights and widths in pixels of the anchors in one cell, [n, 2]."""
    sides = [(low, low), (np.sqrt(low * high), np.sqrt(low * high))]
    for ratio in ratios:
        root = np.sqrt(ratio)
        sides += [(low / root, low * root), (low * root, low / root)]
    return np.asarray(sides)


def _check(specification: AnchorSpecification, levels: int, input_size: tuple[int, int]) -> None:
    """Raises a UserError if the specification does not fit the model or SSD's rules."""
    for name in ("min_percent", "max_percent", "aspect_ratios", "steps"):
        count = len(getattr(specification, name))
        if count != levels and not (name == "steps" and count == 0):
            raise UserError(
                f"config.anchors.{name} has length {count}, not {levels}, the number of feature "
                "maps: give one entry for each map"
            )
    for level, (low, high) in enumerate(sizes_in_pixels(specification)):
        if not 0 < low < high:
            raise UserError(
                f"the anchor sizes of level {level} are {low} and {high} pixels at "
                f"config.image_size {specification.image_size}: config.anchors.min_percent must "
                "give at least one pixel, and max_percent more"
            )
    for level, step in enumerate(specification.steps):
        if np.min(step) <= 0:
            raise UserError(
                f"the anchor step of level {level} is {step}: config.anchors.steps must be above 0"
            )
        if np.any(step >= 2 * np.asarray(input_size)):  # the first centre is at half a step
            raise UserError(
                f"an input of {input_size[0]} x {input_size[1]} pixels is too small for the anchor "
                f"step {step} of level {level}, whose anchors would be centred outside it: set "
                "config.anchors.steps=() to derive the steps from the image size"
            )
