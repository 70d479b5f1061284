"""The walk of docs/pods.md, with a storage server on this machine in place of the cloud.

Every command of its blocks that begins with `python` or `scratchdet` runs as written, but for the
names of the buckets and what makes the run small. The training is killed and resumed.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import xla
from tests.own_photos import write_photos

ROOT = Path(__file__).parents[1]
SMALL = (
    "--config.image_size=64 --config.anchors.steps='()' --config.data.canvas=64,64 "
    "--config.num_steps=60 "
    "--config.batch_size=4 --config.model.width=0.0625 --config.model.norm_span=0 "
    "--config.eval.every_steps=20 --config.checkpoint_every=5 --config.log_every=1 "
    "--config.eval.batch_size=4 --config.data.threads=1 --config.model.dtype=float32"
)
PROGRAMS = {"python": sys.executable, "scratchdet": f"{sys.executable} -m scratchdet_jax.tools"}
LOAD = 'import scratchdet_jax; print(scratchdet_jax.load("gs://my-bucket/runs/voc300").class_names)'


def commands():
    """The commands of the walk, in order."""
    text = (ROOT / "docs" / "pods.md").read_text(encoding="utf-8")
    walk = text[text.index("## A TPU pod slice") : text.index("## Clusters")]
    blocks = re.findall(r"```sh\n(.*?)```", walk, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(("python ", "scratchdet "))]


@pytest.fixture
def place(tmp_path):
    """A working directory with the program and a small VOC 2007."""
    write_photos(tmp_path)
    (tmp_path / "VOCdevkit").mkdir()
    shutil.move(tmp_path / "BCCD", tmp_path / "VOCdevkit/VOC2007")
    lists = tmp_path / "VOCdevkit/VOC2007/ImageSets/Main"
    for ours, theirs in (("train", "trainval"), ("val", "test")):
        (lists / f"{ours}.txt").rename(lists / f"{theirs}.txt")
    for name in ("configs", "train.py", "eval.py", "scratchdet_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.mark.slow  # nine commands that compile
def test_the_walk_to_a_pod(place, storage, bucket):
    environment = os.environ | storage.environment
    environment |= {"XLA_FLAGS": xla.flags(devices=2), "HOME": str(place / "home")}

    def start(line):
        program, _, arguments = line.replace("gs://my-bucket", bucket).partition(" ")
        small = SMALL if "train.py" in line else ""
        command = f"exec {PROGRAMS[program]} {arguments} {small}"
        return subprocess.Popen(
            ["bash", "-c", command],
            cwd=place,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(line):
        process = start(line)
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, f"{line}\n{output}"
        return output

    files = storage.path(bucket)
    lines = commands()
    assert [line.split()[1] for line in lines] == [
        "prepare", "train.py", "plot", "report", "eval.py", "predict", "export",
    ]  # fmt: skip
    for line in lines:
        if "train.py" in line:  # preempted without a notice, after a checkpoint
            process = start(line)
            marks = "runs/voc300/checkpoints/*/commit_success.txt"
            while not list(files.glob(marks)) and process.poll() is None:
                time.sleep(0.05)
            assert process.poll() is None, process.communicate()[0]
            process.send_signal(signal.SIGKILL)
            process.communicate()
            output = run(line)
            assert "is locked by another run (process " in output
            assert re.search(r"resumed from step \d+ of 60", output)
        else:
            run(line)
    printed = subprocess.run(
        [sys.executable, "-c", LOAD.replace("gs://my-bucket", bucket)],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "RBC" in printed.stdout
    log = (files / "runs/voc300/metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, log) if record["kind"] == "train"]
    assert [record["step"] for record in records] == list(range(1, 61))
    assert (files / "reports/voc300.html").exists() and (files / "voc300.jaxexport").exists()
    assert (files / "found/detections.json").exists() and (place / "curves.png").exists()
    assert (files / "compiled").is_dir()
    assert list((place / "home/.cache/scratchdet_jax/gs").rglob("*array_record*"))
    assert not [path for path in place.rglob("*") if path.name in ("gs:", "~")]
