"""The sections in order: all findings, and the report as text, HTML page and JSON."""

import html
import math
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from scratchdet_jax.reports.doctor.sections import samples
from scratchdet_jax.reports.doctor.sections.anchors import Anchors
from scratchdet_jax.reports.doctor.sections.boxes import Boxes
from scratchdet_jax.reports.doctor.sections.constant import Constant
from scratchdet_jax.reports.doctor.sections.defects import Defects
from scratchdet_jax.reports.doctor.sections.duplicates import Duplicates
from scratchdet_jax.reports.doctor.sections.images import Images
from scratchdet_jax.reports.doctor.sections.splits import Splits
from scratchdet_jax.reports.doctor.sections.unreached import Unreached
from scratchdet_jax.reports.doctor.study import Study
from scratchdet_jax.reports.page.layout import document, facts, paragraph, soft
from scratchdet_jax.reports.page.wording import SEVERITIES, Finding, percent, plural

_WIDTH = 100  # characters of a line of text


class Report(NamedTuple):
    """The figures of a study, section by section in the order of the text.

    A section has `measure(study)`, `findings(study)`, `to_text(study)` (lines) and
    `to_html(study)` (elements); its fields are its keys in the JSON file.
    """

    splits: Splits
    boxes: Boxes
    constant: Constant
    images: Images
    defects: Defects
    duplicates: Duplicates
    anchors: Anchors
    unreached: Unreached

    @classmethod
    def measure(cls, study: Study) -> "Report":
        """Measures the figures of every section."""
        return cls(*(section.measure(study) for section in cls.__annotations__.values()))

    def findings(self, study: Study) -> list[Finding]:
        """All findings, most severe first."""
        found = [finding for section in self for finding in section.findings(study)]
        return sorted(found, key=lambda f: (SEVERITIES.index(f.severity), -f.weight))

    def to_text(self, study: Study, seconds: float) -> str:
        """The report for the terminal, the findings last."""
        lines = [
            f"{study.dataset}: {plural(len(study.images), 'image')}, "
            f"{plural(len(study.class_names), 'class')}; recipe {study.config.name}, "
            f"{study.image_size} px, canvas {study.canvas[0]}×{study.canvas[1]}",
            *(line for section in self for line in section.to_text(study)),
            *_text_findings(self.findings(study)),
            f"\nexamined in {seconds:.0f} s",
        ]
        return "\n".join(lines)

    def to_html(self, study: Study, sample_count: int, seconds: Callable[[], float]) -> str:
        """The report as one self-contained page: inline style, charts and pictures.

        `seconds` returns the time elapsed; it is called when all pictures are drawn.
        """
        anchors = [*self.anchors.to_html(study), *self.unreached.what_if_to_html()]
        parts = {
            "findings": ("Findings", _html_findings(self.findings(study))),
            "counts": ("Images and boxes", self.splits.to_html(study)),
            "sizes": ("Box sizes and shapes", self.boxes.to_html(study)),
            "constant": ("The same box on every image", self.constant.to_html(study)),
            "images": ("Images", self.images.to_html(study)),
            "defects": ("Defects", self.defects.to_html(study)),
            "duplicates": ("Duplicates", self.duplicates.to_html(study)),
            "crowded": ("The most crowded images", self.images.crowded_to_html(study)),
            "anchors": ("Anchors and ground truth", anchors),
            "unreached": ("Boxes that no anchor reaches", self.unreached.to_html(study)),
            "samples": ("What the network sees", samples.to_html(study, sample_count)),
        }
        title = f"{study.dataset}: before training"
        parts = {name: (title, list(elements)) for name, (title, elements) in parts.items()}
        return document(title, _header(self, study), parts, soft(f"Examined in {seconds():.0f} s."))

    def to_dict(self, study: Study, seconds: float) -> dict[str, Any]:
        """All figures for JSON, where NaN is null."""
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
        return _plain({**figures, "findings": self.findings(study), "seconds": seconds})


def _text_findings(findings: list[Finding]) -> Iterator[str]:
    yield "\nFINDINGS"
    if not findings:
        yield "  nothing to fix"
    for n, finding in enumerate(findings, start=1):
        yield from textwrap.wrap(
            f"{finding.text} {finding.advice}".strip(),
            _WIDTH,
            initial_indent=f"  {n:>2}. {finding.severity.upper()}: ",
            subsequent_indent="      ",
            break_on_hyphens=False,
            break_long_words=False,
        )


def _header(report: Report, study: Study) -> str:
    figures = {
        "images": f"{len(study.images):,}",
        "boxes": f"{len(study.table.labels):,}",
        "classes": str(len(study.class_names)),
        "reach an anchor": percent(report.anchors.before.reached),
        "after augmentation": percent(report.anchors.after.reached),
    }
    setup = soft(
        f"Examined for the recipe {html.escape(study.config.name)}: network input "
        f"{study.image_size}×{study.image_size} px, canvas {study.canvas[1]}×"
        f"{study.canvas[0]}. An image in several splits counts once."
    )
    return f"<h1>{html.escape(study.dataset)}</h1>{setup}{facts(figures)}"


def _html_findings(findings: list[Finding]) -> Iterator[str]:
    if not findings:
        yield paragraph("Nothing to fix.")
        return
    items = "".join(
        f'<li class="{f.severity}"><b>{f.severity}</b>'
        f"<p>{_units(html.escape(f.text))} {_units(_flags(f.advice))}</p></li>"
        for f in findings
    )
    yield f'<ol class="findings">{items}</ol>'


def _units(text: str) -> str:
    """Keeps numbers on the line of their units."""
    return re.sub(r"(?<=\d) (?=(%|px|×))", "&nbsp;", text)


def _flags(text: str) -> str:
    """Escapes a text and sets its command line flags as code."""
    escaped = html.escape(text, quote=False)
    return re.sub(r"--config[\w.]+=\S*?(?=[,;.]?(\s|$))", r"<code>\g<0></code>", escaped)


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
