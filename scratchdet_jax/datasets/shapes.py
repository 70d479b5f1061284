"""Shapes: procedural scenes of six kinds of object, generated locally and identical everywhere.

A scene is 128×128 px: a muted, textured background, clutter (including half discs, open arcs and
elongated bars, which resemble the objects), and 3–10 objects of 14–76 px, half of them below 24 px,
that may overlap or extend beyond the image. Most objects have a hue near that of their class, as
things in photos do, but some objects, and the clutter, have any hue: colour is a hint, shape
decides. (With uninformative colours a detector needs ten times the images to leave its first
plateau, because contrast of either sign has no linear relation to the classes.)
"""

import colorsys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds

from scratchdet_jax.datasets.writing import exists, write_dataset, write_to_bucket
from scratchdet_jax.paths import in_bucket, user_path
from scratchdet_jax.progress import track

CLASS_NAMES = ("circle", "square", "triangle", "star", "ring", "cross")
SPLIT_SIZES = {"train": 4000, "validation": 500}
SIZE = 128  # pixels, both sides
SEED = 2019

_SUPERSAMPLING = 4  # outlines are drawn this much larger and reduced by area
_MIN_VISIBLE = 0.3  # share of an object that stays visible
_DIFFICULT_BELOW = 0.5  # visible share below which an object is marked difficult
_TYPICAL_COLOUR = 0.9  # share of objects near the hue of their class; the rest have any
_HUE_SPREAD = 18.0  # degrees, standard deviation; neighbouring classes are 60 apart
_MIN_CONTRAST = 80.0  # RGB distance between an object and what it is placed on


class Scene(NamedTuple):
    """One labelled image.

    Attributes:
        image: uint8 [128, 128, 3], RGB.
        boxes: float64 [n, 4], (ymin, xmin, ymax, xmax) in [0, 1], around the full extent of an
            object, including hidden parts, clipped to the image.
        labels: int [n], index into CLASS_NAMES.
        difficult: bool [n], less than half of the object is visible.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Procedural scenes of six shapes; features named as in TFDS's voc."""

    VERSION = tfds.core.Version("1.0.0")  # increase it whenever the images change
    url_infos = None  # nothing is downloaded; see FolderBuilder

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Procedural scenes: six shapes on textured, cluttered backgrounds.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="jpeg"),
                    "image/filename": tfds.features.Text(),
                    "objects": tfds.features.Sequence(
                        {
                            "label": tfds.features.ClassLabel(names=CLASS_NAMES),
                            "bbox": tfds.features.BBoxFeature(),
                            "is_difficult": np.bool_,
                        }
                    ),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {split: self._generate_examples(split) for split in SPLIT_SIZES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        indices = range(SPLIT_SIZES[split])
        for index in track(indices, len(indices), f"drawing {split}", "scene"):
            yield index, encode_scene(split, index)


def prepare_shapes(data_dir: str | Path) -> None:
    """Creates the data set in `data_dir`/shapes unless it exists (takes some seconds)."""
    data_dir = user_path(data_dir)
    directory = data_dir / "shapes" / str(Shapes.VERSION)
    if exists(directory):
        return
    print(f"creating the shapes data set in {directory}", flush=True)
    if in_bucket(directory):
        write_to_bucket(lambda root: Shapes(data_dir=str(root)), directory, data_dir)
    else:
        write_dataset(lambda: Shapes(data_dir=str(data_dir)))


def encode_scene(split: str, index: int) -> dict[str, Any]:
    """Encodes scene `index` of `split` as a TFDS example."""
    scene = make_scene(split, index)
    encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95]
    )[1]
    return {
        "image": encoded.tobytes(),
        "image/filename": f"{split}_{index:05d}.jpg",
        "objects": [
            {
                "label": int(label),
                "bbox": tfds.features.BBox(*map(float, box)),
                "is_difficult": bool(difficult),
            }
            for box, label, difficult in zip(
                scene.boxes, scene.labels, scene.difficult, strict=True
            )
        ],
    }


def make_scene(split: str, index: int) -> Scene:
    """Draws scene `index` of `split`: a pure function of both and of SEED."""
    rng = np.random.default_rng([SEED, list(SPLIT_SIZES).index(split), index])
    image = _background(rng)
    _draw_clutter(rng, image, int(rng.integers(1, 5)))
    objects = _place_objects(rng, image, int(rng.integers(3, 11)))
    for _ in range(rng.integers(0, 3)):  # thin lines in front
        _draw_line(rng, image, thickness=1)
    return Scene(_finish(rng, image), *objects)


