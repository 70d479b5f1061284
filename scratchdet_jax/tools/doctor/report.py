"""Everything the doctor measures, as plain values: for the text, the page and JSON alike."""

import dataclasses
import math
from typing import Any, NamedTuple

from scratchdet_jax.tools.doctor.duplicates import Overlap
from scratchdet_jax.tools.doctor.fit import FitSummary, WhatIf


class Named(NamedTuple):
    """How many there are, and the first few by name."""

    count: int
    examples: list[str]


class SplitCounts(NamedTuple):
    """One split: images, boxes by class that count, ignored ones by class."""

    name: str
    images: int
    boxes: list[int]
    ignored: list[int]
    without_boxes: int
    ignored_only: int


class ClassCounts(NamedTuple):
    """One class over all distinct images; sizes are sqrt(area) in pixels of the network input.

    `below_smallest` and `tiny` are shares: of boxes smaller than the smallest anchor, and than
    one cell of the finest feature map.
    """

    name: str
    images: int
    boxes: int
    ignored: int
    size_median: float
    size_low: float
    size_high: float
    below_smallest: float
    tiny: float


class ImageSizes(NamedTuple):
    """(height, width, images) of the commonest sizes, and what the rest is."""

    common: list[tuple[int, int, int]]
    kinds: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    reduced: float
    turned: int


class Histogram(NamedTuple):
    """Counts between edges, [n + 1] and [n].

    Attributes:
        edges: rising.
        counts: as annotated; what lies outside is counted at the end next to it.
        after: the same after augmentation, or None.
    """

    edges: list[float]
    counts: list[int]
    after: list[int] | None


class ReachBySize(NamedTuple):
    """Share of the boxes of each size that reach an anchor, NaN where there is none.

    Attributes:
        edges: of sqrt(area) in pixels of the network input, [n + 1].
        before: [n].
        after: [n], after augmentation.
    """

    edges: list[float]
    before: list[float]
    after: list[float]


class LevelInfo(NamedTuple):
    """One level of anchors: cells, (min, max) size in pixels, ratios, number of anchors."""

    map: tuple[int, int]
    sizes: tuple[int, int]
    ratios: tuple[float, ...]
    anchors: int


class BoxExample(NamedTuple):
    """A box that no anchor reaches; height and width in pixels of the network input."""

    image: int
    box: int
    file: str
    class_name: str
    height: float
    width: float
    best_iou: float
    anchors: int


class Pair(NamedTuple):
    """Two images that look alike: census indices, names with splits, differing bits of 64."""

    first: int
    second: int
    names: tuple[str, str]
    bits: int
    across_splits: bool


class Group(NamedTuple):
    """Distinct occurrences of the same bytes."""

    images: list[int]
    names: list[str]
    across_splits: bool


@dataclasses.dataclass
class Report:
    """The outcome of an examination; images are counted once however many splits hold them."""

    dataset: str
    recipe: str
    image_size: int
    canvas: tuple[int, int]
    max_boxes: int
    threshold: float
    train_on_ignored: bool
    class_names: tuple[str, ...]
    splits: list[SplitCounts]
    overlaps: list[Overlap]
    images: int
    decoded: int
    classes: list[ClassCounts]
    sizes: ImageSizes
    size_histogram: Histogram
    aspect_histogram: Histogram
    count_histogram: Histogram
    reached_by_size: ReachBySize
    without_boxes: Named
    ignored_only: Named
    undecodable: Named
    too_many_boxes: Named
    most_boxes: int
    defects: dict[str, Named]
    prepared: dict[str, Named]
    groups: list[Group]
    near: list[Pair]
    crowded: list[tuple[int, str, int]]
    levels: list[LevelInfo]
    before: FitSummary
    after: FitSummary
    draws: int
    emptied: float
    unreached: list[BoxExample]
    unreached_count: int
    unreached_small: float
    unreached_thin: float
    hopeless: list[float]
    what_if: list[WhatIf]
    findings: list[Any] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON knows it: NaN becomes null."""
        return _plain({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
