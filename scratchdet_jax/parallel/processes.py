"""Several processes as one run: how they join, and what they must do together.

`start` joins the processes before any device is used; it does nothing for a single process. All
processes run the same program on the same files; only the first (index 0) prints, draws progress
bars and writes logs and results.
"""

import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from scratchdet_jax import stopping
from scratchdet_jax.errors import UserError, one_line

T = TypeVar("T")

VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
JOIN_SECONDS = 300
HEARTBEAT_SECONDS = 30  # a process silent for longer is considered dead, which ends the others


def explicit_settings(
    given: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> tuple[str, int, int] | None:
    """Returns coordinator, number of processes and own index by flags, else by the environment.

    None if there are none.

    `given` holds values of the flags coordinator, num_processes and process_id, or None.

    Raises:
        UserError: some settings are missing or invalid.
    """
    values: dict[str, Any] = {
        name: given.get(name) if given.get(name) is not None else environment.get(variable)
        for name, variable in VARIABLES.items()
    }
    if all(value is None for value in values.values()):
        return None
    coordinator, number, index = map(str, values.values())
    counted = number.isdecimal() and index.isdecimal() and int(index) < int(number)
    if not counted or not re.fullmatch(r".+:\d+", coordinator):
        shown = " ".join(f"--{n}={value}" for n, value in values.items() if value is not None)
        raise UserError(
            f"several processes cannot join by {shown} (or the variables "
            f"{', '.join(VARIABLES.values())}): all three are needed, the coordinator as HOST:PORT "
            "of process 0, such as 10.0.0.1:8476, and the index of a process from 0"
        )
    return coordinator, int(number), int(index)


def cluster(environment: Mapping[str, str] = os.environ) -> str | None:
    """Names the launcher of several processes, by the environment; None for a single process.

    JAX then finds their number and the coordinator's address.
    """

    def above_one(name: str) -> bool:
        return environment.get(name, "").isdecimal() and int(environment[name]) > 1

    if above_one("SLURM_STEP_NUM_TASKS"):  # set by srun, not by sbatch or salloc alone
        return "Slurm"
    if above_one("OMPI_COMM_WORLD_SIZE"):
        return "Open MPI"
    if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or _on_cloud_tpu():
        return "TPU pod"
    return None


def _on_cloud_tpu() -> bool:
    devices = [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")]
    return bool(devices) and find_spec("libtpu") is not None


def start(given: Mapping[str, Any]) -> None:
    """Joins the processes of a run by flags, environment or launcher; see docs/pods.md.

    Must be called before the first use of a device.

    `given` holds the flags coordinator, num_processes, process_id and join_seconds, or None.

    Raises:
        UserError: the settings are incomplete, or the processes did not join in time.
    """
    settings = explicit_settings(given)
    wait = JOIN_SECONDS if given.get("join_seconds") is None else given["join_seconds"]
    if wait < 1:
        raise UserError(f"--join_seconds is {wait}: it must be a positive integer")
    launcher = None if settings else cluster()
    if not settings and not launcher:
        return
    coordinator, number, index = settings or (None, None, None)
    if coordinator and index == 0:
        _check_port(coordinator)
    where = f"at {coordinator}" if coordinator else f"in {launcher}'s environment"
    problem = (
        f"the processes of this run did not find each other {where} within {wait} s: check that "
        "all were started with the same address and number of processes, and that process 0 can be "
        "reached from the others"
    )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX itself would abort later, with a C++ stack trace.
    patience = threading.Timer(wait, _give_up, (problem,))
    patience.daemon = True
    patience.start()
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator,
            num_processes=number,
            process_id=index,
            initialization_timeout=wait + 60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{problem} ({one_line(error)})") from None
    finally:
        patience.cancel()
    if command := stopping.of_command():
        command.processes_joined()
    if not is_first():  # only the first prints; errors still go to stderr
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        os.environ["TQDM_DISABLE"] = "1"


def _check_port(coordinator: str) -> None:
    """Raises a UserError if process 0 cannot listen; JAX itself would crash."""
    try:
        socket.create_server(("", int(coordinator.rpartition(":")[2]))).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"process 0 cannot listen at --coordinator={coordinator} ({error}): choose another port"
        ) from None


def _give_up(problem: str) -> None:
    print(f"error: {problem}", file=sys.stderr, flush=True)
    os._exit(1)


def is_first() -> bool:
    """Returns whether this process prints, logs and writes for all processes."""
    return jax.process_index() == 0


def together(make: Callable[[], T], first_alone: bool = False) -> T:
    """Runs `make` in every process; an error in one ends all.

    `make` must not communicate between processes. With `first_alone`, the first process runs it
    before the others, which may find what it wrote.

    Raises:
        UserError: the error of this process, or a notice that another one failed.
    """
    if jax.process_count() == 1:
        return make()
    from jax.experimental import multihost_utils  # slow to import

    made: list[T] = []
    problem = None
    for turn in (True, False) if first_alone else (None,):
        if problem is None and turn in (None, is_first()):
            try:
                made.append(make())
            except UserError as error:
                problem = error
        failed = np.flatnonzero(multihost_utils.process_allgather(np.int32(problem is not None)))
        if len(failed):
            raise problem or UserError(
                f"process {failed[0]} failed (see its own message), so all processes stop"
            )
    return made[0]


def check_shared(folder: Path, flag: str) -> None:
    """Raises a UserError unless every process sees the same `folder`."""
    if jax.process_count() == 1:
        return
    token = folder / f".shared-{from_first(np.int32(os.getpid()))}"

    def look() -> None:
        if is_first():
            token.touch()
        elif not token.exists():
            raise UserError(
                f"{flag} {folder} of process {jax.process_index()} is not the folder that process "
                "0 sees: choose one on a file system that all hosts share"
            )

    try:
        together(look, first_alone=True)
    finally:
        if is_first():
            token.unlink(missing_ok=True)


def from_first(tree: Any) -> Any:
    """Returns the first process's arrays, in all processes, as NumPy arrays.

    The same computation may round differently on another kind of processor.
    """
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return jax.device_get(multihost_utils.broadcast_one_to_all(jax.device_get(tree)))


def gather(tree: Any) -> Any:
    """Concatenates NumPy arrays [n, …] of all processes, in the order of the processes."""
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)
