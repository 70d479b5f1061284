"""Kills runs at random moments, restarts them, and compares the results with an undisturbed run.

python tests/faults/campaign.py --kills=50 --processes=1 [--bucket] --output=faults.json

With --bucket, the workdir is in a bucket of the tests' storage server. With --network, nothing is
killed; instead requests fail, connections are cut, and the server goes away for up to a minute.

A run is `train.py` with a tiny detector. It is restarted with the same command, without any other
help, until it ends with status 0. Its result must equal that of the run without faults: all
parameters, momenta and statistics, every line of metrics.jsonl except the speed, and the AP.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

STEPS, CHECKPOINT_EVERY, EVALUATE_EVERY, BATCH = 120, 10, 30, 4
STORAGE = "storage"  # folder of the buckets
MOMENTS = ("start-up", "step", "checkpoint", "evaluation")
PATIENCE = 600.0  # seconds for one start of a run; longer is a hang
GRACE = 60.0  # seconds between SIGTERM and SIGKILL for the remaining processes

OVERRIDES = {
    "image_size": 64,
    "data.canvas": "64,64",
    "data.max_boxes": 4,
    "model.width": 0.125,
    "batch_size": BATCH,
    "num_steps": STEPS,
    "data.train": "train",
    "data.eval": "val",
    "data.threads": 1,
    "eval.batch_size": 4,
    "eval.every_steps": EVALUATE_EVERY,
    "eval.candidates_per_class": 20,
    "eval.max_detections": 10,
    "augment.crop_trials": 5,
    "log_every": 3,
    "checkpoint_every": CHECKPOINT_EVERY,
    "stall_seconds": 300,
}


class Kill(NamedTuple):
    """One kill: the intended moment, and how much is repeated."""

    moment: str
    signal: str
    statuses: list[int]  # of all processes, signalled or not
    step: int  # last step in metrics.jsonl after the processes ended
    repeated: int  # steps repeated by the next start


class Place(NamedTuple):
    """Where a run is.

    Attributes:
        workdir: as its command names it.
        files: the folder that holds its files.
    """

    workdir: str
    files: Path


def command(workdir: str | Path, data: Path, cache: Path) -> list[str]:
    """The command of a run, the same at every start."""
    fields = OVERRIDES | {
        "data.folder": data / "boxes",
        "data.dir": data / "prepared",
        "compilation_cache": cache,
    }
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    recipe = f"--config={ROOT / 'configs/shapes.py'}"
    program = "tests/faults/impatient.py" if "://" in str(workdir) else "train.py"
    return [sys.executable, str(ROOT / program), recipe, f"--workdir={workdir}", *flags]


def make_data(folder: Path) -> None:
    """A folder in VOC layout: coloured boxes on noise, 30 images for training and 24 to score."""
    import cv2

    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("val", 24)):
        names = [f"{split}{i:03d}" for i in range(count)]
        (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(names) + "\n")
        for i, name in enumerate(names):
            image = rng.integers(0, 90, (48, 64, 3), np.uint8)
            y, x, label = int(rng.integers(1, 20)), int(rng.integers(1, 30)), "ab"[i % 2]
            cv2.rectangle(
                image, (x, y), (x + 24, y + 20), (255, 0, 0) if i % 2 else (0, 255, 0), -1
            )
            cv2.imwrite(str(folder / f"JPEGImages/{name}.png"), image)
            (folder / f"Annotations/{name}.xml").write_text(
                f"<annotation><filename>{name}.png</filename><size><width>64</width>"
                f"<height>48</height><depth>3</depth></size><object><name>{label}</name><bndbox>"
                f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + 24}</xmax><ymax>{y + 20}</ymax>"
                "</bndbox></object></annotation>"
            )


def start(arguments: Sequence[str], processes: int, log: Path) -> list[subprocess.Popen]:
    """Starts a run of `processes` processes with one CPU device each."""
    port = _free_port()
    started = []
    for index in range(processes):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        }
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
            }
        with log.open("ab") as file:
            started.append(
                subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=file, stderr=file)
            )
    return started


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def last_step(workdir: Path) -> int:
    """The last update in metrics.jsonl (one line every log_every updates)."""
    try:
        lines = (workdir / "metrics.jsonl").read_bytes().splitlines()
        return max((json.loads(x)["step"] for x in lines[-2:] if x.endswith(b"}")), default=0)
    except (FileNotFoundError, ValueError):
        return 0


def newest_checkpoint(workdir: Path) -> int:
    """The step from which a start would resume."""
    complete = [p for p in (workdir / "checkpoints").glob("*") if not is_partial(p)]
    return max((int(p.name) for p in complete if p.name.isdecimal()), default=0)


def is_partial(checkpoint: Path) -> bool:
    """Whether a checkpoint is being written, or was left by a run killed while writing."""
    if STORAGE in checkpoint.parts:  # a bucket has no rename: a mark is written last
        return not (checkpoint / "commit_success.txt").exists()
    return "tmp" in checkpoint.name


def wait_for(
    moment: str, workdir: Path, running: list[subprocess.Popen], rng: random.Random
) -> bool:
    """Sleeps until a moment of the given kind; False if the run ended earlier."""
    begun, first = time.monotonic(), last_step(workdir)
    delay = {
        "start-up": rng.uniform(0.0, 8.0),
        "step": rng.uniform(0.0, 0.5),
        "checkpoint": rng.uniform(0.0, 0.06),
        "evaluation": rng.uniform(0.0, 0.5),
    }[moment]
    beyond = first + rng.randrange(3, 2 * CHECKPOINT_EVERY)
    while all(process.poll() is None for process in running):
        if time.monotonic() - begun > PATIENCE:
            raise SystemExit(f"{workdir} hangs: no {moment} after step {first}")
        step = last_step(workdir)
        if moment == "start-up":
            come = True
        elif moment == "step":
            come = step >= beyond
        elif moment == "checkpoint":
            come = step >= beyond and any(map(is_partial, (workdir / "checkpoints").glob("*")))
        else:
            # The evaluation runs while its checkpoint is the newest and has no score yet.
            newest = newest_checkpoint(workdir)
            come = (
                newest > 0
                and newest % EVALUATE_EVERY == 0
                and step >= newest
                and not (workdir / f"checkpoints/{newest}/score.json").exists()
            )
        if come:
            deadline = time.monotonic() + delay
            while time.monotonic() < deadline:
                if any(process.poll() is not None for process in running):
                    return False
                time.sleep(0.002)
            return True
        time.sleep(0.001 if moment == "checkpoint" else 0.005)
    return False


def finish(running: list[subprocess.Popen], seconds: float) -> list[int]:
    """Exit statuses; processes that do not end in time are killed."""
    deadline = time.monotonic() + seconds
    for process in running:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
    return [process.wait() for process in running]


def disturbed_run(
    workdir: Path, log: Path, arguments: list[str], processes: int, kills: int, rng: random.Random
) -> list[Kill]:
    """Completes a run with up to `kills` kills on the way."""
    done: list[Kill] = []
    began = time.monotonic()
    while True:
        running = start(arguments, processes, log)
        if len(done) >= kills:
            statuses = finish(running, PATIENCE)
            if any(statuses):
                raise SystemExit(f"{workdir}: statuses {statuses} without a kill; see {log}")
            return done
        moment = rng.choice(MOMENTS)
        if not wait_for(moment, workdir, running, rng):
            statuses = finish(running, PATIENCE)
            if any(statuses):
                raise SystemExit(f"{workdir}: statuses {statuses} without a kill; see {log}")
            return done  # the run ended first
        number = rng.choice((signal.SIGKILL, signal.SIGTERM))
        # Hit the entire job, as when a machine fails, or one process of it.
        hit = running if rng.random() < 0.5 else [rng.choice(running)]
        for process in hit:
            process.send_signal(number)
        # After SIGTERM there is time to exit. After a crash of one process the scheduler stops the
        # others, at once or if they have not noticed the crash themselves.
        patient = number == signal.SIGTERM or rng.random() < 0.5
        statuses = finish(running, GRACE if patient else 0.0)
        reached, kept = last_step(workdir), newest_checkpoint(workdir)
        done.append(Kill(moment, number.name, statuses, reached, max(0, reached - kept)))
        print(
            f"{workdir.name}: {number.name} in {moment}, statuses {statuses}, step {reached}, "
            f"kept {kept}, {time.monotonic() - began:.0f} s",
            flush=True,
        )


def outcome(workdir: Path) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """All arrays of the last checkpoint, and the lines of metrics.jsonl without the speed."""
    from scratchdet_jax.run.metrics import MEASURED

    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in x.items() if k not in MEASURED} for x in lines]
    return arrays(workdir.absolute() / f"checkpoints/{STEPS}/state"), kept


def arrays(item: Path) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint's item, by name."""
    import jax
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as reader:  # NumPy arrays, whatever devices wrote them
        tree = reader.metadata(item).item_metadata.tree
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        tree = reader.restore(item, args=ocp.args.PyTreeRestore(restore_args=arguments))
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def same(a: Any, b: Any) -> bool:
    """Whether two outcomes are identical to the bit."""
    arrays = a[0].keys() == b[0].keys() and all(np.array_equal(a[0][k], b[0][k]) for k in a[0])
    return bool(arrays) and a[1] == b[1]


