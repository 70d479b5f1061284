"""Requests to stop, which a thread of a command receives."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from jax.experimental import multihost_utils

from scratchdet_jax import stopping
from scratchdet_jax.stopping import Stop, Stopped

ROOT = Path(__file__).parents[1]
STATUS = {signal.SIGTERM: 75, signal.SIGINT: 130}


@pytest.mark.parametrize("number", STATUS)
def test_a_request_is_recorded_while_deferred_and_acted_on_where_nothing_is_lost(number, capsys):
    stop = Stop()
    with stop.deferred():
        assert not stop.requested()
        stop.ask(number)
        assert stop.requested()
        stop.poll()  # deferred: not yet
        with pytest.raises(Stopped) as stopped, stop.interruptible(lambda: "all is saved"):
            raise AssertionError("the part must not start")
        assert stopped.value.code == STATUS[number]
        with pytest.raises(Stopped):
            raise stop.error()
    assert "finishing and saving" in (error := capsys.readouterr().err) and "all is saved" in error


@pytest.mark.parametrize("number", STATUS)
def test_a_request_ends_the_process_in_an_interruptible_part(number, monkeypatch, capsys):
    ended = []
    monkeypatch.setattr(stopping, "leave_process", ended.append)
    stop = Stop()
    with stop.deferred(), stop.interruptible(lambda: "left"):
        stop.ask(number)
    assert ended == [STATUS[number]] and "left" in capsys.readouterr().err
    with pytest.raises(Stopped), stop.deferred():
        raise AssertionError("the part must not start")


def test_with_several_processes_jax_is_asked_with_a_counter_that_starts_at_1(monkeypatch):
    asked = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils,
        "reached_preemption_sync_point",
        lambda number: asked.append(number) or number == 2,
    )
    stop = Stop()
    assert [stop.requested() for _ in range(3)] == [False, True, False]
    assert asked == [1, 2, 3]


COMMAND = """
import sys, time
sys.path.insert(0, {root!r})
from scratchdet_jax import stopping
stop = stopping.listen()
stop.terminable, stop.advice = {terminable}, "run it again"
def ready(): print("ready", flush=True)
{body}
"""
# Bodies, and what is expected of one signal and of a second one half a second later.
WAITING = "ready(); time.sleep(60)"
DEFERRED = "with stop.deferred():\n    ready(); time.sleep(60)"
LEAVING = (
    "with stop.deferred(), stop.interruptible(lambda: time.sleep(60) or 'left'):\n"
    "    ready(); time.sleep(60)"
)
SAVING = (
    "with stop.deferred():\n    ready()\n"
    "    while not stop.requested(): time.sleep(0.01)\n"
    "    print('saved', flush=True)\n    raise stop.error()"
)


def run(body, signals, terminable=True):
    """Exit status, stdout and stderr of a command that gets signals, and the seconds it took."""
    code = COMMAND.format(root=str(ROOT), terminable=terminable, body=body)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # The tests may run in the background of a shell, with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.readline() == "ready\n"
    for number in signals:
        time.sleep(0.5)
        process.send_signal(number)
    start = time.monotonic()
    out, err = process.communicate(timeout=50)
    assert "Traceback" not in err and "Exception ignored" not in err
    return process.returncode, out, err, time.monotonic() - start


@pytest.mark.parametrize("number", STATUS)
def test_a_command_ends_at_once_where_nothing_is_lost(number):
    status, _, err, seconds = run(WAITING, [number])
    name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
    assert (status, err.strip()) == (STATUS[number], f"stopped by {name}: run it again")
    assert seconds < 10


def test_a_command_saves_what_it_has_to_save():
    status, out, err, _ = run(SAVING, [signal.SIGINT])
    assert (status, out) == (130, "saved\n")
    assert err.strip() == "Ctrl-C: finishing and saving the current step"


@pytest.mark.parametrize("body", [DEFERRED, LEAVING], ids=["deferred", "leaving"])
def test_a_second_request_ends_a_command_at_once(body):
    status, _, err, seconds = run(body, [signal.SIGINT, signal.SIGINT])
    assert status == 130 and err.strip().endswith("stopped at once by Ctrl-C")
    assert seconds < 10


def test_sigterm_ends_a_command_that_does_not_resume_as_usual():
    assert run(WAITING, [signal.SIGTERM], terminable=False)[0] == -signal.SIGTERM


def test_a_suspended_command_goes_on_as_if_nothing_had_happened():
    signals = [signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM]
    status, out, err, _ = run(SAVING, signals)
    assert status == 75 and out == "saved\n"
    assert "SIGTERM" in err and "Ctrl-C" not in err


def test_an_ignored_ctrl_c_stays_ignored():
    """A shell starts background jobs with SIGINT ignored: Ctrl-C is for the foreground job."""
    code = COMMAND.format(root=str(ROOT), terminable=True, body="ready(); time.sleep(1.5)")
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0


def test_compiled_code_does_not_delay_the_end():
    multiply = "import numpy as np; a = np.ones((3000, 3000)); ready()"
    loop = "for _ in range(99): a = a @ a / 3e3"
    status, _, _, seconds = run(f"{multiply}\n{loop}", [signal.SIGINT])
    assert status == 130 and seconds < 10


def test_the_command_has_one_stop(monkeypatch):
    monkeypatch.setattr(stopping, "_command", None)
    monkeypatch.setattr(Stop, "receive", lambda self: None)
    assert stopping.of_command() is None
    assert stopping.listen() is stopping.listen() is stopping.of_command()
