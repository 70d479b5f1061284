import pytest

from scratchdet_jax.errors import UserError
from scratchdet_jax.reports.page.output import write_output

MARK = "made by the test"


def test_only_files_with_the_mark_are_replaced(tmp_path):
    path = tmp_path / "new" / "a.html"
    write_output(path, "--output", MARK, False, f"<!-- {MARK} --> 1")
    write_output(path, "--output", MARK, False, f"<!-- {MARK} --> 2 \udc80")  # no Unicode
    assert path.read_text() == f"<!-- {MARK} --> 2 ?"
    path.write_text("another")
    with pytest.raises(UserError, match=r"--output .*a.html exists and was not written"):
        write_output(path, "--output", MARK, False, MARK)
    path.write_text(f"{' ' * 1000}{MARK}")  # anybody may quote the mark
    with pytest.raises(UserError, match="was not written by this command"):
        write_output(path, "--output", MARK, False)
    assert [p.name for p in path.parent.iterdir()] == ["a.html"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_output(tmp_path / "file" / "a.html", "--output", MARK, False)
