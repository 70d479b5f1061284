"""Fills the templates in `reports/templates` and writes what the commands produce."""

import html
import re
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from scratchdet_jax.errors import plural
from scratchdet_jax.files import check_replaceable, write_text_atomically, writing
from scratchdet_jax.reports.page.tables import number, percent, text_table


def prose(text: str) -> markupsafe.Markup:
    """Returns a text for a page: numbers stay with their units, flags are set as code."""
    escaped = re.sub(r"(?<=\d) (?=(%|px|×))", "&nbsp;", html.escape(text, quote=False))
    flags = r"--config[\w.]+=\S*?(?=[,;.]?(\s|$))"
    return markupsafe.Markup(re.sub(flags, r"<code>\g<0></code>", escaped))


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("scratchdet_jax.reports"),
    autoescape=jinja2.select_autoescape(["html"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {
    "number": number,
    "percent": percent,
    "plural": plural,
    "prose": prose,
    "text_table": text_table,
    "thousands": "{:,}".format,
}


def render(template: str, **values: Any) -> str:
    """Fills the template of that file name; texts are escaped in HTML, but for `Markup`."""
    return _ENVIRONMENT.get_template(template).render(values)


def write_output(
    path: Path, flag: str, mark: str, overwrite: bool, text: str | None = None
) -> None:
    """Writes a file, completely or not at all; without a text, checks that it may be written.

    `flag` named the file; `mark`, which the text holds: see `files.check_replaceable`.

    Raises:
        UserError: the file cannot be written, or another one is there.
    """
    check_replaceable(f"{flag} {path}", path, mark, overwrite)
    with writing(f"{flag} {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            # Names of files may hold what is no Unicode.
            write_text_atomically(path, text.encode(errors="replace").decode())
