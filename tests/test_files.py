import pytest

from scratchdet_jax.errors import UserError, one_line, plural
from scratchdet_jax.files import check_replaceable, write_atomically, write_text_atomically


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_text_atomically(path, "é")
    assert path.read_bytes() == "é".encode()

    def fail(file):
        file.write(b"half")
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        write_atomically(path, fail)
    assert path.read_text() == "é"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_replaced_if_it_is_new_or_our_own_or_to_be_overwritten(tmp_path):
    path, link = tmp_path / "a", tmp_path / "link"
    check_replaceable("FILE", path, "mark", overwrite=False)
    path.write_text("begins with the mark")
    link.symlink_to(path)
    check_replaceable("FILE", path, "the mark", overwrite=False)
    for place, mark in ((path, "another mark"), (path, ""), (link, "the mark"), (tmp_path, "mark")):
        with pytest.raises(UserError, match=r"^FILE exists.*: choose .* or add --overwrite$"):
            check_replaceable("FILE", place, mark, overwrite=False)
        check_replaceable("FILE", place, mark, overwrite=True)
    path.write_text(" " * 400 + "the mark")
    with pytest.raises(UserError, match="exists and was not written by this command"):
        check_replaceable("FILE", path, "the mark", overwrite=False)


def test_errors_on_one_line():
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(KeyError()) == "KeyError"
    assert one_line("x" * 9, limit=4) == "xxxx…"
    assert [plural(n, "box") for n in (1, 2000)] == ["1 box", "2,000 boxes"]
