"""The sections in order: the report as text, HTML page and JSON."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.errors import plural
from scratchdet_jax.reports.page.layout import document, facts, html_table, soft, text_table
from scratchdet_jax.reports.page.pictures import Picture
from scratchdet_jax.reports.page.wording import number
from scratchdet_jax.reports.report.naming import legend, value
from scratchdet_jax.reports.report.sections.confusion import Confusion
from scratchdet_jax.reports.report.sections.errors import Errors
from scratchdet_jax.reports.report.sections.images import Images
from scratchdet_jax.reports.report.sections.precision import Precision
from scratchdet_jax.reports.report.sections.setup import Setup
from scratchdet_jax.reports.report.sections.sizes import Sizes
from scratchdet_jax.reports.report.sections.training import Training
from scratchdet_jax.reports.report.study import OpenedRun, Study
from scratchdet_jax.run.versions import versions


class RunReport(NamedTuple):
    """The figures of one run, section by section.

    A section has `measure(study)`, and `to_text` (lines) and `to_html` (elements), which take the
    section of every run by the run's name. Its fields are its keys in the JSON file, but for those
    that it names in NOT_IN_JSON.
    """

    setup: Setup
    training: Training
    precision: Precision
    errors: Errors
    sizes: Sizes
    confusion: Confusion
    images: Images


class Report(NamedTuple):
    """The figures of all runs, by the run's name, and the splits on which they were scored."""

    runs: dict[str, RunReport]
    sources: dict[str, DetectionSource]

    @classmethod
    def measure(cls, opened: Sequence[OpenedRun], threshold: float, chosen: int) -> "Report":
        """Evaluates one run after the other; only figures and a few images' boxes are kept."""
        runs, sources = {}, {}
        for one in opened:
            study = Study(one, threshold, chosen)
            sections = RunReport.__annotations__.values()
            runs[one.name] = RunReport(*(section.measure(study) for section in sections))
            sources[one.name] = study.source
        return cls(runs, sources)

    def section(self, field: str) -> dict[str, Any]:
        """One section of all runs."""
        return {name: getattr(run, field) for name, run in self.runs.items()}

    def to_text(self) -> str:
        """The figures for the terminal."""
        lines = text_table(self._summary())
        for field, section in RunReport.__annotations__.items():
            lines += section.to_text(self.section(field))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All figures for JSON, where NaN is null."""
        return {"runs": {name: _record(run) for name, run in self.runs.items()}}

    def pictures(self) -> dict[str, dict[str, tuple[Picture, Picture] | None]]:
        """The pictures of each run by name; see `Images.pictures`."""
        return {name: run.images.pictures(self.sources[name]) for name, run in self.runs.items()}

    def to_html(
        self,
        pictures: Mapping[str, Mapping[str, tuple[Picture, Picture] | None]],
        seconds: float,
        generator: str,
    ) -> str:
        """The report as one self-contained page."""
        titles = {
            "setup": "Config and versions",
            "training": "Training",
            "precision": "Average precision",
            "errors": "What the errors cost",
            "sizes": "By object size",
            "confusion": "Confusion matrix",
        }
        parts = {
            field: (title, list(RunReport.__annotations__[field].to_html(self.section(field))))
            for field, title in titles.items()
        }
        images = list(Images.to_html(self.section("images"), pictures))
        parts["images"] = ("Worst and best images", images)
        program = ", ".join(f"{name} {version}" for name, version in versions().items())
        footer = soft(f"Evaluated in {seconds:.0f} s with {html.escape(program)}.")
        title = " and ".join(self.runs)
        return document(f"{title}: report", self._header(title), parts, footer, generator)

    def _header(self, title: str) -> str:
        splits = dict.fromkeys(
            f"{run.setup.data} ({plural(run.setup.images, 'image')})" for run in self.runs.values()
        )
        scored = soft(f"Scored on {html.escape('; '.join(splits))}.")
        note = ""
        if len(splits) > 1:
            note = soft("The runs were scored on different splits: --split names one for all.")
        heading = f"<h1>{html.escape(title)}</h1>{scored}{note}"
        if len(self.runs) > 1:
            return f"{heading}{legend(self.runs)}{html_table(self._summary())}"
        return f"{heading}{facts(dict(self._summary()[1:]))}"

    def _summary(self) -> list[list[str]]:
        """The main figures, a column a run."""
        labels = dict.fromkeys(run.precision.label for run in self.runs.values())
        rule = f"mAP ({' or '.join(labels)})"
        rows = {
            rule: lambda run: number(value(run.precision.mean), 3),
            "mAP@.5:.95": lambda run: number(value(run.precision.strict_mean), 3),
            "constant box": lambda run: number(value(run.precision.constant_mean), 3),
            "step": lambda run: f"{run.setup.step:,}",
            "images": lambda run: f"{run.setup.images:,}",
            "objects": lambda run: f"{sum(run.precision.objects.values()):,}",
            "classes": lambda run: f"{len(run.setup.class_names):,}",
        }
        return [
            ["", *self.runs],
            *([title, *map(read, self.runs.values())] for title, read in rows.items()),
        ]


def _record(run: RunReport) -> dict[str, Any]:
    return {
        field: {
            key: _plain(value)
            for key, value in section._asdict().items()
            if key not in getattr(section, "NOT_IN_JSON", ())
        }
        for field, section in run._asdict().items()
    }


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
