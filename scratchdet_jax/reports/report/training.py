"""The curves of the log, throughput and memory."""

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from scratchdet_jax.config.defaults import number_of_steps
from scratchdet_jax.errors import UserError
from scratchdet_jax.reports.curves import CHARTS, RunRecords, draw_curve, read_run, set_scale
from scratchdet_jax.reports.page.charts import new_chart, run_colour, set_tooltip, to_svg
from scratchdet_jax.reports.page.tables import number, percent, transposed
from scratchdet_jax.reports.report.study import RunStudy

_LOADER, _STEP = 0.5, 0.1  # shares of the time

Series = tuple[np.ndarray, np.ndarray]
Figures = Mapping[str, Any]


def measure(study: RunStudy) -> tuple[dict[str, Any], dict[str, Series]]:
    """Reads metrics.jsonl; a log that is missing or garbled is a sentence in the report.

    Returns:
        The figures, and the curves: steps and values by field. Figures: `problem`, why there is no
        log, or ""; the last logged `step`; `steps` of the complete run; `diverged_at`, the step at
        which a value was not finite, or None; the last `loss`; the median of `images_per_second`;
        the mean `loader_wait`, a share of the time; `bound`, a sentence on what bounds the
        throughput; the largest `host_memory` and `device_memory` (of the fullest device) in bytes.
    """
    records, problem = RunRecords(study.name, [], []), ""
    try:
        records = read_run(study.run.workdir, study.name)
    except UserError as error:
        problem = str(error)
    curves = {field: records.curve(field) for field in CHARTS}
    last = [record["step"] for record in (*records.train, *records.eval)]
    wait = _reduced(curves["loader_wait"], statistics.fmean)
    figures = {
        "problem": problem,
        "step": max([*last, records.diverged_at or 0]),
        "steps": number_of_steps(study.run.info.config),
        "diverged_at": records.diverged_at,
        "loss": _reduced(curves["loss"], lambda values: values[-1]),
        "images_per_second": _reduced(curves["images_per_second"], statistics.median),
        "loader_wait": wait,
        "bound": "" if problem else bound(wait),
        "host_memory": _reduced(records.curve("host_memory"), max),
        "device_memory": _reduced(records.curve("device_memory"), max),
    }
    return figures, curves


def bound(wait: float | None) -> str:
    """Returns what bounds the throughput, by the share of the time that the loop waits."""
    if wait is None:
        return "the log does not say whether the loader or the step bounds it (an older version)"
    cause = "either the loader or the step bounds it"
    if wait >= _LOADER:
        cause = "the loader bounds it"
    elif wait <= _STEP:
        cause = "the step bounds it"
    return f"{cause}: the loop waited {percent(wait)} of the time for the loader"


def rows(runs: Mapping[str, Figures]) -> list[list[str]]:
    """Returns throughput, memory and what bounds them."""
    waiting, memory = "waiting for the loader", "largest memory of"
    fields = ["steps logged", "last loss", "images/s", waiting]
    columns = [["", *fields, f"{memory} the process", f"{memory} a device"]]
    for name, run in runs.items():
        columns.append(
            [
                name,
                f"{run['step']:,} of {run['steps']:,}",
                "–" if run["loss"] is None else f"{run['loss']:.4g}",
                number(run["images_per_second"], 1),
                percent(run["loader_wait"]),
                _gibibytes(run["host_memory"]),
                _gibibytes(run["device_memory"]),
            ]
        )
    return transposed(columns)


def sentences(run: Figures) -> Iterator[str]:
    """Returns what the log says, in words."""
    if run["problem"]:
        yield f"no curves: {run['problem']}."
    if run["images_per_second"] is not None:
        yield f"{run['images_per_second']:.1f} images/s (median of the log); {run['bound']}."
    if run["diverged_at"] is not None:
        yield f"the run diverged at step {run['diverged_at']}."


def charts(
    runs: Mapping[str, Figures], curves: Mapping[str, Mapping[str, Series]]
) -> list[tuple[Markup, str]]:
    """Draws the curves of all runs, a chart a field, each with its caption."""
    charts = []
    for field, caption in CHARTS.items():
        figure, axes = new_chart()
        ends = []
        for n, name in enumerate(runs):
            steps, values = curves[name][field]
            draw_curve(axes, steps, values, run_colour(n), name, dots=field == "mAP")
            set_tooltip(axes.lines[-1], name)
            finite = values[np.isfinite(values)]
            if len(finite):
                ends.append(f"{name} from {finite[0]:.3g} to {finite[-1]:.3g}")
        if field == "loader_wait" and not ends:
            continue  # an older version wrote the log
        set_scale(axes)
        axes.set_xlim(0, max(1, *(run["step"] for run in runs.values())))
        if field == "loader_wait":
            axes.set_ylim(0, 1)
        title = f"{caption.partition(':')[0]}: {'; '.join(ends) or 'no data'}"
        charts.append((to_svg(figure, title), caption))
    return charts


def _gibibytes(count: float | None) -> str:
    return "–" if count is None else f"{count / 2**30:.2f} GiB"


def _reduced(curve: Series, function: Any) -> float | None:
    finite = curve[1][np.isfinite(curve[1])].tolist()
    return float(function(finite)) if finite else None