@contextlib.contextmanager
def places(folder: Path, bucket: bool) -> Iterator[tuple[Callable[[str], Place], Any]]:
    """Returns what makes the place of a run from its name, and the network or None."""
    if not bucket:
        yield (lambda name: Place(str(folder / name), folder / name)), None
        return
    from tests import storage

    with storage.running(folder / STORAGE) as server:
        os.environ.update(server.environment)
        url = server.make_bucket("bucket")
        yield (lambda name: Place(f"{url}/{name}", server.path(f"{url}/{name}"))), server.network


def disturb(network: Any, ended: threading.Event, rng: random.Random) -> None:
    """Disturbs the network until the end: single requests all the time, and it all at times."""
    network.share = 0.05
    while not ended.wait(rng.uniform(5, 40)):
        network.go_away(rng.choice((5, 20, 60)))
        ended.wait(60)
    network.share = network.away_until = 0.0


def campaign(
    folder: Path,
    kills: int,
    processes: int,
    seed: int,
    per_run: int = 8,
    output: Path | None = None,
    bucket: bool = False,
    faults: int = 0,
) -> dict[str, Any]:
    """Makes at least `kills` kills, or `faults` faults of the network, in as many runs as needed.

    `bucket`: the runs are in a bucket, as they are with `faults`.

    Returns:
        A record of the results, which is also written to `output` after every run.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    data, cache = folder / "data", folder / "cache"
    make_data(data / "boxes")

    def undisturbed(place: Place) -> float:
        begun, log = time.monotonic(), folder / f"{place.files.name}.log"
        running = start(command(place.workdir, data, cache), processes, log)
        if any(finish(running, 2 * PATIENCE)):
            raise SystemExit(f"the run without faults failed; see {log}")
        return time.monotonic() - begun

    on_disk = [Place(str(folder / name), folder / name) for name in ("first", "whole")]
    undisturbed(on_disk[0])  # prepares the data and fills the cache
    seconds = undisturbed(on_disk[1])
    expected = outcome(on_disk[1].files)
    if not same(outcome(on_disk[0].files), expected):
        raise SystemExit(
            "two runs without faults, the second with cached programs, have different results"
        )
    print(f"without faults: {seconds:.1f} s, {len(expected[1])} lines", flush=True)
    done: list[Kill] = []
    runs, different, disturbed_s = 0, [], 0.0
    with places(folder, bucket or faults > 0) as (place_of, network):
        if network:  # a run in a bucket equals one on a disk
            place = place_of("undisturbed")
            seconds = undisturbed(place)
            if not same(outcome(place.files), expected):
                different.append("undisturbed")
            print(f"in a bucket: {seconds:.1f} s, {network.requests} requests", flush=True)
        made: dict[str, int] = {}
        while len(done) < kills or sum(made.values()) < faults:
            runs += 1
            place, begun, ended = place_of(f"run{runs}"), time.monotonic(), threading.Event()
            log = folder / f"run{runs}.log"
            arguments = command(place.workdir, data, cache)
            if faults:
                disturbing = threading.Thread(target=disturb, args=(network, ended, rng))
                disturbing.start()
            done += disturbed_run(
                place.files, log, arguments, processes, 0 if faults else per_run, rng
            )
            if faults:
                ended.set()
                disturbing.join()
                made = dict(network.faults)
            disturbed_s += time.monotonic() - begun
            if not same(outcome(place.files), expected):
                different.append(f"run{runs}")
            print(
                f"run{runs}: {'DIFFERENT' if f'run{runs}' in different else 'identical'}, "
                f"{len(done)} kills, faults {made}, {time.monotonic() - begun:.0f} s",
                flush=True,
            )
            record = {
                "processes": processes,
                "seed": seed,
                "in a bucket": network is not None,
                "runs": runs,
                "kills": len(done),
                "faults of the network": made,
                "runs_that_ended_differently": different,
                "mAP": [line["mAP"] for line in expected[1] if line["kind"] == "eval"][-1],
                "whole_run_s": seconds,
                "steps_repeated": sum(kill.repeated for kill in done),
                "wall_lost_per_kill_s": (disturbed_s - runs * seconds) / max(1, len(done)),
                "by_moment": by_moment(done),
                "list": [kill._asdict() for kill in done],
            }
            if output:
                output.write_text(json.dumps(record, indent=2) + "\n")
    return record


def by_moment(kills: Sequence[Kill]) -> dict[str, dict[str, Any]]:
    """Kills, exit statuses and repeated steps for each intended moment."""
    table = {}
    for moment in MOMENTS:
        aimed = [kill for kill in kills if kill.moment == moment]
        row: dict[str, Any] = {"steps_repeated": sum(kill.repeated for kill in aimed)}
        for name in ("SIGKILL", "SIGTERM"):
            hit = [kill for kill in aimed if kill.signal == name]
            row[name] = len(hit)
            row[f"{name} statuses"] = sorted({code for kill in hit for code in kill.statuses})
        table[moment] = row
    return table


def parser(program: str) -> argparse.ArgumentParser:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--bucket", action="store_true", help="the workdir is in a bucket")
    parser.add_argument("--network", type=int, default=0, metavar="N", help="N faults, no kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"))
    parser.add_argument("--output", type=Path, default=None, help="where the JSON goes")
    return parser


def main() -> None:
    """Runs a campaign from the command line."""
    options = parser(sys.argv[0]).parse_args()
    record = campaign(
        options.folder,
        0 if options.network else options.kills,
        options.processes,
        options.seed,
        output=options.output,
        bucket=options.bucket,
        faults=options.network,
    )
    print(json.dumps({k: v for k, v in record.items() if k != "list"}, indent=2))
    if record["runs_that_ended_differently"]:
        raise SystemExit("runs had different results")


if __name__ == "__main__":
    main()
