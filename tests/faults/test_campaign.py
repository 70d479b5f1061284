"""The fault campaign as a test: `make test-faults`."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

specification = importlib.util.spec_from_file_location(
    "campaign", Path(__file__).with_name("campaign.py")
)
campaign = importlib.util.module_from_spec(specification)
specification.loader.exec_module(campaign)


@pytest.mark.faults
def test_runs_that_are_killed_end_as_those_that_are_not(tmp_path):
    kills = int(os.environ.get("FAULT_KILLS", "50"))
    processes = int(os.environ.get("FAULT_PROCESSES", "1"))
    record = campaign.campaign(tmp_path / "faults", kills, processes, seed=0)
    print(json.dumps({k: v for k, v in record.items() if k != "list"}, indent=2))
    assert record["kills"] >= kills
    assert record["runs_that_ended_differently"] == []
    # What is preempted in a step, one of several processes or all, leaves with its own status.
    steps = [kill for kill in record["list"] if kill["moment"] == "step"]
    assert {s for k in steps if k["signal"] == "SIGTERM" for s in k["statuses"]} <= {75}
