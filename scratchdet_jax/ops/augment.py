"""SSD's augmentation of one image, as a pure function of a key; vmap it over the batch.

The order is SSD's (weiliu89/caffe, branch ssd): colours, expand, batch sampler, resize with a
random kernel, flip. Expanding and cropping form one window, which may reach beyond the image, so
the image is resampled once. Each part is a pair of functions: one draws, one applies the draw.

Intended differences from SSD:

- Colours stay float32: they are clipped to 0…255 after each change, as in SSD, but not rounded.
- Boxes are cut by the same window of whole pixels as the image. SSD cuts them by the unrounded
  crop, which differs from the visible part by up to a pixel.
- The unconstrained sampler also works on images without boxes, where SSD's finds nothing.
- SSD writes the expanded image as JPEG and reads it back; nothing is compressed here.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scratchdet_jax.errors import UserError
from scratchdet_jax.ops import boxes as box_ops
from scratchdet_jax.ops import resample


@dataclasses.dataclass(frozen=True)
class AugmentOptions:
    """What to draw from. Hashable, so that it can be a static argument.

    The fields are the same as in `config.augment`, where their meaning and defaults are
    (config/defaults.py), and the colour of the expanded canvas.

    Attributes:
        mean: RGB colour of the expanded canvas, in 0…255.
    """

    photometric_probability: float
    brightness: float
    contrast: tuple[float, float]
    saturation: tuple[float, float]
    hue: float
    expand_probability: float
    expand_max_ratio: float
    crop: bool
    crop_min_ious: tuple[float, ...]
    crop_trials: int
    crop_scale: tuple[float, float]
    crop_aspect: tuple[float, float]
    interpolations: tuple[str, ...]
    flip_probability: float
    mean: tuple[float, float, float]

    def __post_init__(self) -> None:
        def require(holds: bool, field: str, rule: str) -> None:
            if not holds:
                value = getattr(self, field)
                raise UserError(f"config.augment.{field} is {value!r}: it must be {rule}")

        for name in ("photometric_probability", "expand_probability", "flip_probability"):
            require(0.0 <= getattr(self, name) <= 1.0, name, "a probability, from 0 to 1")
        require(0.0 <= self.brightness <= 255.0, "brightness", "from 0 to 255")
        require(0.0 <= self.hue <= 180.0, "hue", "from 0 to 180")
        for name in ("contrast", "saturation", "crop_aspect", "crop_scale"):
            pair = getattr(self, name)
            ordered = len(pair) == 2 and 0.0 < pair[0] <= pair[1] < math.inf
            require(ordered, name, "two numbers above 0, the smaller first")
        require(self.crop_scale[1] <= 1.0, "crop_scale", "at most 1")
        require(self.expand_max_ratio >= 1.0, "expand_max_ratio", "at least 1")
        minima = all(0.0 < minimum <= 1.0 for minimum in self.crop_min_ious)
        require(minima, "crop_min_ious", "numbers above 0, at most 1")
        require(self.crop_trials >= 1, "crop_trials", "at least 1")
        require(len(self.mean) == 3, "mean", "three numbers, one for each of R, G, B")
        known = bool(self.interpolations) and set(self.interpolations) <= set(resample.KERNELS)
        require(known, "interpolations", f"one or more of {', '.join(resample.KERNELS)}")


class Colours(NamedTuple):
    """Amounts of the colour changes, float32 scalars; one of the two contrasts is 1."""

    brightness: jax.Array
    contrast_first: jax.Array
    saturation: jax.Array
    hue: jax.Array
    contrast_last: jax.Array


def draw_colours(key: jax.Array, options: AugmentOptions) -> Colours:
    """Draws the colour changes of one image; a change that is not applied is neutral."""
    key_use, key_amount, key_order = jax.random.split(key, 3)
    use = jax.random.uniform(key_use, (4,)) < options.photometric_probability
    amount = jax.random.uniform(key_amount, (4,))

    def drawn(i: int, low: float, high: float, neutral: float) -> jax.Array:
        return jnp.where(use[i], low + (high - low) * amount[i], neutral)

    contrast = drawn(1, *options.contrast, 1.0)
    first = jax.random.bernoulli(key_order)
    return Colours(
        brightness=drawn(0, -options.brightness, options.brightness, 0.0),
        contrast_first=jnp.where(first, contrast, 1.0),
        saturation=drawn(2, *options.saturation, 1.0),
        hue=drawn(3, -options.hue, options.hue, 0.0),
        contrast_last=jnp.where(first, 1.0, contrast),
    )


def _change_saturation_and_hue(
    image: jax.Array, saturation: jax.Array, hue: jax.Array
) -> jax.Array:
    """Changes saturation and hue in one round trip RGB → HSV → RGB, without branches on pixels."""
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)  # saturation × value
    divisor = jnp.where(chroma > 0.0, chroma, 1.0)
    sextant = jnp.where(  # hue / 60°
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor),
    )
    sextant = jnp.where(sextant < 0.0, sextant + 6.0, sextant)
    # As in SSD, which adds to an 8-bit hue: above 180 it wraps around, below 0 it is clipped to 0.
    sextant = jnp.maximum(sextant + hue / 30.0, 0.0)
    sextant = jnp.where(sextant >= 6.0, sextant - 6.0, sextant)
    chroma = jnp.minimum(chroma * saturation, value)
    channels = []
    for offset in (5.0, 3.0, 1.0):
        position = offset + sextant
        position = jnp.where(position >= 6.0, position - 6.0, position)
        channels.append(value - chroma * jnp.clip(jnp.minimum(position, 4.0 - position), 0.0, 1.0))
    return jnp.stack(channels, axis=-1)


def apply_colours(image: jax.Array, colours: Colours) -> jax.Array:
    """Changes the colours of an image float32 [H, W, 3], RGB in 0…255; clips after each change."""
    image = jnp.clip(image + colours.brightness, 0.0, 255.0)
    image = jnp.clip(image * colours.contrast_first, 0.0, 255.0)
    changed = _change_saturation_and_hue(image, colours.saturation, colours.hue)
    # Neutral amounts must not change any bit of a pixel.
    image = jnp.where((colours.saturation != 1.0) | (colours.hue != 0.0), changed, image)
    return jnp.clip(image * colours.contrast_last, 0.0, 255.0)


def _draw_samples(key: jax.Array, count: int, options: AugmentOptions) -> jax.Array:
    """Draws random rectangles in the unit square, [count, 4] (SSD's SampleBBox)."""
    uniform = jax.random.uniform(key, (4, count))
    low, high = options.crop_scale
    scale = low + (high - low) * uniform[0]
    low, high = options.crop_aspect
    # Clipped so that both sides fit into the image.
    aspect = jnp.clip(low + (high - low) * uniform[1], scale**2, scale**-2)
    height = jnp.minimum(scale / jnp.sqrt(aspect), 1.0)
    width = jnp.minimum(scale * jnp.sqrt(aspect), 1.0)
    top, left = uniform[2] * (1.0 - height), uniform[3] * (1.0 - width)
    return jnp.stack([top, left, top + height, left + width], axis=-1)


def draw_crop(
    key: jax.Array, boxes: jax.Array, valid: jax.Array, options: AugmentOptions
) -> jax.Array:
    """Draws a crop by SSD's batch sampler, with all trials of all samplers evaluated at once.

    Each constrained sampler proposes its first trial whose IoU with some box reaches the sampler's
    minimum, if there is one. The full image and the free sample are always proposed. One of the
    proposals is chosen uniformly.

    Args:
        key: typed key.
        boxes: float32 [M, 4], normalised to the (expanded) image.
        valid: bool [M], False for padding.
        options: the `crop_…` fields are read.

    Returns:
        float32 [4], the crop, normalised to the (expanded) image.
    """
    key_samples, key_choice = jax.random.split(key)
    minima = jnp.asarray(options.crop_min_ious, jnp.float32)
    samplers, trials = len(options.crop_min_ious), options.crop_trials
    samples = _draw_samples(key_samples, 1 + samplers * trials, options)
    free, tried = samples[:1], samples[1:]
    iou = box_ops.iou(tried, boxes).reshape(samplers, trials, len(boxes))
    success = jnp.any((iou >= minima[:, None, None]) & valid, axis=-1)
    first = jnp.argmax(success, axis=1)
    constrained = tried.reshape(samplers, trials, 4)[jnp.arange(samplers), first]
    whole = jnp.asarray([[0.0, 0.0, 1.0, 1.0]])
    found = jnp.concatenate([jnp.asarray([True, True]), jnp.any(success, axis=1)])
    choice = jax.random.categorical(key_choice, jnp.where(found, 0.0, -jnp.inf))
    return jnp.concatenate([whole, free, constrained])[choice]


def draw_window(
    key: jax.Array, size: jax.Array, boxes: jax.Array, labels: jax.Array, options: AugmentOptions
) -> resample.Window:
    """Draws the expansion and the crop of one image, as one window.

    Args:
        key: typed key.
        size: int32 [2], height and width of the image.
        boxes: float32 [M, 4], normalised to the image.
        labels: int32 [M], 0 = padding.
        options: what to draw from.

    Returns:
        The window in whole pixels of the image, at least 1 × 1. Every conversion to int truncates,
        as in SSD (ExpandImage and CropImage of its data transformer).
    """
    key_expand, key_ratio, key_place, key_crop = jax.random.split(key, 4)
    size = jnp.maximum(size, 1)
    expand = jax.random.bernoulli(key_expand, options.expand_probability)
    ratio = jax.random.uniform(key_ratio, minval=1.0, maxval=options.expand_max_ratio)
    canvas = (size * jnp.where(expand, ratio, 1.0)).astype(jnp.int32)
    place = (jax.random.uniform(key_place, (2,)) * (canvas - size)).astype(jnp.int32)
    crop = jnp.asarray([0.0, 0.0, 1.0, 1.0])
    if options.crop:
        expanded = (boxes * jnp.tile(size, 2) + jnp.tile(place, 2)) / jnp.tile(canvas, 2)
        crop = draw_crop(key_crop, expanded, labels > 0, options)
    corner = (crop[:2] * canvas).astype(jnp.int32)
    extent = jnp.maximum(((crop[2:] - crop[:2]) * canvas).astype(jnp.int32), 1)
    top, left = corner - place
    return resample.Window(top, left, *extent)


def place_boxes(
    boxes: jax.Array,
    labels: jax.Array,
    ignore: jax.Array,
    size: jax.Array,
    window: resample.Window,
    flip: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Moves the boxes of one image into a window of it, which may be flipped left–right.

    A box is kept if its centre is in the window (SSD's emit constraint CENTER) and it has an area
    after clipping. Padding, degenerate and non-finite boxes are not kept.

    Args:
        boxes: float32 [M, 4], normalised to the image.
        labels: int32 [M], 0 = padding.
        ignore: bool [M].
        size: int32 [2], height and width of the image.
        window: in pixels of the image.
        flip: bool scalar.

    Returns:
        Boxes normalised to the window, labels and ignore, in the same slots; a dropped box has
        label 0, coordinates 0 and ignore False.
    """
    origin = jnp.stack([window.top, window.left] * 2)
    extent = jnp.stack([window.height, window.width] * 2)
    moved = boxes * jnp.tile(size, 2) - origin  # in pixels
    centre = (moved[:, :2] + moved[:, 2:]) / 2.0
    clipped = jnp.clip(moved / extent, 0.0, 1.0)
    kept = (labels > 0) & jnp.all((centre >= 0.0) & (centre <= extent[:2]), axis=-1)
    kept &= jnp.all(clipped[:, :2] < clipped[:, 2:], axis=-1)
    ymin, xmin, ymax, xmax = clipped.T
    mirrored = jnp.stack([ymin, 1.0 - xmax, ymax, 1.0 - xmin], axis=-1)
    placed = jnp.where(flip, mirrored, clipped)
    return jnp.where(kept[:, None], placed, 0.0), jnp.where(kept, labels, 0), ignore & kept


def augment(
    key: jax.Array,
    image: jax.Array,
    size: jax.Array,
    boxes: jax.Array,
    labels: jax.Array,
    ignore: jax.Array,
    options: AugmentOptions,
    image_size: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Augments one image as SSD does; every draw comes from `key`.

    Args:
        key: typed key (`jax.random.key`), one per image.
        image: uint8 [H, W, 3], RGB, padded.
        size: int32 [2], height and width of the valid part.
        boxes: float32 [M, 4], normalised to the valid part.
        labels: int32 [M], 1…C; 0 = padding.
        ignore: bool [M], difficult or crowd; they are treated like other boxes here.
        options: what to draw from; static.
        image_size: side S of the result; static.

    Returns:
        Image float32 [S, S, 3] in 0…255, boxes [M, 4] normalised to it, labels [M] (0 for a dropped
        box), ignore [M].
    """
    key_colours, key_window, key_kernel, key_flip = jax.random.split(key, 4)
    colours = draw_colours(key_colours, options)
    window = draw_window(key_window, size, boxes, labels, options)
    kernels = jnp.asarray([resample.KERNELS.index(name) for name in options.interpolations])
    kernel = jax.random.choice(key_kernel, kernels)
    flip = jax.random.bernoulli(key_flip, options.flip_probability)

    coloured = apply_colours(image.astype(jnp.float32), colours)
    mean = jnp.asarray(options.mean, jnp.float32)
    cut = resample.resample(coloured, size, window, kernel, image_size, mean)
    output = jnp.where(flip, cut[:, ::-1], cut)
    return output, *place_boxes(boxes, labels, ignore, size, window, flip)
