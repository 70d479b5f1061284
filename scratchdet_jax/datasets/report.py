"""The report of a preparation: counts, and every defect with its file and reason."""

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from scratchdet_jax.datasets.objects import Defect, Kind, UsableImage, area_pixels
from scratchdet_jax.datasets.untrusted import printable
from scratchdet_jax.errors import plural

_EXAMPLES = 3  # defects of one kind listed in the summary
_USUAL_SLOTS = 100  # the default of config.data.max_boxes
_SMALL, _LARGE = 32**2, 96**2  # pixels, COCO's limits


@dataclasses.dataclass
class PrepareReport:
    """The outcome of one preparation.

    For every split, images + left_out is the number of different images that its list names.

    Attributes:
        name: the data set with its builder: train on `<name>:<split>`.
        source: where it came from.
        directory: where it was written.
        fingerprint: hash of the input's contents and the options, to detect changes.
        class_names: in the order of the labels.
        category_ids: the number of each class in the source (COCO, YOLO); None for VOC.
        images: number of images by split.
        left_out: number of listed images that could not be used, by split.
        boxless: number of images without boxes, by split.
        boxes: number of boxes by class, each image counted once.
        ignored: how many of them are marked difficult (VOC) or crowd (COCO).
        image_sizes: (height, width) as displayed of the smallest, the median and the largest image.
        box_sizes: boxes by COCO's small (area below 32²), medium, and large (96² pixels and more).
        notes: decisions made for the user.
        defects: everything that was left out or repaired.
        choices: the options that it was prepared with, as `Choices.record` writes them.
        division: how a split was divided; empty if none was.
        most_boxes: the largest number of boxes in an image; 0 in reports without the field.
    """

    name: str
    source: str
    directory: str
    fingerprint: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...] | None
    images: dict[str, int]
    left_out: dict[str, int]
    boxless: dict[str, int]
    boxes: dict[str, int]
    ignored: int
    image_sizes: dict[str, tuple[int, int]]
    box_sizes: dict[str, int]
    notes: list[str]
    defects: list[Defect]
    choices: dict[str, Any] = dataclasses.field(default_factory=dict)
    division: dict[str, Any] = dataclasses.field(default_factory=dict)
    most_boxes: int = 0

    def counts(self) -> dict[str, int]:
        """Returns the number of defects by kind."""
        return dict(collections.Counter(str(defect.kind) for defect in self.defects))

    def summary(self, stored: bool = True) -> str:
        """Returns the report in a few lines, with the first defects of each kind.

        `stored`: whether report.json, which has all defects, was written.
        """
        lines = [f"{self.name}: {self.source} -> {self.directory}"]
        for split, count in self.images.items():
            asides = {"without boxes": self.boxless[split], "more left out": self.left_out[split]}
            shown = ", ".join(f"{number:,} {what}" for what, number in asides.items() if number)
            lines.append(f"  {split}: {plural(count, 'image')}" + (f" ({shown})" if shown else ""))
        # YOLO's boxes have no such flag.
        flag = {"voc_folder": "difficult", "coco_folder": "crowd"}.get(self.name.partition("/")[0])
        ignored = f" ({self.ignored:,} {flag})" if flag else ""
        boxes = ", ".join(f"{printable(name)} {count:,}" for name, count in self.boxes.items())
        classes = plural(len(self.class_names), "class")
        lines.append(f"  {plural(sum(self.boxes.values()), 'box')}{ignored} of {classes}: {boxes}")
        sizes = ", ".join(f"{k} {w}×{h}" for k, (h, w) in self.image_sizes.items())
        lines.append(f"  image sizes (width×height): {sizes}")
        small, medium, large = self.box_sizes.values()
        lines.append(
            f"  box sizes: {small:,} small (below 32² px), {medium:,} medium, {large:,} large "
            "(96² px and more)"
        )
        if self.most_boxes > _USUAL_SLOTS:
            lines.append(
                f"  an image has {self.most_boxes:,} boxes: train with "
                f"--config.data.max_boxes={self.most_boxes} or more"
            )
        lines += [f"  note: {printable(note)}" for note in self.notes]
        reference = ", see report.json" if stored else ""
        lines += defect_lines(self.defects, reference) or ["  no defects"]
        return "\n".join(lines)

    def to_json(self) -> str:
        """Returns the complete report, for report.json."""
        fields = dataclasses.asdict(self)
        fields["counts"] = self.counts()
        fields["defects"] = [defect._asdict() for defect in self.defects]
        return json.dumps(fields, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "PrepareReport":
        """Reads the output of `to_json`.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: the text is not such a report.
        """
        fields = json.loads(text)
        fields.pop("counts")
        fields["class_names"] = tuple(fields["class_names"])
        if fields["category_ids"] is not None:
            fields["category_ids"] = tuple(fields["category_ids"])
        fields["image_sizes"] = {k: tuple(v) for k, v in fields["image_sizes"].items()}
        fields["defects"] = [
            Defect(Kind(d["kind"]), d["file"], d["reason"]) for d in fields["defects"]
        ]
        return cls(**fields)


def defect_lines(defects: Sequence[Defect], reference: str = "") -> list[str]:
    """Lists the kinds of defect with counts and first cases; `reference` names the rest."""
    lines = []
    for kind, count in collections.Counter(str(defect.kind) for defect in defects).items():
        lines.append(f"  {count} × {kind}")
        same = [defect for defect in defects if defect.kind == kind]
        lines += [f"    {defect.file}: {defect.reason}" for defect in same[:_EXAMPLES]]
        if count > _EXAMPLES:
            lines.append(f"    … and {count - _EXAMPLES} more{reference}")
    return lines


def statistics(
    splits: Mapping[str, Sequence[UsableImage]], class_names: Sequence[str]
) -> dict[str, Any]:
    """Counts usable data for a report; an image in several splits counts once."""
    unique = {(image.path, image.image_id): image for m in splits.values() for image in m}
    images = list(unique.values())
    boxes = collections.Counter(o.name for image in images for o in image.objects)
    sizes = sorted(
        (image.header.displayed_size for image in images), key=lambda size: size[0] * size[1]
    )
    areas = [area_pixels(o.box, i.header.displayed_size) for i in images for o in i.objects]
    small, large = sum(a < _SMALL for a in areas), sum(a >= _LARGE for a in areas)
    return {
        "images": {split: len(members) for split, members in splits.items()},
        "boxless": {split: sum(not i.objects for i in m) for split, m in splits.items()},
        "boxes": {name: boxes[name] for name in class_names},
        "ignored": sum(o.is_ignored for image in images for o in image.objects),
        "image_sizes": {
            key: sizes[at]
            for key, at in (("smallest", 0), ("median", len(sizes) // 2), ("largest", -1))
            if sizes
        },
        "most_boxes": max((len(image.objects) for image in images), default=0),
        "box_sizes": {"small": small, "medium": len(areas) - small - large, "large": large},
    }
