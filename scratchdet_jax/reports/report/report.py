"""The sections in order: the report as text, HTML page and JSON."""

from collections.abc import Sequence
from typing import Any

from scratchdet_jax.errors import plural
from scratchdet_jax.reports.page.output import render
from scratchdet_jax.reports.page.pictures import IGNORED, class_colors
from scratchdet_jax.reports.page.tables import for_json, number, transposed
from scratchdet_jax.reports.report import images, precision, setup, training
from scratchdet_jax.reports.report.study import OpenedRun, RunStudy
from scratchdet_jax.run.checkpoints import versions


class RunsReport:
    """The figures of all runs, by the run's name.

    The templates report.txt and report.html say how all is shown.

    Attributes:
        runs: the figures by section, as in the JSON file.
        curves: steps and values by field.
        images: the worst and the best.
    """

    def __init__(self, opened: Sequence[OpenedRun], threshold: float, chosen: int) -> None:
        """Evaluates one run after the other; only figures and a few pictures are kept."""
        self.runs: dict[str, dict[str, Any]] = {}
        self.curves: dict[str, dict[str, training.Series]] = {}
        self.images: dict[str, list[list[images.Shown]]] = {}
        for one in opened:
            study = RunStudy(one, threshold)
            figures, self.curves[one.name] = training.measure(study)
            ranked, *self.images[one.name] = images.measure(study, chosen)
            self.runs[one.name] = {
                "setup": setup.measure(study),
                "training": figures,
                **precision.measure(study),
                "images": ranked,
            }

    def to_text(self) -> str:
        """Returns the figures for the terminal."""
        return render("report.txt", **self._values())

    def to_dict(self) -> dict[str, Any]:
        """Returns all figures for JSON, where NaN is null."""
        return {"runs": for_json(self.runs)}

    def to_html(self, seconds: float, generator: str) -> str:
        """Returns the report as one self-contained page."""
        class_names = {run["setup"]["class_names"] for run in self.runs.values()}
        return render(
            "report.html",
            **self._values(),
            seconds=seconds,
            generator=generator,
            meanings=precision.MEANINGS,
            ignored=IGNORED,
            class_colours=class_colors(*class_names) if len(class_names) == 1 else {},
            versions=", ".join(f"{name} {version}" for name, version in versions().items()),
        )

    def _values(self) -> dict[str, Any]:
        """Returns what both templates show; `section` gives a section of all runs."""
        runs = list(self.runs.values())
        by_class = self._section("precision")
        common = precision.common_classes(by_class)
        objects = runs[0]["precision"]["objects"]
        splits = dict.fromkeys(
            f"{run['setup']['data']} ({plural(run['setup']['images'], 'image')})" for run in runs
        )
        labels = dict.fromkeys(run["precision"]["label"] for run in runs)
        return {
            "runs": self.runs,
            "first": runs[0],
            "section": self._section,
            "setup": setup,
            "training": training,
            "precision": precision,
            "curves": self.curves,
            "images": self.images,
            "several": len(runs) > 1,
            "splits": list(splits),
            "labels": " or ".join(labels),
            "summary": self._summary(" or ".join(labels)),
            "common_classes": common,
            "empty": [name for name in common if not objects[name]],
            "silent": [name for name, run in self.runs.items() if not run["setup"]["versions"]],
            "any_log": not all(run["training"]["problem"] for run in runs),
        }

    def _section(self, name: str) -> dict[str, dict[str, Any]]:
        return {run: figures[name] for run, figures in self.runs.items()}

    def _summary(self, labels: str) -> list[list[str]]:
        """Returns the main figures, a column a run."""
        heads = [f"mAP ({labels})", "mAP@.5:.95", "constant box"]
        columns = [["", *heads, "step", "images", "objects", "classes"]]
        for name, run in self.runs.items():
            scores, about = run["precision"], run["setup"]
            means = (scores[field] for field in ("mean", "strict_mean", "constant_mean"))
            counts = (about["step"], about["images"], sum(scores["objects"].values()))
            figures = [f"{count:,}" for count in (*counts, len(about["class_names"]))]
            columns.append([name, *(number(mean, 3) for mean in means), *figures])
        return transposed(columns)
