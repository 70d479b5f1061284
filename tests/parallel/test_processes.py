"""Several processes as one run: how they join, and that they train and score as one."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scratchdet_jax.config.defaults import flatten
from scratchdet_jax.datasets import shapes
from scratchdet_jax.errors import UserError
from scratchdet_jax.parallel import processes
from scratchdet_jax.run.metrics import MEASURED
from scratchdet_jax.tools import eval as eval_tool
from scratchdet_jax.tools import train as train_tool
from tests import xla
from tests.command import exit_status
from tests.faults import campaign
from tests.plain import FIELDS, plain_backbone
from tests.tiny import tiny_config

ROOT = Path(__file__).parents[2]
RESNET = {name: flatten(tiny_config())[name] for name in FIELDS}
NOTHING = dict.fromkeys(processes.VARIABLES)


def given(coordinator, number, index):
    return {"coordinator": coordinator, "num_processes": number, "process_id": index}


def test_settings_come_from_flags_then_from_the_environment():
    environment = {
        "JAX_COORDINATOR_ADDRESS": "node7:1234",
        "JAX_NUM_PROCESSES": "4",
        "JAX_PROCESS_ID": "3",
    }
    assert processes.explicit_settings(NOTHING, {}) is None
    assert processes.explicit_settings(NOTHING, environment) == ("node7:1234", 4, 3)
    found = processes.explicit_settings(given(None, None, 1), environment)
    assert found == ("node7:1234", 4, 1)
    assert processes.explicit_settings(given("a:1", "2", "0"), environment) == ("a:1", 2, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (given("a:1", None, None), r"join by --coordinator=a:1 \(or .*: all three are needed"),
        (given(None, 2, 0), r"join by --num_processes=2 --process_id=0 \(or .*JAX_COORDINATOR_ADD"),
        (given("a:1", 2, 2), "--num_processes=2 --process_id=2 .* index of a process from 0"),
        (given("a:1", "two", 0), "--num_processes=two "),
        (given("a", 2, 0), "the coordinator as HOST:PORT"),
    ],
)
def test_invalid_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        processes.explicit_settings(settings, {})


def test_an_invalid_waiting_time_is_named():
    with pytest.raises(UserError, match="--join_seconds is 0: it must be a positive integer"):
        processes.start(NOTHING | {"join_seconds": 0})


def test_a_port_that_is_in_use_is_named():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(UserError, match=f"cannot listen at --coordinator={address} .*in use"):
            processes.start(given(address, 2, 0))


def test_missing_processes_are_waited_for_only_join_seconds(tmp_path):
    flags = ["--coordinator=127.0.0.1:1", "--num_processes=2", "--process_id=1"]
    done = subprocess.run(
        [
            sys.executable,
            "train.py",
            "--config=configs/shapes.py",
            f"--workdir={tmp_path}",
            *flags,
            "--join_seconds=1",
        ],
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the processes of this run did not find each other")
    assert "within 1 s:" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, None),  # sbatch without srun: one process
        ({"SLURM_STEP_NUM_TASKS": "8"}, "Slurm"),
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, "TPU pod"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ],
)
def test_launchers_are_recognised_by_their_variables(environment, launcher):
    assert processes.cluster(environment) == launcher


def start(programs, devices, *arguments):
    """Starts one process per program, all of one run, on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "XLA_FLAGS": xla.flags(devices),
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(len(programs)),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.plain", program, *arguments],
            cwd=ROOT,
            text=True,
            env=environment | {"JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for index, program in enumerate(programs)
    ]


def launch(program, processes, devices, *arguments):
    """Runs a program in several processes; returns their exit statuses and outputs."""
    running = start([program] * processes, devices, *arguments)
    outputs = [process.communicate(timeout=400) for process in running]
    return [process.returncode for process in running], outputs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "SPLIT_SIZES", {"train": 40, "validation": 20})
        shapes.prepare_shapes(folder)
    return folder


def arguments(data, **overrides):
    """A tiny run of the least network; every dotted field may be overridden.

    At a recipe's learning rate a new detector amplifies rounding errors tenfold per step.
    """
    fields = FIELDS | {
        "data.dir": data,
        "data.eval": "shapes:validation[:20]",
        "image_size": 64,
        "data.canvas": "(64,64)",
        "model.width": 0.125,
        "batch_size": 8,
        "eval.batch_size": 8,
        "num_steps": 3,
        "log_every": 1,
        "optimizer.learning_rate": 1e-5,
        "augment.interpolations": '("linear",)',
        "augment.expand_probability": 0.0,
        "augment.photometric_probability": 0.0,
        "eval.max_detections": 20,
        "data.threads": 1,
        "eval.score_threshold": 0.0,
        "checkpoint_every": 2,
        "compilation_cache": data / "cache",
    }
    return [f"--config.{name}={value}" for name, value in (fields | overrides).items()]


def train(data, workdir, processes, devices, **overrides):
    """Trains in several processes, or in this one with its eight devices."""
    flags = ["--config=configs/shapes.py", f"--workdir={workdir}", *arguments(data, **overrides)]
    if processes == 1:
        assert exit_status(train_tool.main, *flags) == 0
        return None
    codes, outputs = launch("train.py", processes, devices, *flags)
    assert codes == [0] * processes, outputs
    return outputs


