"""Every command of docs/own-data.md runs, on a small data set with the same names."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import xla
from tests.own_photos import write_photos

ROOT = Path(__file__).parents[1]
# What makes a run of the page small; later overrides of the same field count.
SMALL = (
    "--config.image_size=64 --config.train_images=8 --config.batch_size=4 "
    "--config.eval.batch_size=4 --config.model.width=0.0625"
)
# As written, and as it runs without an installed package.
PROGRAMS = {"python": sys.executable, "scratchdet": f"{sys.executable} -m scratchdet_jax.tools"}


def commands():
    """The commands of the page, in order; those that need TensorFlow are left out."""
    text = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(("python ", "scratchdet "))]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory like the page's: BCCD, cells, coco and yolo, and the program."""
    place = tmp_path_factory.mktemp("page")
    write_photos(place)
    for name in ("configs", "train.py", "eval.py", "scratchdet_jax"):
        (place / name).symlink_to(ROOT / name)
    return place


@pytest.mark.slow  # eight commands that compile
def test_every_command_of_the_page_runs(place):
    lines = commands()
    assert len(lines) >= 10
    for line in lines:
        small = f" {SMALL}" if "train.py" in line else ""
        program, _, arguments = line.partition(" ")
        result = subprocess.run(
            ["bash", "-c", f"{PROGRAMS[program]} {arguments}{small}"],
            cwd=place,
            env=os.environ | {"XLA_FLAGS": xla.flags(devices=1)},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"
    assert (place / "runs/bccd/pictures/detections.json").exists()
    assert (place / "runs/bccd/coco/coco_results.json").exists()
