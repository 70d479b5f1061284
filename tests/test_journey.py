"""docs/journey.sh, from photos to an exported detector, on a few small photos."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.voc_layout import Folder, annotation, jpeg, obj

ROOT = Path(__file__).parent.parent
TRAIN = (
    "--config.image_size=64 --config.model.width=0.125 --config.num_steps=4 "
    "--config.eval.every_steps=0 --config.batch_size=8 --config.eval.batch_size=8"
)


@pytest.mark.slow  # seven programs
def test_from_photos_to_an_exported_detector(tmp_path):
    folder = Folder(tmp_path / "photos")
    for i in range(12):
        boxes = (obj("cell", (5, 5, 30, 30)), obj("nucleus", (35, 10, 55, 30)))
        folder.image(f"p{i}", jpeg(seed=i)).note(f"p{i}", annotation(*boxes))
    folder.split("train", *(f"p{i}" for i in range(8)))
    folder.split("val", *(f"p{i}" for i in range(8, 12)))
    programs = tmp_path / "programs"  # this Python, and its package as it is here
    programs.mkdir()
    for name, module in (("python", ""), ("scratchdet", " -m scratchdet_jax.tools")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{module} "$@"\n')
        (programs / name).chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "docs/journey.sh", str(folder.path), str(tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "TRAIN": TRAIN},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "out"
    for name in ("doctor.html", "report.html", "detector.jaxexport"):
        assert (out / name).stat().st_size > 1000
    found = json.loads((out / "found/detections.json").read_text())
    assert len(found["images"]) == 12
    assert {category["name"] for category in found["categories"]} == {"cell", "nucleus"}
