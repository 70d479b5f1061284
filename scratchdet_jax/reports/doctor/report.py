"""The sections in order: all findings, and the report as text, HTML page and JSON."""

import time
from typing import Any

from scratchdet_jax.datasets.duplicates import COLOUR_LEVELS, HASH_BITS
from scratchdet_jax.reports.doctor import anchors, boxes, images, splits
from scratchdet_jax.reports.doctor.study import DRAWS, DataSetStudy
from scratchdet_jax.reports.page.output import render
from scratchdet_jax.reports.page.pictures import IGNORED, class_colors, photo
from scratchdet_jax.reports.page.tables import SEVERITIES, Finding, for_json

SECTIONS = (splits, boxes, images, anchors)
MARK = "scratchdet doctor"
"""What the page and the JSON file hold near their beginning."""


class DataSetReport:
    """What a study shows.

    A section is a module with `measure(study)`, whose figures are keys of the JSON file, and
    `findings(study, figures)`. The templates doctor.txt and doctor.html show them.

    Attributes:
        study: the data set.
        figures: of all sections.
        findings: of all sections, most severe first.
    """

    def __init__(self, study: DataSetStudy) -> None:
        """Measures the figures of every section."""
        self.study = study
        self.figures: dict[str, Any] = {}
        for section in SECTIONS:
            self.figures |= section.measure(study)
        self.findings: list[Finding] = []
        for section in SECTIONS:
            self.findings += section.findings(study, self.figures)
        self.findings.sort(key=lambda f: (SEVERITIES.index(f.severity), -f.weight))

    def to_text(self, seconds: float) -> str:
        """Returns the report for the terminal, the findings last."""
        return render("doctor.txt", **self._values(), seconds=seconds)

    def to_html(self, sample_count: int, started: float) -> str:
        """Returns the report as one self-contained page: inline style, charts and pictures.

        `started` is when the command started, by `time.perf_counter`.
        """
        return render(
            "doctor.html",
            **self._values(),
            generator=MARK,
            samples=images.draw_samples(self.study, sample_count),
            photo=photo,
            class_colours=class_colors(self.study.class_names),
            ignored=IGNORED,
            seconds=lambda: time.perf_counter() - started,
        )

    def to_dict(self, seconds: float) -> dict[str, Any]:
        """Returns all figures for JSON, where NaN is null."""
        study = self.study
        about = {
            "generator": MARK,
            "dataset": study.dataset,
            "recipe": study.config.name,
            "image_size": study.image_size,
            "canvas": study.canvas,
            "max_boxes": study.config.data.max_boxes,
            "threshold": study.threshold,
            "train_on_ignored": study.config.data.train_on_ignored,
            "class_names": study.class_names,
        }
        return for_json({**about, **self.figures, "findings": self.findings, "seconds": seconds})

    def _values(self) -> dict[str, Any]:
        """Returns what both templates show."""
        return {
            "study": self.study,
            "figures": self.figures,
            "findings": self.findings,
            **{section.__name__.rpartition(".")[2]: section for section in SECTIONS},
            "draws": DRAWS,
            "hash_bits": HASH_BITS,
            "colour_levels": COLOUR_LEVELS,
        }
