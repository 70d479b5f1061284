"""The curves of the log, throughput and memory."""

import html
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from scratchdet_jax.config.fields import number_of_steps
from scratchdet_jax.errors import UserError
from scratchdet_jax.reports.page.charts import Curve, lines_svg, run_style
from scratchdet_jax.reports.page.layout import figure, html_table, soft, text_table
from scratchdet_jax.reports.page.wording import percent
from scratchdet_jax.reports.reading import fluctuation, read_run, running, series
from scratchdet_jax.reports.report.naming import legend
from scratchdet_jax.reports.report.study import Study

_POINTS = 80  # a longer curve is drawn as a running mean with a band
_LOGARITHMIC_FROM = 100  # times the median, as in tools.plot
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

    NOT_IN_JSON = ("curves",)

    @classmethod
    def measure(cls, study: Study) -> "Training":
        """Reads metrics.jsonl; a log that is missing or garbled is a sentence in the report."""
        steps = number_of_steps(study.run.info.config)
        try:
            records = read_run(study.run.workdir, study.name)
        except UserError as error:
            return cls(str(error), 0, steps, *[None] * 4, "", None, None, {})
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
    def to_text(runs: Mapping[str, "Training"]) -> Iterator[str]:
        """Throughput, memory and what bounds them."""
        yield "\nTRAINING"
        yield from text_table(_table(runs))
        yield from (f"  {line}" for line in _sentences(runs))

    @staticmethod
    def to_html(runs: Mapping[str, "Training"]) -> Iterator[str]:
        """Curves, sentences and figures."""
        for line in _sentences(runs):
            yield f"<p>{html.escape(line)}</p>"
        yield html_table(_table(runs))
        if all(training.problem for training in runs.values()):
            return
        yield legend(runs)
        charts = []
        for field, caption in _CHARTS.items():
            curves = [
                _curve(training.curves[field], run_style(n), name, dots=field == "mAP")
                for n, (name, training) in enumerate(runs.items())
                if field in training.curves
            ]
            if field == "loader_wait" and not any(len(curve.x) for curve in curves):
                continue
            charts.append(figure(_chart(field, curves, runs), caption, "chart"))
        yield f'<div class="charts spaced">{"".join(charts)}</div>'
        yield soft(
            "Horizontal: the step. Long curves are running means, with a band from the smallest to "
            "the largest value."
        )


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _numbers(records: Sequence[Mapping[str, Any]], field: str) -> Series:
    """The series of a field, passing over what is no number."""
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
    return f"now the loader, now the step bounds it: {share}"


def _sentences(runs: Mapping[str, Training]) -> Iterator[str]:
    for name, training in runs.items():
        start = f"{name}: " if len(runs) > 1 else ""
        if training.problem:
            yield f"{start}no curves: {training.problem}."
            continue
        if training.images_per_second is not None:
            rate = f"{training.images_per_second:.1f} images/s (median of the log)"
            yield f"{start}{rate}; {training.bound}."
        if training.diverged_at is not None:
            yield f"{start}the run diverged at step {training.diverged_at}."


def _table(runs: Mapping[str, Training]) -> list[list[str]]:
    def of(value: float | None, text: str) -> str:
        return "–" if value is None else text.format(value)

    def gib(value: float | None) -> str:
        return "–" if value is None else f"{value / 2**30:.2f} GiB"

    rows = {
        "steps logged": lambda t: f"{t.step:,} of {t.steps:,}",
        "last loss": lambda t: of(t.loss, "{:.4g}"),
        "images/s": lambda t: of(t.images_per_second, "{:.1f}"),
        "waiting for the loader": lambda t: percent(
            math.nan if t.loader_wait is None else t.loader_wait
        ),
        "largest memory of the process": lambda t: gib(t.host_memory),
        "largest memory of a device": lambda t: gib(t.device_memory),
    }
    return [["", *runs], *([title, *map(read, runs.values())] for title, read in rows.items())]


def _curve(values: Series, style: str, name: str, dots: bool) -> Curve:
    """A curve of at most about twice _POINTS points; a longer one as a running mean."""
    steps, numbers = values
    window = len(numbers) // _POINTS
    if window < 2:
        return Curve(steps.tolist(), numbers.tolist(), style, name, dots=dots)
    mean, low, high = running(numbers, window)
    steps = steps[window // 2 :][: len(mean)]
    every = slice(None, None, max(1, window // 2))
    parts = (part[every].tolist() for part in (steps, mean, low, high))
    x, y, low, high = parts
    return Curve(x, y, style, name, low, high)


def _chart(field: str, curves: Sequence[Curve], runs: Mapping[str, Training]) -> str:
    values = np.array([v for curve in curves for v in curve.y if math.isfinite(v)])
    log = bool(len(values)) and values.max() > _LOGARITHMIC_FROM * np.median(values) > 0
    ends = [
        f"{curve.name} from {curve.y[0]:.3g} to {curve.y[-1]:.3g}" for curve in curves if curve.y
    ]
    title = f"{_CHARTS[field].partition(':')[0]}: {'; '.join(ends) or 'no data'}"
    across = (0.0, float(max(max(t.step for t in runs.values()), 1)))
    top = 1.0 if field == "loader_wait" else None
    return lines_svg(curves, title, across=across, log=log, top=top)
