"""The sections in order: all findings, and the report as text, HTML page and JSON."""

from collections.abc import Callable
from typing import Any, NamedTuple

from scratchdet_jax.datasets.duplicates import COLOUR_LEVELS, HASH_BITS
from scratchdet_jax.reports.doctor.sections.anchors import Anchors
from scratchdet_jax.reports.doctor.sections.boxes import Boxes
from scratchdet_jax.reports.doctor.sections.constant import ConstantScore
from scratchdet_jax.reports.doctor.sections.defects import Defects
from scratchdet_jax.reports.doctor.sections.duplicates import Duplicates
from scratchdet_jax.reports.doctor.sections.images import ImageChecks
from scratchdet_jax.reports.doctor.sections.samples import draw_samples
from scratchdet_jax.reports.doctor.sections.splits import Splits
from scratchdet_jax.reports.doctor.sections.unreached import Unreached
from scratchdet_jax.reports.doctor.study import DRAWS, DataSetStudy
from scratchdet_jax.reports.page.pictures import IGNORED, class_colors, photo
from scratchdet_jax.reports.page.templates import render
from scratchdet_jax.reports.page.wording import SEVERITIES, Finding, for_json


class DataSetReport(NamedTuple):
    """The figures of a study, section by section.

    A section has `measure(study)` and `findings(study)`; its fields are its keys in the JSON file.
    The templates doctor.txt and doctor.html say how it is shown.
    """

    splits: Splits
    boxes: Boxes
    constant: ConstantScore
    images: ImageChecks
    defects: Defects
    duplicates: Duplicates
    anchors: Anchors
    unreached: Unreached

    @classmethod
    def measure(cls, study: DataSetStudy) -> "DataSetReport":
        """Measures the figures of every section."""
        return cls(*(section.measure(study) for section in cls.__annotations__.values()))

    def findings(self, study: DataSetStudy) -> list[Finding]:
        """Returns all findings, most severe first."""
        found = [finding for section in self for finding in section.findings(study)]
        return sorted(found, key=lambda f: (SEVERITIES.index(f.severity), -f.weight))

    def to_text(self, study: DataSetStudy, seconds: float) -> str:
        """Returns the report for the terminal, the findings last."""
        return render("doctor.txt", **self._values(study), seconds=seconds)

    def to_html(self, study: DataSetStudy, sample_count: int, seconds: Callable[[], float]) -> str:
        """Returns the report as one self-contained page: inline style, charts and pictures.

        `seconds` returns the time elapsed; it is called when all pictures are drawn.
        """
        return render(
            "doctor.html",
            **self._values(study),
            seconds=seconds,
            samples=draw_samples(study, sample_count),
            photo=photo,
            class_colours=class_colors(study.class_names),
            ignored=IGNORED,
        )

    def to_dict(self, study: DataSetStudy, seconds: float) -> dict[str, Any]:
        """Returns all figures for JSON, where NaN is null."""
        figures = {
            "dataset": study.dataset,
            "recipe": study.config.name,
            "image_size": study.image_size,
            "canvas": study.canvas,
            "max_boxes": study.config.data.max_boxes,
            "threshold": study.threshold,
            "train_on_ignored": study.config.data.train_on_ignored,
            "class_names": study.class_names,
        }
        for section in self:
            figures |= section._asdict()
        return for_json({**figures, "findings": self.findings(study), "seconds": seconds})

    def _values(self, study: DataSetStudy) -> dict[str, Any]:
        """Returns what both templates show."""
        return {
            "report": self,
            "study": study,
            "findings": self.findings(study),
            "draws": DRAWS,
            "hash_bits": HASH_BITS,
            "colour_levels": COLOUR_LEVELS,
        }
