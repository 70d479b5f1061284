"""Every template compiles, and texts are escaped on pages only."""

import pytest

from scratchdet_jax.reports.page import output

NAMES = output._ENVIRONMENT.list_templates()


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith(".css")])
def test_every_template_compiles(name):
    output._ENVIRONMENT.get_template(name)


def test_prose_escapes_and_marks_flags_and_units():
    text = output.prose("a <b> of 4 px: set --config.a.b='(3,6)'.")
    assert text == ("a &lt;b&gt; of 4&nbsp;px: set <code>--config.a.b='(3,6)'</code>.")
