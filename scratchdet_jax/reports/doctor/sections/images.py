"""Image sizes, images that need attention, and the most crowded ones."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from scratchdet_jax.errors import plural
from scratchdet_jax.reports.doctor.census import size_on_canvas
from scratchdet_jax.reports.doctor.study import DataSetStudy
from scratchdet_jax.reports.page.tables import Cell, Meter
from scratchdet_jax.reports.page.wording import Finding, Named, percent, verb

_CROWDED = 6
_LISTED = 12  # image sizes


class ImageSizes(NamedTuple):
    """Sizes of the images whose header can be read.

    Attributes:
        common: (height, width, images) of the most common sizes.
        kinds: number of different sizes.
        smallest: (height, width) of the smallest area.
        largest: (height, width) of the largest area.
        reduced: share of the images that are larger than the canvas.
        turned: number of images with an EXIF turn.
    """

    common: list[tuple[int, int, int]]
    kinds: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    reduced: float
    turned: int


class ImageChecks(NamedTuple):
    """What the images are like; `crowded` holds (census index, name, boxes)."""

    sizes: ImageSizes
    without_boxes: Named
    ignored_only: Named
    undecodable: Named
    too_many_boxes: Named
    most_boxes: int
    crowded: list[tuple[int, str, int]]

    @classmethod
    def measure(cls, study: DataSetStudy) -> "ImageChecks":
        """Measures all distinct images."""
        images, counts = study.images, study.table.counts
        order = np.argsort(-counts, kind="stable")[:_CROWDED]
        return cls(
            _image_sizes(study),
            study.named(images[counts == 0]),
            study.named(images[study.table.only_ignored]),
            Named.first([f"{study.place(i)}: {why}" for i, why in sorted(study.broken.items())]),
            study.named(images[counts > study.config.data.max_boxes]),
            study.most_boxes,
            [(int(images[i]), study.place(images[i]), int(counts[i])) for i in order if counts[i]],
        )

    def findings(self, study: DataSetStudy) -> Iterator[Finding]:
        """Finds images that stop training, and images to look at."""
        total = len(study.images)
        if broken := self.undecodable.count:
            yield Finding(
                "problem",
                1 + broken / total,
                f"{plural(broken, 'image')} cannot be decoded: training stops at the first "
                f"({self.undecodable.examples[0]}).",
                "Replace or remove the files and prepare the data set again.",
            )
        if many := self.too_many_boxes.count:
            yield Finding(
                "problem",
                1 + many / total,
                f"{plural(many, 'image')} {verb(many, 'has')} more boxes than "
                f"config.data.max_boxes = {study.config.data.max_boxes}: training stops there.",
                f"Set --config.data.max_boxes={self.most_boxes}.",
            )
        if empty := self.without_boxes.count:
            share = empty / total
            yield Finding(
                "warning" if share > 0.2 else "note",
                share,
                f"{plural(empty, 'image')} ({percent(share)}) {verb(empty, 'has')} no boxes. Hard "
                "negatives are mined in proportion to the positives of the same image, so an "
                "image without boxes only contributes to BatchNorm's statistics.",
                "Check that this is intended.",
            )
        if turned := self.sizes.turned:
            yield Finding(
                "note",
                turned / total,
                f"{plural(turned, 'image')} {verb(turned, 'is')} rotated or mirrored by the EXIF "
                "tag; boxes refer to the image as displayed.",
            )

    def size_rows(self) -> list[list[Cell]]:
        """Returns the most common sizes, with a bar each."""
        most = self.sizes.common[0][2]
        sizes: list[list[Cell]] = [
            [f"{w}×{h}", f"{n:,}", Meter(n / most)] for h, w, n in self.sizes.common
        ]
        return [["width × height", "images", ""], *sizes]

    def lists(self, study: DataSetStudy) -> list[tuple[str, Named]]:
        """Returns the images that need attention, with a title."""
        most = study.config.data.max_boxes
        return [
            ("without boxes", self.without_boxes),
            ("with only difficult or crowd boxes", self.ignored_only),
            ("that cannot be decoded", self.undecodable),
            (f"with more than config.data.max_boxes = {most} boxes", self.too_many_boxes),
        ]


def _image_sizes(study: DataSetStudy) -> ImageSizes:
    sizes = study.table.sizes[study.table.sizes.min(axis=1) > 0]
    if not len(sizes):
        return ImageSizes([], 0, (0, 0), (0, 0), float("nan"), 0)
    kinds, numbers = np.unique(sizes, axis=0, return_counts=True)
    order = np.argsort(-numbers, kind="stable")[:_LISTED]
    area = kinds.astype(np.int64).prod(axis=1)
    return ImageSizes(
        common=[(*kinds[i].tolist(), int(numbers[i])) for i in order],
        kinds=len(kinds),
        smallest=tuple(kinds[np.argmin(area)].tolist()),
        largest=tuple(kinds[np.argmax(area)].tolist()),
        reduced=float(np.mean(np.any(size_on_canvas(sizes, study.canvas) < sizes, axis=1))),
        turned=sum(study.census.looks[i].turned for i in study.images),
    )