def _place_objects(
    rng: np.random.Generator, image: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paints up to `count` objects, later ones in front; returns boxes, labels, difficult."""
    owner = np.full((SIZE, SIZE), -1)  # index of the object visible at each pixel
    boxes: list[np.ndarray] = []
    labels: list[int] = []
    areas, visible = np.zeros(0), np.zeros(0)  # pixels and visible pixels of each object
    for _ in range(3 * count):
        if len(boxes) == count:
            break
        label = int(rng.integers(len(CLASS_NAMES)))
        contours = _place(rng, _outline(rng, CLASS_NAMES[label]), _object_size(rng))
        patch = _Patch.around(contours)
        covered = patch.mask > 0.5
        seen = covered[patch.visible]
        hidden = np.bincount(owner[patch.inside][seen] + 1, minlength=len(boxes) + 1)[1:]
        if np.any(visible - hidden < _MIN_VISIBLE * areas):
            continue
        _paint_object(rng, image, patch, contours, label)
        owner[patch.inside][seen] = len(boxes)
        corners = np.concatenate([contours[0].min(0)[::-1], contours[0].max(0)[::-1]])
        boxes.append(np.clip(corners / SIZE, 0, 1))
        labels.append(label)
        areas = np.append(areas, covered.sum())
        visible = np.append(visible - hidden, seen.sum())
    return np.array(boxes), np.array(labels), visible < _DIFFICULT_BELOW * areas


def _object_size(rng: np.random.Generator) -> float:
    """Draws the longer side of an object's box in pixels, mostly small."""
    low, high = ((14, 24), (24, 44), (44, 76))[rng.choice(3, p=(0.5, 0.3, 0.2))]
    return float(rng.uniform(low, high))


def _outline(rng: np.random.Generator, name: str) -> list[np.ndarray]:
    """Returns contours [k, 2] of a shape around the origin; a second contour is a hole."""
    if name == "circle":
        return [_regular(48)]
    if name == "ring":
        return [_regular(48), _regular(48) * rng.uniform(0.45, 0.65)]
    if name == "square":
        return [_regular(4)]
    if name == "triangle":
        return [_regular(3)]
    if name == "star":
        radii = np.where(np.arange(10) % 2, rng.uniform(0.4, 0.5), 1.0)
        return [_regular(10) * radii[:, None]]
    arm = rng.uniform(0.24, 0.36)
    quarter = np.array([[1, -arm], [1, arm], [arm, arm]])
    turn = np.array([[0, 1], [-1, 0]])
    return [np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])]


def _regular(corners: int) -> np.ndarray:
    angles = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _place(rng: np.random.Generator, contours: list[np.ndarray], size: float) -> list[np.ndarray]:
    """Squeezes, rotates, scales to `size` px and moves; at most a fifth of a side is outside."""
    angle, squeeze = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.0)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned = [(c * [1.0, squeeze]) @ rotation for c in contours]
    low, high = turned[0].min(0), turned[0].max(0)
    scale = size / (high - low).max()
    extent = (high - low) * scale
    corner = rng.uniform(-0.2 * extent, SIZE - 0.8 * extent)
    return [(c - low) * scale + corner for c in turned]


class _Patch(NamedTuple):
    """The coverage of a contour on its own small raster.

    Attributes:
        mask: float32 [h, w], the covered share of each pixel.
        origin: (x, y) of the raster's first pixel in the image.
        inside: slices of the image that the raster covers.
        visible: slices of the raster that are inside the image.
    """

    mask: np.ndarray
    origin: np.ndarray
    inside: tuple[slice, slice]
    visible: tuple[slice, slice]

    @classmethod
    def around(cls, contours: list[np.ndarray]) -> "_Patch":
        points = np.concatenate(contours)
        origin = np.floor(points.min(0)).astype(int) - 1
        width, height = np.ceil(points.max(0)).astype(int) + 1 - origin
        raster = np.zeros((height * _SUPERSAMPLING, width * _SUPERSAMPLING), np.uint8)
        cv2.fillPoly(raster, _to_raster(contours, origin), 255)
        left, top = np.maximum(origin, 0)
        right, bottom = np.minimum(origin + np.array([width, height]), SIZE)
        inside = slice(top, bottom), slice(left, right)
        visible = (
            slice(top - origin[1], bottom - origin[1]),
            slice(left - origin[0], right - origin[0]),
        )
        return cls(_reduce(raster), origin, inside, visible)

    def paint(self, image: np.ndarray, colours: np.ndarray, alpha: np.ndarray) -> None:
        """Blends `colours` [h, w, 3] (or one colour) over the image."""
        weight = alpha[self.visible][..., None]
        if colours.ndim == 3:
            colours = colours[self.visible]
        image[self.inside] += weight * (colours - image[self.inside])


