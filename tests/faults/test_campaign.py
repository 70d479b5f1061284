"""The fault campaign as a test: `make test-faults`."""

import importlib.util
import json
import os
from pathlib import Path

import pytest


def load(name):
    specification = importlib.util.spec_from_file_location(
        name, Path(__file__).with_name(f"{name}.py")
    )
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


campaign, signals = load("campaign"), load("signals")


@pytest.mark.faults
def test_killed_runs_end_like_undisturbed_ones(tmp_path):
    kills = int(os.environ.get("FAULT_KILLS", "50"))
    processes = int(os.environ.get("FAULT_PROCESSES", "1"))
    record = campaign.campaign(tmp_path / "faults", kills, processes, seed=0)
    print(json.dumps({k: v for k, v in record.items() if k != "list"}, indent=2))
    assert record["kills"] >= kills
    assert record["runs_that_ended_differently"] == []
    # Processes preempted in a step, one or all of them, exit with their own status.
    steps = [kill for kill in record["list"] if kill["moment"] == "step"]
    assert {s for k in steps if k["signal"] == "SIGTERM" for s in k["statuses"]} <= {75}


@pytest.mark.faults
def test_ctrl_c_at_any_moment_is_heeded_and_loses_nothing(tmp_path):
    record = signals.run(tmp_path, int(os.environ.get("FAULT_SIGNALS", "60")), seed=0)
    print(json.dumps({k: v for k, v in record.items() if k != "list"}, indent=2))
    assert record["different"] == []
    assert record["slowest_end"] < signals.PATIENCE
