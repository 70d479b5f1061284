"""Image sizes, images that need attention, the most crowded ones, and samples for the page."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scratchdet_jax.data.loading import TrainingOrder, read_batches
from scratchdet_jax.detector import augment_options
from scratchdet_jax.errors import UserError, plural
from scratchdet_jax.evaluation.drawing import draw_detections
from scratchdet_jax.ops.augment import augment
from scratchdet_jax.reports.doctor.study import DataSetStudy, size_on_canvas
from scratchdet_jax.reports.page.pictures import Picture, to_picture
from scratchdet_jax.reports.page.tables import Finding, meter, named, percent, several
from scratchdet_jax.training.step import example_keys

_CROWDED = 6
_LISTED = 12  # image sizes


def measure(study: DataSetStudy) -> dict[str, Any]:
    """Measures all distinct images.

    Returns:
        `sizes`, see `_image_sizes`; names of the images `without_boxes`, with `ignored_only`,
        `undecodable` ones and ones with `too_many_boxes`; `most_boxes` of a record; `crowded`:
        index, name and number of boxes.
    """
    images, counts = study.images, study.table.counts
    order = np.argsort(-counts, kind="stable")[:_CROWDED]
    broken = [f"{study.looks[i].place}: {why}" for i, why in sorted(study.broken.items())]
    return {
        "sizes": _image_sizes(study),
        "without_boxes": study.named(images[counts == 0]),
        "ignored_only": study.named(images[study.table.only_ignored]),
        "undecodable": named(broken),
        "too_many_boxes": study.named(images[counts > study.config.data.max_boxes]),
        "most_boxes": study.most_boxes,
        "crowded": [
            (int(images[i]), study.looks[images[i]].place, int(counts[i]))
            for i in order
            if counts[i]
        ],
    }


def _image_sizes(study: DataSetStudy) -> dict[str, Any]:
    """Returns the sizes of the images whose header can be read.

    These are `common`, the most common (height, width, images); the number of `kinds`; `smallest`
    and `largest` by area; `reduced`, the share larger than the canvas; `turned` by EXIF.
    """
    sizes = study.table.sizes[study.table.sizes.min(axis=1) > 0]
    kinds, numbers = np.unique(sizes, axis=0, return_counts=True)
    order = np.argsort(-numbers, kind="stable")[:_LISTED]
    area = kinds.astype(np.int64).prod(axis=1)
    reduced = np.any(size_on_canvas(sizes, study.canvas) < sizes, axis=1)
    return {
        "common": [(*kinds[i].tolist(), int(numbers[i])) for i in order],
        "kinds": len(kinds),
        "smallest": kinds[area.argmin()].tolist() if len(kinds) else [0, 0],
        "largest": kinds[area.argmax()].tolist() if len(kinds) else [0, 0],
        "reduced": float(np.mean(reduced)) if len(sizes) else float("nan"),
        "turned": sum(study.looks[i].turned for i in study.images),
    }


def findings(study: DataSetStudy, figures: Mapping[str, Any]) -> Iterator[Finding]:
    """Finds images that stop training, and images to look at."""
    total = len(study.images)
    if broken := figures["undecodable"]["count"]:
        yield Finding(
            "problem",
            1 + broken / total,
            f"{plural(broken, 'image')} cannot be decoded: training stops at the first "
            f"({figures['undecodable']['examples'][0]}).",
            "Replace or remove the files and prepare the data set again.",
        )
    if many := figures["too_many_boxes"]["count"]:
        yield Finding(
            "problem",
            1 + many / total,
            f"{several(many, 'image', 'has')} more boxes than config.data.max_boxes = "
            f"{study.config.data.max_boxes}: training stops there.",
            f"Set --config.data.max_boxes={study.most_boxes}.",
        )
    if empty := figures["without_boxes"]["count"]:
        share = empty / total
        yield Finding(
            "warning" if share > 0.2 else "note",
            share,
            f"{plural(empty, 'image')} ({percent(share)}) {'has' if empty == 1 else 'have'} no "
            "boxes. Hard negatives are mined in proportion to the positives of the same image, so "
            "an image without boxes only contributes to BatchNorm's statistics.",
            "Check that this is intended.",
        )
    if turned := figures["sizes"]["turned"]:
        yield Finding(
            "note",
            turned / total,
            f"{several(turned, 'image', 'is')} rotated or mirrored by the EXIF tag; boxes refer to "
            "the image as displayed.",
        )


def size_rows(figures: Mapping[str, Any]) -> list[list[str]]:
    """Returns the most common sizes, with a bar each."""
    common = figures["sizes"]["common"]
    rows = [[f"{w}×{h}", f"{n:,}", meter(n / common[0][2])] for h, w, n in common]
    return [["width × height", "images", ""], *rows]


def lists(study: DataSetStudy, figures: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the images that need attention, by a title."""
    most = study.config.data.max_boxes
    return {
        "without boxes": figures["without_boxes"],
        "with only difficult or crowd boxes": figures["ignored_only"],
        "that cannot be decoded": figures["undecodable"],
        f"with more than config.data.max_boxes = {most} boxes": figures["too_many_boxes"],
    }


def draw_samples(study: DataSetStudy, count: int) -> list[Picture]:
    """Draws the first images of training with this recipe, seed and data, augmented.

    Image i is row i % batch_size of step i // batch_size, in training's order, and its random
    draws are those of that step. The next image stands for one that cannot be decoded.
    """
    if not count:
        return []
    source, config = study.training, study.config
    options, size = augment_options(config), config.image_size
    run = jax.jit(functools.partial(augment, options=options, image_size=size))
    settings = config.data.copy_and_resolve_references().unlock()
    settings.canvas = study.canvas
    settings.max_boxes = max(settings.max_boxes, study.most_boxes)
    order = TrainingOrder(len(source), config.seed, config.batch_size)
    batches = read_batches(source, order, (count,), settings, substituted={})
    with contextlib.closing(batches):
        try:
            batch = next(batches)
        except UserError:  # no image can be decoded
            return []
    pictures = []
    for i, index in enumerate(batch["id"].tolist()):
        step, row = divmod(i, config.batch_size)
        key = example_keys(config.seed, step, jnp.asarray([row]))[0]
        example = (batch[name][i] for name in ("image", "size", "boxes", "labels", "ignore"))
        image, boxes, labels, ignore = map(np.asarray, run(key, *example))
        if not config.data.train_on_ignored:
            labels = np.where(ignore, 0, labels)
        pixels = np.clip(np.round(image), 0, 255).astype(np.uint8)
        drawn = draw_detections(pixels, boxes * size, labels, None, source.class_names)
        pictures.append(to_picture(drawn, source[index]["filename"]))
    return pictures