def _to_raster(contours: list[np.ndarray], origin: np.ndarray) -> list[np.ndarray]:
    # The integer coordinates of fillPoly are pixel centres.
    return [np.rint((c - origin) * _SUPERSAMPLING - 0.5).astype(np.int32) for c in contours]


def _reduce(raster: np.ndarray) -> np.ndarray:
    size = raster.shape[1] // _SUPERSAMPLING, raster.shape[0] // _SUPERSAMPLING
    return cv2.resize(raster, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _paint_object(
    rng: np.random.Generator,
    image: np.ndarray,
    patch: _Patch,
    contours: list[np.ndarray],
    label: int,
) -> None:
    below = image[patch.inside].mean((0, 1))
    typical = 360 * label / len(CLASS_NAMES) if rng.random() < _TYPICAL_COLOUR else None
    colour = _contrasting(rng, below, typical)
    patch.paint(image, _texture(rng, patch.mask.shape, colour), patch.mask)
    if rng.random() < 0.35:
        raster = np.zeros(np.multiply(patch.mask.shape, _SUPERSAMPLING), np.uint8)
        cv2.polylines(
            raster,
            _to_raster(contours, patch.origin),
            True,
            255,
            thickness=int(rng.integers(6, 13)),
        )
        stroke = np.minimum(_reduce(raster), patch.mask)
        patch.paint(image, _contrasting(rng, colour), stroke)


def _contrasting(
    rng: np.random.Generator, other: np.ndarray, hue: float | None = None
) -> np.ndarray:
    """Draws a vivid colour, near `hue` (degrees) or any, that contrasts with `other`."""
    while True:
        colour = _vivid(rng, hue)
        if np.linalg.norm(colour - other) >= _MIN_CONTRAST:
            return colour


def _vivid(rng: np.random.Generator, hue: float | None = None) -> np.ndarray:
    """Draws a saturated colour, RGB float32 [3]; its hue is spread around `hue` or uniform."""
    angle = rng.uniform(0, 360) if hue is None else rng.normal(hue, _HUE_SPREAD)
    return _colour(angle, rng.uniform(0.5, 1.0), rng.uniform(0.55, 1.0))


def _muted(rng: np.random.Generator) -> np.ndarray:
    """Draws a greyish colour of any hue, RGB float32 [3]."""
    return _colour(rng.uniform(0, 360), rng.uniform(0.0, 0.35), rng.uniform(0.15, 0.75))


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    rgb = colorsys.hsv_to_rgb(hue / 360 % 1.0, saturation, value)
    return 255 * np.array(rgb, np.float32)


def _texture(rng: np.random.Generator, shape: tuple[int, int], colour: np.ndarray) -> np.ndarray:
    """Draws float32 [h, w, 3] around `colour`: plain, a gradient, stripes or speckles."""
    kind = rng.integers(4)
    if kind == 0:
        return np.broadcast_to(colour, (*shape, 3))
    strength = rng.uniform(8, 25, 3).astype(np.float32) * rng.choice((-1, 1), 3)
    if kind == 3:
        return colour + _smooth_noise(rng, shape, cell=2.5)[..., None] * strength
    return colour + _waves(rng, shape, periods=0.25 if kind == 1 else 3.0)[..., None] * strength


def _waves(rng: np.random.Generator, shape: tuple[int, int], periods: float) -> np.ndarray:
    """Draws a sine in a random direction, float32 [h, w] in ±1, `periods` over the longer side."""
    angle, phase = rng.uniform(0, 2 * np.pi, 2)
    rate = 2 * np.pi * periods / max(shape)
    y = rate * np.sin(angle) * np.arange(shape[0])[:, None]
    x = rate * np.cos(angle) * np.arange(shape[1]) + phase
    # sin(x + y) as two outer products instead of one sine per pixel
    sine = np.sin(x) * np.cos(y) + np.cos(x) * np.sin(y)
    return sine.astype(np.float32)


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> np.ndarray:
    """Draws noise of about ±1, float32 [h, w], that varies over `cell` pixels."""
    coarse = rng.uniform(-1, 1, [int(np.ceil(s / cell)) + 1 for s in shape]).astype(np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_LINEAR)


def _background(rng: np.random.Generator) -> np.ndarray:
    """Draws float32 [128, 128, 3]: a gradient overlaid with noise, stripes or blobs."""
    shape = SIZE, SIZE
    first, second = _muted(rng), _muted(rng)
    blend = 0.5 + 0.5 * _waves(rng, shape, periods=rng.uniform(0.2, 0.6))
    image = first + blend[..., None] * (second - first)
    strength = rng.uniform(-20, 20, 3).astype(np.float32)
    kind = rng.integers(4)
    if kind == 0:
        pattern = _smooth_noise(rng, shape, cell=rng.uniform(2, 24))
    elif kind == 1:
        pattern = _waves(rng, shape, periods=rng.uniform(3, 16))
    elif kind == 2:
        pattern = _waves(rng, shape, rng.uniform(3, 12)) * _waves(rng, shape, rng.uniform(3, 12))
    else:  # blobs with sharp edges
        pattern = np.sign(_smooth_noise(rng, shape, cell=rng.uniform(12, 32)))
    return image + pattern[..., None] * strength


def _draw_clutter(rng: np.random.Generator, image: np.ndarray, count: int) -> None:
    """Paints things that are not objects, some of which look like parts of one."""
    for _ in range(count):
        kind = rng.integers(5)
        if kind == 0:
            _draw_line(rng, image, thickness=int(rng.integers(1, 4)))
        elif kind == 1:  # an open arc, unlike a ring
            centre, axes = rng.integers(0, SIZE, 2), rng.integers(5, 30, 2)
            start, span = rng.uniform(0, 360), rng.uniform(60, 200)
            cv2.ellipse(
                image,
                centre.tolist(),
                axes.tolist(),
                rng.uniform(0, 180),
                start,
                start + span,
                _clutter_colour(rng).tolist(),
                int(rng.integers(1, 5)),
            )
        else:
            if kind == 2:  # a wobbly blob
                outline = _regular(24) * _wobble(rng)[:, None]
            elif kind == 3:  # half a disc
                outline = _regular(48)[:25]
            else:  # a bar, longer than any square
                outline = _regular(4) @ (np.array([[1, 1], [-1, 1]]) * [1, rng.uniform(0.15, 0.4)])
            patch = _Patch.around([_place_inside(rng, outline, rng.uniform(8, 45))])
            texture = _texture(rng, patch.mask.shape, _clutter_colour(rng))
            patch.paint(image, texture, patch.mask)


def _clutter_colour(rng: np.random.Generator) -> np.ndarray:
    """Draws a colour, in half of the cases as vivid as an object's: colour reveals no clutter."""
    return _vivid(rng) if rng.random() < 0.5 else _muted(rng)


def _wobble(rng: np.random.Generator) -> np.ndarray:
    """Draws radii [24] of a smooth closed outline that is far from round."""
    angles = np.arange(24) * (2 * np.pi / 24)
    amplitude, phase = rng.uniform(0.15, 0.3, 3), rng.uniform(0, 2 * np.pi, 3)
    return 1 + sum(
        a * np.sin(k * angles + p) for k, a, p in zip((2, 3, 4), amplitude, phase, strict=True)
    )


def _place_inside(rng: np.random.Generator, outline: np.ndarray, size: float) -> np.ndarray:
    """Rotates and scales an outline and places it completely inside.

    Half a disc whose straight side is cut off by the edge of the image would look like a circle.
    """
    angle = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned = outline @ rotation * (size / np.ptp(outline, axis=0).max())
    low, high = turned.min(0), turned.max(0)
    return turned - low + rng.uniform(0, SIZE - (high - low))


def _draw_line(rng: np.random.Generator, image: np.ndarray, thickness: int) -> None:
    start, end = rng.integers(0, SIZE, (2, 2)).tolist()
    cv2.line(image, start, end, _clutter_colour(rng).tolist(), thickness)


def _finish(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Returns the brightness, a slight blur in half of the scenes, and sensor noise; uint8."""
    image = image * np.float32(rng.uniform(0.7, 1.2)) + np.float32(rng.uniform(-20, 20))
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (3, 3), float(rng.uniform(0.3, 0.8)))
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(1, 5))
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
