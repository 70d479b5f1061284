"""What training reaches: the embedded data set, as in `make demo`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow  # six minutes on two cores
def test_the_demo_finds_the_shapes(tmp_path):
    """0.8486 on JAX 0.10.2. Other versions and machines round differently."""
    workdir, output = tmp_path / "run", tmp_path / "eval"
    environment = os.environ | {"XLA_FLAGS": ""}  # one device, fully optimised, as for users
    recipe = "--config=configs/shapes.py"
    for command in (
        ["train.py", recipe, f"--workdir={workdir}", f"--config.data.dir={tmp_path / 'data'}"],
        ["eval.py", f"--workdir={workdir}", f"--output={output}"],
    ):
        subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True)
    assert json.loads((output / "results.json").read_text())["mAP"] >= 0.82
