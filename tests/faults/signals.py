"""Sends Ctrl-C (SIGINT) to every command at random moments and runs the command again.

python tests/faults/signals.py --signals=60 --output=signals.json

A command may finish, with status 0, or stop with status 130; it never prints a traceback, crashes,
or ignores the signal. Then the same command runs to its end, and what it leaves must be identical
to what an undisturbed run leaves: files or, of summary and replay, the printed report. Signals are
spread evenly over all commands (import_torch is left out without PyTorch), at uniformly random
moments between the first line of our code and the end of the undisturbed run.
"""

import argparse
import collections
import hashlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
import campaign

ROOT = campaign.ROOT
FIRST = 0.15  # seconds until Python has started and the first line of our code has run
PATIENCE = 60.0  # seconds in which a command has to end after a signal
BAD = ("Traceback", "Exception ignored", "Fatal Python error", "Segmentation fault", "core dumped")
ALREADY = "already holds a run"


class Command(NamedTuple):
    """A command: its arguments, what it leaves, and how to begin again without that.

    `outcome` takes what the command printed.
    """

    arguments: list[str]
    outcome: Callable[[str], Any]
    forget: Callable[[], None] = lambda: None
    prepare: Callable[[], None] = lambda: None  # what it needs besides the earlier commands


class Hit(NamedTuple):
    """One signal: after how many seconds, and how the command ended."""

    command: str
    moment: float
    status: int
    seconds: float  # until the end


def commands(folder: Path) -> dict[str, Command]:
    """The commands, in an order in which each finds what it needs."""
    boxes, data, run = folder / "boxes", folder / "prepared", folder / "run"
    prepared, eval_folder, pictures = folder / "mine", folder / "eval", folder / "pictures"
    page, figures, curves = folder / "doctor.html", folder / "landscape.json", folder / "curves.png"
    scores, diverged = folder / "scores.json", folder / "diverged"
    weights, imported = folder / "weights.pth", folder / "imported"
    shapes, found = "--config=configs/shapes.py", f"--detections={eval_folder}"
    release = "--config=configs/mmdet_release/ssd300.py"

    def tool(name: str, *arguments: object) -> list[str]:
        return [sys.executable, "-m", f"scratchdet_jax.tools.{name}", *map(str, arguments)]

    def diverge() -> None:
        rate = "--config.optimizer.learning_rate=1e30"
        status, output, *_ = execute([*campaign.command(diverged, folder, folder / "cache"), rate])
        if status != 1 or not (diverged / "replay").is_dir():
            raise SystemExit(f"the run for replay ends with status {status}: {output[-2000:]}")

    prepare = tool("prepare", "voc", f"--folder={boxes}")
    table = {
        "prepare": Command(
            [*prepare, f"--data_dir={prepared}"],
            lambda _: _data_set(prepared / "voc_folder/boxes"),
            lambda: _remove(prepared),
        ),
        "doctor": Command(
            tool("doctor", "voc_folder/boxes", f"--data_dir={data}", f"--html={page}", shapes),
            lambda _: page.stat().st_size > 1000,
            lambda: _remove(page),
            lambda: execute([*prepare, f"--data_dir={data}"]),  # as training does
        ),
        "train": Command(
            campaign.command(run, folder, folder / "cache"),
            lambda _: _digest(run),
            lambda: _remove(run),
        ),
        "eval": Command(
            [sys.executable, "eval.py", f"--workdir={run}", f"--output={eval_folder}"],
            lambda _: (eval_folder / "results.json").read_text(),
            lambda: _remove(eval_folder),
        ),
        "predict": Command(
            tool("predict", f"--workdir={run}", f"--output={pictures}"),
            lambda _: sorted((p.name, p.stat().st_size) for p in pictures.iterdir()),
            lambda: _remove(pictures),
        ),
        "score": Command(
            tool("score", "voc", f"--devkit={boxes}", "--split=val", found, f"--json={scores}"),
            lambda _: scores.read_text(),
            lambda: _remove(scores),
        ),
        "plot": Command(
            tool("plot", run, f"--output={curves}"),
            lambda _: curves.read_bytes(),
            lambda: _remove(curves),
        ),
        "summary": Command(tool("summary", "--config=configs/voc300.py"), lambda printed: printed),
        "landscape": Command(
            tool("landscape", run, "--batches=1", f"--output={figures}"),
            lambda _: figures.read_text(),
            lambda: _remove(figures),
        ),
        "replay": Command(
            tool("replay", f"--workdir={diverged}"), lambda printed: printed, prepare=diverge
        ),
        "import_torch": Command(
            tool("import_torch", f"--checkpoint={weights}", release, f"--workdir={imported}"),
            lambda _: (imported / "imported.json").read_text(),
            lambda: _remove(imported),
            lambda: _save_release(weights),
        ),
    }
    if importlib.util.find_spec("torch") is None:
        del table["import_torch"]
    return table


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _save_release(file: Path) -> None:
    """A checkpoint as of the authors' release, with random weights."""
    import torch

    from tests.release import Release

    torch.save({"state_dict": Release(300).state_dict()}, file)


