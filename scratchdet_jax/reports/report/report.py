"""The sections in order: the report as text, HTML page and JSON."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.errors import plural
from scratchdet_jax.reports.page.pictures import IGNORED, Picture, class_colors
from scratchdet_jax.reports.page.templates import render
from scratchdet_jax.reports.page.wording import for_json, number
from scratchdet_jax.reports.report.sections.confusion import Confusion
from scratchdet_jax.reports.report.sections.errors import MEANINGS, Errors
from scratchdet_jax.reports.report.sections.images import RankedImages
from scratchdet_jax.reports.report.sections.precision import Precision, common_classes
from scratchdet_jax.reports.report.sections.setup import Setup
from scratchdet_jax.reports.report.sections.sizes import Sizes
from scratchdet_jax.reports.report.sections.training import Training
from scratchdet_jax.reports.report.study import OpenedRun, RunStudy
from scratchdet_jax.run.checkpoints import versions

_NOT_IN_JSON = {"training": ("curves",), "images": ("worst", "best", "class_names")}


class RunFigures(NamedTuple):
    """The figures of one run, section by section.

    A section has `measure(study)`; its fields are its keys in the JSON file, but for those in
    _NOT_IN_JSON. What compares runs takes the section of every run by the run's name. The
    templates report.txt and report.html say how all is shown.
    """

    setup: Setup
    training: Training
    precision: Precision
    errors: Errors
    sizes: Sizes
    confusion: Confusion
    images: RankedImages


class RunsReport(NamedTuple):
    """The figures of all runs, by the run's name, and the splits on which they were scored."""

    runs: dict[str, RunFigures]
    sources: dict[str, DetectionSource]

    @classmethod
    def measure(cls, opened: Sequence[OpenedRun], threshold: float, chosen: int) -> "RunsReport":
        """Evaluates one run after the other; only figures and a few images' boxes are kept."""
        runs, sources = {}, {}
        for one in opened:
            study = RunStudy(one, threshold, chosen)
            sections = RunFigures.__annotations__.values()
            runs[one.name] = RunFigures(*(section.measure(study) for section in sections))
            sources[one.name] = study.source
        return cls(runs, sources)

    def to_text(self) -> str:
        """Returns the figures for the terminal."""
        return render("report.txt", **self._values())

    def to_dict(self) -> dict[str, Any]:
        """Returns all figures for JSON, where NaN is null."""
        return {"runs": {name: for_json(_record(run)) for name, run in self.runs.items()}}

    def pictures(self) -> dict[str, dict[str, tuple[Picture, Picture] | None]]:
        """Draws the pictures of each run by name; see `RankedImages.pictures`."""
        return {name: run.images.pictures(self.sources[name]) for name, run in self.runs.items()}

    def to_html(
        self,
        pictures: Mapping[str, Mapping[str, tuple[Picture, Picture] | None]],
        seconds: float,
        generator: str,
    ) -> str:
        """Returns the report as one self-contained page."""
        class_names = {run.images.class_names for run in self.runs.values()}
        return render(
            "report.html",
            **self._values(),
            pictures=pictures,
            seconds=seconds,
            generator=generator,
            meanings=MEANINGS,
            ignored=IGNORED,
            class_colours=class_colors(*class_names) if len(class_names) == 1 else {},
            versions=", ".join(f"{name} {version}" for name, version in versions().items()),
        )

    def _values(self) -> dict[str, Any]:
        """Returns what both templates show; `sections` has each section of all runs."""
        sections = {
            field: {name: getattr(run, field) for name, run in self.runs.items()}
            for field in RunFigures._fields
        }
        first = next(iter(self.runs.values()))
        common = common_classes(sections["precision"])
        splits = dict.fromkeys(
            f"{run.setup.data} ({plural(run.setup.images, 'image')})" for run in self.runs.values()
        )
        return {
            "runs": self.runs,
            "first": first,
            "sections_of_runs": sections,
            "several": len(self.runs) > 1,
            "splits": list(splits),
            "summary": self._summary(),
            "labels": list(dict.fromkeys(run.precision.label for run in self.runs.values())),
            "common_classes": common,
            "empty": [name for name in common if not first.precision.objects[name]],
            "silent": [name for name, run in self.runs.items() if not run.setup.versions],
            "any_log": not all(run.training.problem for run in self.runs.values()),
        }

    def _summary(self) -> list[list[str]]:
        """Returns the main figures, a column a run."""
        labels = dict.fromkeys(run.precision.label for run in self.runs.values())
        heads = [f"mAP ({' or '.join(labels)})", "mAP@.5:.95", "constant box"]
        columns = [["", *heads, "step", "images", "objects", "classes"]]
        for name, (setup, _, precision, *_) in self.runs.items():
            means = (precision.mean, precision.strict_mean, precision.constant_mean)
            counts = (setup.step, setup.images, sum(precision.objects.values()))
            figures = [number(mean, 3) for mean in means]
            figures += [f"{count:,}" for count in (*counts, len(setup.class_names))]
            columns.append([name, *figures])
        return [list(row) for row in zip(*columns, strict=True)]


def _record(run: RunFigures) -> dict[str, Any]:
    return {
        field: {
            key: value
            for key, value in section._asdict().items()
            if key not in _NOT_IN_JSON.get(field, ())
        }
        for field, section in run._asdict().items()
    }
