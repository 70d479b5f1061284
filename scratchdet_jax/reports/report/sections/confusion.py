"""The confusion matrix: which class is taken for which."""

import html
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from scratchdet_jax.reports.confusion import confusion_matrix
from scratchdet_jax.reports.page.layout import html_table, soft, text_table
from scratchdet_jax.reports.page.wording import percent
from scratchdet_jax.reports.report.study import Study

_IOU = 0.5
_WRITTEN = 12  # a matrix of more classes is a picture
_PAIRS = 20
NOTHING = "background"


class Confusion(NamedTuple):
    """A matrix at a score threshold, IoU 0.5.

    Attributes:
        class_names: of rows and columns, the background last.
        threshold: lowest score of a detection.
        matrix: [C + 1, C + 1] counts; row: ground truth, column: detection.
    """

    class_names: list[str]
    threshold: float
    matrix: list[list[int]]

    @classmethod
    def measure(cls, study: Study) -> "Confusion":
        """Pairs detections with ground truth."""
        evaluation = study.evaluation
        matrix = confusion_matrix(
            evaluation.detections,
            evaluation.ground_truth,
            len(study.class_names),
            score=study.threshold,
            iou=_IOU,
        )
        last = np.roll(matrix, (-1, -1), axis=(0, 1))  # 0, the background, to the end
        return cls([*study.class_names, NOTHING], study.threshold, last.tolist())

    def pairs(self) -> list[tuple[str, str, int, float]]:
        """Class, the other class it was taken for, how often, and the share; most frequent first.

        Without the background; the share is that of the class's objects.
        """
        found = []
        for row, name in enumerate(self.class_names[:-1]):
            total = sum(self.matrix[row])
            for column, other in enumerate(self.class_names[:-1]):
                count = self.matrix[row][column]
                if row != column and count:
                    found.append((name, other, count, count / total))
        return sorted(found, key=lambda pair: -pair[2])

    @staticmethod
    def to_text(runs: Mapping[str, "Confusion"]) -> Iterator[str]:
        """The most frequent confusions."""
        first = next(iter(runs.values()))
        yield f"\nCONFUSION (score from {first.threshold:g}, IoU from {_IOU:g})"
        for name, run in runs.items():
            where = f"{name}: " if len(runs) > 1 else ""
            pairs = run.pairs()[:5]
            if not pairs:
                yield f"  {where}no object was taken for another class"
            else:
                yield f"  {where}most frequent"
                yield from text_table(_pair_rows(pairs))

    @staticmethod
    def to_html(runs: Mapping[str, "Confusion"]) -> Iterator[str]:
        """A matrix for each run."""
        first = next(iter(runs.values()))
        yield soft(
            f"Detections with a score from {first.threshold:g}. In descending order of IoU (from "
            f"{_IOU:g}), an object and a detection become a pair whatever their classes. Row: the "
            "class of the object; column: that of the detection. Column background: objects that "
            "were not found; row background: detections of nothing. The tint is the share of the "
            "row."
        )
        for name, run in runs.items():
            if len(runs) > 1:
                yield f"<h3>{html.escape(name)}</h3>"
            if not any(map(any, run.matrix)):
                yield soft("No objects and no detections: nothing to confuse.")
                continue
            small = len(run.class_names) - 1 <= _WRITTEN
            yield _written(run) if small else _drawn(run)
            if small:
                continue
            if pairs := run.pairs()[:_PAIRS]:
                yield "<h3>Most frequent confusions</h3>"
                yield html_table(_pair_rows(pairs))
            else:
                yield soft("No object was taken for another class.")


def _pair_rows(pairs: list[tuple[str, str, int, float]]) -> list[list[str]]:
    rows = [[name, other, f"{count:,}", percent(share)] for name, other, count, share in pairs]
    return [["class", "taken for", "objects", "share"], *rows]


def _written(run: Confusion) -> str:
    """The matrix as a table."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *run.class_names))
    rows = []
    for n, (name, counts) in enumerate(zip(run.class_names, run.matrix, strict=True)):
        cells = []
        for m, count in enumerate(counts):
            share = count / sum(counts) if count else 0.0
            style = "hit" if n == m else "slip"
            empty = n == m == len(run.class_names) - 1
            cells.append(
                f'<td class="share {style}" style="--share:{share:.3f}">'
                f"{'' if empty else f'{count:,}'}</td>"
            )
        rows.append(f'<tr><th scope="row">{html.escape(name)}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="scroll"><table class="matrix"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _drawn(run: Confusion) -> str:
    """The matrix as a picture: a square per cell, its share of the row as its opacity."""
    count = len(run.class_names)
    cells = []
    for row, counts in enumerate(run.matrix):
        total = sum(counts) or 1
        for column, number in enumerate(counts):
            if number:
                style = "hit" if row == column else "slip"
                text = f"{run.class_names[row]} as {run.class_names[column]}: {number:,}"
                cells.append(
                    f'<rect class="{style}" x="{column}" y="{row}" width="1" height="1" '
                    f'fill-opacity="{max(number / total, 0.04):.2f}">'
                    f"<title>{html.escape(text)}</title></rect>"
                )
    caption = (
        f"Rows: objects, columns: detections, in the order {run.class_names[0]}, "
        f"{run.class_names[1]}, …, {run.class_names[-2]}, {NOTHING}. Rest the pointer on a cell "
        "for its names and count."
    )
    title = f"Confusion matrix of {count - 1} classes; the most frequent pairs are listed below"
    return (
        f'<figure class="matrix"><svg viewBox="-0.5 -0.5 {count + 1} {count + 1}" role="img" '
        f'aria-label="{title}"><rect class="frame" width="{count}" height="{count}"/>'
        f"{''.join(cells)}</svg><figcaption>{html.escape(caption)}</figcaption></figure>"
    )
