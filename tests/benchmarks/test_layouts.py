"""The layouts benchmark: parsing, differences, and a run that fails."""

import pytest

from benchmarks.layouts import largest_relative_difference, parse_layout, run
from scratchdet_jax.errors import UserError


def test_layouts_are_processes_by_devices():
    assert parse_layout("2x4") == (2, 4)
    for text in ("2", "0x4", "2x4x1", "twox4"):
        with pytest.raises(UserError, match="PROCESSESxDEVICES"):
            parse_layout(text)


def test_the_largest_difference_is_relative_to_the_reference():
    assert largest_relative_difference([1.0, 2.2, 4.0], [1.0, 2.0, 4.1]) == pytest.approx(0.1)
    with pytest.raises(ValueError):
        largest_relative_difference([1.0], [1.0, 2.0])


def test_a_failed_run_is_reported_with_its_last_lines():
    with pytest.raises(UserError, match=r"exited with \[1\]: .*there is no recipe nowhere\.py"):
        run(1, 1, ["--config=nowhere.py"], limit=60)
