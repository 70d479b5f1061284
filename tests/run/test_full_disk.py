"""A disk without room for checkpoints: a real process prints its own sentences and no others."""

import importlib.util
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests import xla

ROOT = Path(__file__).parents[2]
LIMIT = 20_000  # bytes per file: enough for logs, too little for a checkpoint's arrays


def load_campaign():
    path = ROOT / "tests" / "faults" / "campaign.py"
    specification = importlib.util.spec_from_file_location("campaign", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.slow  # trains
def test_every_failed_checkpoint_is_one_line_and_the_conclusion_comes_last(tmp_path):
    campaign = load_campaign()
    campaign.make_data(tmp_path / "boxes")
    command = campaign.command(tmp_path / "run", tmp_path, tmp_path / "cache")
    fields = {"num_steps": 6, "checkpoint_every": 2, "log_every": 1, "compilation_cache": ""}
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    prepare = ["-m", "scratchdet_jax.tools.prepare", "voc", f"--folder={tmp_path / 'boxes'}"]
    arguments = [sys.executable, *prepare, f"--data_dir={tmp_path / 'prepared'}"]
    subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True)
    result = subprocess.run(
        command,
        cwd=ROOT,
        # JAX has words of its own for compiled programs, which the tests share, on a full disk.
        env=os.environ
        | {"XLA_FLAGS": xla.flags(devices=1), "JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT)),
    )
    assert result.returncode == 1, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    progress = ("compiling", "training:", "evaluating:", "checking images:", "writing ")
    messages = [line for line in lines if not line.startswith(progress)]
    for step in (2, 4, 6):
        named = [line for line in messages if f"the checkpoint of step {step} could not" in line]
        assert len(named) == 1 and "(file too large)" in named[0], result.stderr
    assert messages[-1].startswith("error: training is complete, but its last checkpoint")
    assert all(line.startswith(("warning: ", "error: ")) for line in messages), result.stderr
