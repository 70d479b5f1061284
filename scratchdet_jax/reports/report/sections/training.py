"""The curves of the log, throughput and memory."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from scratchdet_jax.config.defaults import number_of_steps
from scratchdet_jax.errors import UserError
from scratchdet_jax.reports.curves import draw_curve, set_scale
from scratchdet_jax.reports.page.charts import new_chart, run_colour, set_tooltip, to_svg
from scratchdet_jax.reports.page.tables import Cell
from scratchdet_jax.reports.page.wording import number, percent
from scratchdet_jax.reports.reading import fluctuation, read_run, series
from scratchdet_jax.reports.report.study import RunStudy

_LOADER, _STEP = 0.5, 0.1  # shares of the time
_CHARTS = {
    "loss": "Loss",
    "loss_classification": "Loss of the classes",
    "loss_localization": "Loss of the boxes",
    "learning_rate": "Learning rate",
    "gradient_norm": "Gradient norm (L2)",
    "fluctuation": "Fluctuation of the gradient norm: mean |‖g(t)‖ − ‖g(t − 1)‖| over the updates "
    "since the previous line of the log",
    "mAP": "mAP on the eval split while training",
    "images_per_second": "Images per second",
    "loader_wait": "Share of the time in which the loop waits for the loader",
}

Series = tuple[np.ndarray, np.ndarray]


class Training(NamedTuple):
    """What the log of a run says.

    Attributes:
        problem: why there is no log; "" if there is one.
        step: the last logged one.
        steps: of the complete run.
        diverged_at: the step at which a value was not finite, or None.
        loss: at the last logged step.
        images_per_second: the median.
        loader_wait: the mean share of the time in which the loop waited for the loader.
        bound: a sentence on what bounds the throughput.
        host_memory: the largest, in bytes.
        device_memory: likewise, of the fullest device.
        curves: steps and values by field.
    """

    problem: str
    step: int
    steps: int
    diverged_at: int | None
    loss: float | None
    images_per_second: float | None
    loader_wait: float | None
    bound: str
    host_memory: float | None
    device_memory: float | None
    curves: dict[str, Series]

    @classmethod
    def measure(cls, study: RunStudy) -> "Training":
        """Reads metrics.jsonl; a log that is missing or garbled is a sentence in the report."""
        steps = number_of_steps(study.run.info.config)
        try:
            records = read_run(study.run.workdir, study.name)
        except UserError as error:
            return cls(str(error), 0, steps, None, None, None, None, "", None, None, {})
        curves = {
            field: _numbers(records.eval if field == "mAP" else records.train, field)
            for field in _CHARTS
            if field != "fluctuation"
        }
        curves["fluctuation"] = fluctuation(
            [r for r in records.train if _is_number(r.get("gradient_norm"))]
        )
        wait = _reduced(curves["loader_wait"][1], statistics.fmean)
        last = [record["step"] for record in (*records.train, *records.eval)]
        return cls(
            "",
            max([*last, records.diverged_at or 0]),
            steps,
            records.diverged_at,
            _reduced(curves["loss"][1], lambda values: values[-1]),
            _reduced(curves["images_per_second"][1], statistics.median),
            wait,
            _bound(wait),
            _reduced(_numbers(records.train, "host_memory")[1], max),
            _reduced(_numbers(records.train, "device_memory")[1], max),
            curves,
        )

    @staticmethod
    def rows(runs: Mapping[str, "Training"]) -> list[list[Cell]]:
        """Returns throughput, memory and what bounds them."""
        columns = [
            [
                "",
                "steps logged",
                "last loss",
                "images/s",
                "waiting for the loader",
                "largest memory of the process",
                "largest memory of a device",
            ]
        ]
        for name, t in runs.items():
            columns.append(
                [
                    name,
                    f"{t.step:,} of {t.steps:,}",
                    "–" if t.loss is None else f"{t.loss:.4g}",
                    number(t.images_per_second, 1),
                    percent(t.loader_wait),
                    _gibibytes(t.host_memory),
                    _gibibytes(t.device_memory),
                ]
            )
        return [list(row) for row in zip(*columns, strict=True)]

    def sentences(self) -> Iterator[str]:
        """Returns what the log says, in words."""
        if self.problem:
            yield f"no curves: {self.problem}."
            return
        if self.images_per_second is not None:
            yield f"{self.images_per_second:.1f} images/s (median of the log); {self.bound}."
        if self.diverged_at is not None:
            yield f"the run diverged at step {self.diverged_at}."

    @staticmethod
    def charts(runs: Mapping[str, "Training"]) -> list[tuple[Markup, str]]:
        """Draws the curves of all runs, a chart a field, each with its caption."""
        charts = []
        for field, caption in _CHARTS.items():
            figure, axes = new_chart()
            ends = []
            for n, (name, run) in enumerate(runs.items()):
                steps, values = run.curves.get(field, (np.zeros(0), np.zeros(0)))
                draw_curve(axes, steps, values, run_colour(n), name, dots=field == "mAP")
                set_tooltip(axes.lines[-1], name)
                finite = values[np.isfinite(values)]
                if len(finite):
                    ends.append(f"{name} from {finite[0]:.3g} to {finite[-1]:.3g}")
            if field == "loader_wait" and not ends:
                continue  # an older version wrote the log
            set_scale(axes)
            axes.set_xlim(0, max(1, *(run.step for run in runs.values())))
            if field == "loader_wait":
                axes.set_ylim(0, 1)
            title = f"{caption.partition(':')[0]}: {'; '.join(ends) or 'no data'}"
            charts.append((to_svg(figure, title), caption))
        return charts


def _gibibytes(count: float | None) -> str:
    return "–" if count is None else f"{count / 2**30:.2f} GiB"


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _numbers(records: Sequence[Mapping[str, Any]], field: str) -> Series:
    """Returns the series of a field, passing over what is no number."""
    return series([r for r in records if _is_number(r.get(field))], field)


def _reduced(values: np.ndarray, function: Any) -> float | None:
    finite = values[np.isfinite(values)].tolist()
    return float(function(finite)) if finite else None


def _bound(wait: float | None) -> str:
    if wait is None:
        return "the log does not say whether the loader or the step bounds it (an older version)"
    share = f"the loop waited {percent(wait)} of the time for the loader"
    if wait >= _LOADER:
        return f"the loader bounds it: {share}"
    if wait <= _STEP:
        return f"the step bounds it: {share}"
    return f"either the loader or the step bounds it: {share}"