def records(workdir, kind):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def same_run(one, other):
    """Checks that losses and AP of two runs agree, and that each was logged once."""
    losses = [[record["loss"] for record in records(w, "train")] for w in (one, other)]
    assert len(losses[0]) == len(losses[1]) == 3
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    scores = [[record["mAP"] for record in records(w, "eval")] for w in (one, other)]
    assert len(scores[0]) == len(scores[1]) == 1
    assert scores[1] == pytest.approx(scores[0], abs=2e-3)


@pytest.fixture
def plain():
    with plain_backbone():
        yield


def test_two_processes_train_and_score_as_one(data, tmp_path, plain, capsys):
    train(data, tmp_path / "one", 1, 8)
    outputs = train(data, tmp_path / "two", 2, 4)
    same_run(tmp_path / "one", tmp_path / "two")
    assert "step 3: mAP" in outputs[0][0]
    assert "step 3" not in outputs[1][0]  # only the first process prints
    assert len(list((tmp_path / "two").glob("events.*"))) == 1

    # One process can use the checkpoints of two, and its scores are equal.
    run = f"--workdir={tmp_path / 'two'}"
    assert exit_status(eval_tool.main, run, f"--output={tmp_path / 'scored1'}") == 0
    codes, outputs = launch("eval.py", 2, 1, run, f"--output={tmp_path / 'scored2'}")
    assert codes == [0, 0], outputs
    one, two = (json.loads((tmp_path / f"scored{n}/results.json").read_text()) for n in (1, 2))
    assert one == two
    logged = records(tmp_path / "two", "eval")[0]["mAP"]
    assert one["mAP"] == pytest.approx(logged, abs=1e-3)

    # It can also resume their training, from the last checkpoint but one.
    shutil.rmtree(tmp_path / "two/checkpoints/3")
    capsys.readouterr()
    train(data, tmp_path / "two", 1, 8)
    assert "resumed from step 2 of 3" in capsys.readouterr().out
    same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow  # two runs of two processes
@pytest.mark.parametrize("fields", [RESNET, {}], ids=["ResNet", "plain"])
def test_a_run_of_two_processes_in_a_bucket_equals_one_on_a_disk(
    data, tmp_path, plain, storage, bucket, fields
):
    for workdir in (tmp_path / "disk", f"{bucket}/run"):
        train(data, workdir, 2, 2, **fields)
    disk, files = tmp_path / "disk", storage.path(f"{bucket}/run")
    for kind in ("train", "eval"):
        logs = [
            [{k: v for k, v in line.items() if k not in MEASURED} for line in records(place, kind)]
            for place in (disk, files)
        ]
        assert logs[0] == logs[1] and logs[0]
    expected, found = (campaign.arrays(place / "checkpoints/3/state") for place in (disk, files))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    assert {path.name.partition(".")[0] for path in files.iterdir()} == {
        "checkpoints",
        "events",
        "metrics",
    }


@pytest.mark.slow  # six runs
@pytest.mark.parametrize(
    "fields", [RESNET, {"parallel": "pmap"}], ids=["ResNet, shard_map", "plain, pmap"]
)
def test_four_processes_train_and_score_as_one(data, tmp_path, plain, fields):
    train(data, tmp_path / "one", 1, 8, **fields)
    for count, devices in ((2, 4), (4, 2)):
        workdir = tmp_path / f"{count}x{devices}"
        train(data, workdir, count, devices, **fields)
        same_run(tmp_path / "one", workdir)


def test_an_error_of_one_process_ends_all(data, tmp_path):
    codes, outputs = launch(
        "train.py",
        2,
        1,
        "--config=configs/shapes.py",
        f"--workdir={tmp_path / 'run'}",
        *arguments(data, **{"data.eval": "shapes:nosplit"}),
    )
    assert codes == [1, 1]
    for _, stderr in outputs:
        assert "error: " in stderr and "Traceback" not in stderr
    assert "nosplit" in outputs[0][1]


FALLS_SILENT = """
import os, runpy, sys, time
sys.path.insert(0, os.getcwd())
from scratchdet_jax.parallel import processes
from scratchdet_jax.run.metrics import MEASURED
from tests import xla
from tests.plain import FIELDS
from tests.tiny import tiny_config

join = processes.start
def start(argv):
    join(argv)
    from scratchdet_jax.run.metrics import MetricLogger

    log_step = MetricLogger.log_step
    def silent(self, step, metrics):
        time.sleep(3600 if step == 5 else 0)
        log_step(self, step, metrics)

    MetricLogger.log_step = silent

processes.start = start
sys.argv = ["train.py", *sys.argv[1:], "--config.stall_seconds=0"]
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.slow  # waits
def test_a_hung_collective_is_reported_with_its_stack(data, tmp_path):
    (tmp_path / "silent.py").write_text(FALLS_SILENT)  # alive, but the others wait for it
    waits, silent = start(
        ["train.py", tmp_path / "silent.py"],
        1,
        "--config=configs/shapes.py",
        f"--workdir={tmp_path}",
        *arguments(data, num_steps=10_000, checkpoint_every=1_000, stall_seconds=40.0),
    )
    try:
        _, stderr = waits.communicate(timeout=400)
    finally:
        silent.kill()
        waits.kill()
        silent.communicate()
    assert waits.returncode == 69, stderr
    assert "no progress for 40 s (config.stall_seconds) after step 5" in stderr
    report = (tmp_path / "stalled.txt").read_text()
    assert "loop.py" in report and "_update" in report