def _data_set(folder: Path) -> tuple[list[str], str]:
    """The files of the only version and its report; TFDS's shards differ from run to run."""
    (version,) = [p for p in folder.iterdir() if not p.name.startswith(".")]
    return sorted(p.name for p in version.iterdir()), (version / "report.json").read_text()


def _digest(workdir: Path) -> tuple[str, list]:
    arrays, lines = campaign.outcome(workdir)
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].tobytes())
    return digest.hexdigest(), lines


def execute(
    arguments: Sequence[str], moment: float | None = None
) -> tuple[int, str, float, float | None]:
    """Runs a command, with a Ctrl-C after `moment` seconds if it still runs.

    Returns:
        Exit status, output, seconds in all, and seconds from the signal to the end (None without).
    """
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            arguments,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_accept_ctrl_c,
        )
        sent = None
        if moment is not None:
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                sent = time.monotonic()
                process.send_signal(signal.SIGINT)
        status = process.wait(PATIENCE if sent else 600)
        ended = time.monotonic()
        output.seek(0)
        return status, output.read(), ended - began, ended - sent if sent else None


def _accept_ctrl_c() -> None:
    """A shell starts background jobs with SIGINT ignored, which children inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(folder: Path, signals: int, seed: int) -> dict[str, Any]:
    """Sends at least `signals` signals; raises SystemExit at the first thing that must not be."""
    campaign.make_data(folder / "boxes")
    rng, hits, different = random.Random(seed), [], []
    table = commands(folder)
    each = -(-signals // len(table))
    for name, command in table.items():
        command.prepare()
        status, output, *_ = execute(command.arguments)
        if status:
            raise SystemExit(f"{name} fails without a signal: {output[-2000:]}")
        wanted = command.outcome(output)
        command.forget()
        _, _, whole, _ = execute(command.arguments)  # caches are full now
        delivered = 0
        while delivered < each:
            command.forget()
            moment = rng.uniform(FIRST, max(FIRST, whole))
            status, output, _, seconds = execute(command.arguments, moment)
            if seconds is None:  # it had ended before
                whole = 0.9 * moment
                continue
            delivered += 1
            found = [text for text in BAD if text in output]
            if status not in (0, signal.SIGINT + 128) or found:
                raise SystemExit(
                    f"{name}, {moment:.2f} s: status {status}, {found}: {output[-3000:]}"
                )
            hits.append(Hit(name, round(moment, 2), status, round(seconds, 2)))
            print(hits[-1], flush=True)
            status, output, _, _ = execute(command.arguments)
            complete = not status or ALREADY in output  # import_torch replaces no run
            if not complete or [text for text in BAD if text in output]:
                raise SystemExit(f"{name} after a signal: status {status}: {output[-3000:]}")
            if command.outcome(output) != wanted:
                different.append(hits[-1])
    counts = collections.Counter((hit.command, hit.status) for hit in hits)
    return {
        "signals": len(hits),
        "by_command_and_status": {f"{name} {status}": n for (name, status), n in counts.items()},
        "slowest_end": max(hit.seconds for hit in hits),
        "different": different,
        "list": hits,
    }


def parser(program: str) -> argparse.ArgumentParser:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__.splitlines()[0])
    parser.add_argument("--signals", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also write the record to this JSON file")
    return parser


def main() -> None:
    """Parses the command line, runs the campaign and prints the counts."""
    options = parser(sys.argv[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = run(Path(folder), options.signals, options.seed)
    print(json.dumps({k: v for k, v in record.items() if k != "list"}, indent=2))
    if options.output:
        options.output.write_text(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
