"""Fills the templates in `reports/templates`: pages (HTML) and reports for the terminal."""

import html
import re
from typing import Any

import jinja2
import markupsafe

from scratchdet_jax.errors import plural
from scratchdet_jax.reports.page.tables import text_table
from scratchdet_jax.reports.page.wording import number, percent


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
