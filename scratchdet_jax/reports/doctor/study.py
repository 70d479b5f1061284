"""The data set, read, decoded and fitted once; the input of every section."""

from collections.abc import Iterable

import ml_collections
import numpy as np

from scratchdet_jax.data.records import Example
from scratchdet_jax.reports.doctor.census import (
    decode,
    select_images,
    size_on_canvas,
    take_census,
    without_ignored,
)
from scratchdet_jax.reports.doctor.fit import box_sides, fit_anchors, fit_augmented, make_levels
from scratchdet_jax.reports.doctor.opening import Opened
from scratchdet_jax.reports.page.wording import Named

DRAWS = 4
"""Augmentations of each image."""


class DataSetStudy:
    """A data set as a recipe sees it.

    An image in several splits counts once: the distinct images and their boxes.

    Attributes:
        census: of all records.
        images: int64 [n], indices of the distinct images in the census.
        table: boxes of the distinct images; its image i is `images[i]`.
        sides: float32 [k, 2], the distinct boxes' height and width in pixels of the network input.
        sizes: float32 [k], sqrt(height · width) of these.
        decoded: indices of the images that were decoded.
        signatures: by image, of those that can be decoded.
        broken: by image, why it cannot be decoded; images with an unreadable header included.
        levels: the anchors.
        before: the anchors' fit to the boxes of the decoded images; `source` is the index in
            `census.table`.
        after: the fit after augmentation.
        boxes_left: int [DRAWS, m], boxes that augmentation leaves of the m images that had some.
    """

    def __init__(
        self, dataset: str, opened: Opened, config: ml_collections.ConfigDict, most_images: int
    ) -> None:
        """Reads a data set and fits the anchors to it.

        Args:
            dataset: its name on the command line.
            opened: its splits.
            config: a run's config.
            most_images: at most this many images are decoded and fitted; if there are more, they
                are drawn at random, the same ones in every run.
        """
        self.dataset, self.opened, self.config = dataset, opened, config
        self.image_size, self.canvas = config.image_size, tuple(config.data.canvas)
        self.threshold = config.loss.match_iou
        self.levels = make_levels(config)

        self.census = take_census(opened.splits)
        self.class_names = self.census.class_names
        self.images = chosen = self.census.distinct
        self.table, _ = select_images(self.census.table, self.images)
        self.sides = box_sides(self.table.boxes, self.image_size)
        self.sizes = np.sqrt(self.sides.prod(axis=1))

        if len(chosen) > most_images:
            chosen = np.sort(np.random.default_rng(0).choice(chosen, most_images, replace=False))
        self.decoded = chosen
        self.signatures, broken = decode(self.census, opened.splits, chosen)
        problems = {int(i): self.census.looks[i].problem for i in self.images}
        self.broken = {i: problem for i, problem in problems.items() if problem} | broken
        self._fit()

    def _fit(self) -> None:
        table, index = select_images(self.census.table, self.decoded)
        table = table._replace(sizes=size_on_canvas(table.sizes, self.canvas))
        trained, kept = table, np.arange(len(index))
        if not self.config.data.train_on_ignored:
            trained, kept = without_ignored(table)
        before = fit_anchors(self.levels, trained, self.threshold)
        self.before = before._replace(source=index[kept[before.source]])
        self.after, left = fit_augmented(self.levels, table, self.config, DRAWS)
        self.boxes_left = left[:, table.counts > 0]

    @property
    def most_boxes(self) -> int:
        """Returns the number of boxes of the most crowded record."""
        return int(self.census.table.counts.max(initial=0))

    def class_sizes(self, label: int) -> np.ndarray:
        """Returns the sizes of a class's distinct boxes."""
        return self.sizes[self.table.labels == label]

    def place(self, image: int) -> str:
        """Returns SPLIT/FILE of an image of the census."""
        return self.census.looks[image].place

    def named(self, images: Iterable[int]) -> Named:
        """Returns the names of images of the census."""
        return Named.first([self.place(i) for i in images])

    def example(self, image: int) -> Example:
        """Returns the record of an image of the census."""
        look = self.census.looks[image]
        return self.opened.splits[look.split][look.position]
