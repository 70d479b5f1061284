"""Progress in a log file and in a terminal."""

import io
import sys

from scratchdet_jax import progress
from scratchdet_jax.progress import Progress, track


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def test_a_log_file_gets_plain_lines_and_few_of_them(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    bar = Progress(100, "training", "step", 10)
    with bar.paused():
        clock.now += 300  # compilation counts neither for the time left
    for _ in range(30):
        clock.now += 2
        bar.update("loss 1.5")
    bar.close()
    text = capsys.readouterr().err
    assert "\r" not in text and "\x1b" not in text
    lines = text.splitlines()
    # 300 s of compilation, then every third step: at least 5 s apart.
    assert lines[0] == "training: step 11/100, loss 1.5, 02:58 left"
    assert lines[1] == "training: step 14/100, loss 1.5, 02:52 left"
    assert len(lines) == 10


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(track(range(3), 3, "counting", "item")) == [0, 1, 2]
    assert "counting" in sys.stderr.getvalue() and "\r" in sys.stderr.getvalue()


def test_a_process_that_is_not_the_first_prints_nothing(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    bar = Progress(2, "training", "step")
    clock.now += 60
    bar.update()
    assert capsys.readouterr().err == ""
