import pytest

from scratchdet_jax.errors import one_line, plural
from scratchdet_jax.files import write_atomically, write_text_atomically


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


def test_errors_on_one_line():
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(KeyError()) == "KeyError"
    assert one_line("x" * 9, limit=4) == "xxxx…"
    assert [plural(n, "box") for n in (1, 2000)] == ["1 box", "2,000 boxes"]
