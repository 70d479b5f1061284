"""What was found in a VOC folder: counts, and every defect with file and reason."""

import collections
import dataclasses
import enum
import json
from typing import NamedTuple

_EXAMPLES = 5  # defects of one kind that the summary spells out


class Kind(enum.StrEnum):
    """Kinds of defect; each says what became of it."""

    SWAPPED = "box with swapped corners (repaired)"
    CLIPPED = "box reaching out of the image (clipped)"
    NO_AREA = "box without area (left out)"
    OUTSIDE = "box outside the image (left out)"
    UNREADABLE_BOX = "object that cannot be read (left out)"
    UNKNOWN_CLASS = "object of an unknown class (left out)"
    FLAG = "flag that cannot be read (taken as 0)"
    SIZE = "annotation with another size than the image (the image's is used)"
    NO_IMAGE = "missing image (left out)"
    BROKEN_IMAGE = "image that cannot be decoded whole (left out)"
    TURNED_IMAGE = "image annotated as turned by its EXIF tag (left out)"
    TWO_IMAGES = "two image files of one id (the first is used)"
    NO_ANNOTATION = "image without annotation (left out)"
    BROKEN_ANNOTATION = "annotation that cannot be read (image left out)"
    LISTED_TWICE = "id listed twice in a split (used once)"
    EMPTY_SPLIT = "split without usable images (left out)"


class Defect(NamedTuple):
    """One thing wrong in the folder: its kind, the file (relative to it), and the details."""

    kind: Kind
    file: str
    reason: str


@dataclasses.dataclass
class Report:
    """The outcome of preparing one folder.

    Attributes:
      name: of the data set: train on ``voc_folder/<name>:<split>``.
      folder: where it came from.
      directory: where it was put.
      fingerprint: of the folder's contents and the choices made; tells whether it has changed.
      class_names: in the order of the labels.
      images: number of images by split.
      boxes: number of boxes by class, each image counted once.
      difficult: how many of them are marked difficult.
      notes: choices made on the user's behalf.
      defects: everything that was left out or repaired.
    """

    name: str
    folder: str
    directory: str
    fingerprint: str
    class_names: tuple[str, ...]
    images: dict[str, int]
    boxes: dict[str, int]
    difficult: int
    notes: list[str]
    defects: list[Defect]

    def counts(self) -> dict[str, int]:
        """Number of defects by kind."""
        return dict(collections.Counter(str(defect.kind) for defect in self.defects))

    def summary(self) -> str:
        """The report in a few lines; kinds with many defects show the first of them."""
        lines = [f"voc_folder/{self.name}: {self.folder} -> {self.directory}"]
        lines += [f"  {split}: {count} images" for split, count in self.images.items()]
        boxes = ", ".join(f"{name} {count}" for name, count in self.boxes.items())
        lines.append(
            f"  {sum(self.boxes.values())} boxes ({self.difficult} difficult) of "
            f"{len(self.class_names)} classes: {boxes}"
        )
        lines += [f"  note: {note}" for note in self.notes]
        if not self.defects:
            lines.append("  no defects")
        for kind, count in self.counts().items():
            lines.append(f"  {count} × {kind}")
            same = [defect for defect in self.defects if defect.kind == kind]
            lines += [f"    {defect.file}: {defect.reason}" for defect in same[:_EXAMPLES]]
            if count > _EXAMPLES:
                lines.append(f"    … and {count - _EXAMPLES} more, see report.json")
        return "\n".join(lines)

    def to_json(self) -> str:
        """All of the report, for report.json."""
        fields = dataclasses.asdict(self)
        fields["counts"] = self.counts()
        fields["defects"] = [defect._asdict() for defect in self.defects]
        return json.dumps(fields, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """Reads what ``to_json`` wrote."""
        fields = json.loads(text)
        fields.pop("counts")
        fields["class_names"] = tuple(fields["class_names"])
        fields["defects"] = [
            Defect(Kind(d["kind"]), d["file"], d["reason"]) for d in fields["defects"]
        ]
        return cls(**fields)
