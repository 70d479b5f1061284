"""Compiles the programs of a config for devices that are absent, and estimates their cost.

To be imported after `chips.prepare_environment`, because it imports JAX.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import jax
import ml_collections

from scratchdet_jax.errors import UserError, one_line, plural
from scratchdet_jax.forecast.chips import Chip
from scratchdet_jax.forecast.compiled import KINDS, HloModule, Operation, collectives, device_memory
from scratchdet_jax.forecast.figures import GPU_SHARE, Forecast, Part, TimedLoop, memory_text
from scratchdet_jax.forecast.programs import Program, evaluation_programs, place, training_program
from scratchdet_jax.parallel.devices import DeviceMapping

_GPU_OPTIONS = {"xla_gpu_autotune_level": 0}  # autotuning would need the GPU
_PLACES = {  # the order of the forward pass; blocks of the backbone come between root and extras
    "inputs": 0,
    "root": 1,
    "extras": 3,
    "head": 4,
    "loss": 5,
    "detections": 5,
    "update": 6,
    "rest": 7,
}
_BACKBONE = 2


class TooLarge(UserError):
    """The program needs more memory than a chip has."""


def forecast(
    mode: str, config: ml_collections.ConfigDict, classes: int, chip: Chip, devices: list[Any]
) -> tuple[Forecast, str]:
    """Compiles the training step or the evaluation of a config.

    Args:
        mode: "train" or "eval".
        config: the run's config.
        classes: their number, without the background.
        chip: what `devices` are.
        devices: from `chips.devices`.

    Returns:
        The figures, and the text of the compiled programs.

    Raises:
        UserError: the config cannot run on these devices.
        TooLarge: it needs more memory than they have.
    """
    config = config.copy_and_resolve_references()
    kind = config.parallel if mode == "train" else "shard_map"
    start = time.perf_counter()
    compiled = [
        _compile(program, chip)
        for program in _programs(mode, config, classes, DeviceMapping(kind, devices))
    ]
    compile_seconds = time.perf_counter() - start
    available = chip.memory if chip.clock else GPU_SHARE * chip.memory
    memory = _memory(compiled, available)

    texts = [program.as_text() or "" for program in compiled]
    modules = [HloModule(text) for text in texts]
    operations = [operation for module in modules for operation in module.operations()]
    parts = _parts(_flop_by_place(mode, config, classes, devices), operations, chip, config)
    flop = sum(part.flop for part in parts)
    moved = sum(part.bytes for part in parts)
    batch = config.batch_size if mode == "train" else config.eval.batch_size
    made = Forecast(
        title=f"{config.name}, {mode}: {plural(batch, 'image')} on {len(devices)} x "
        f"{devices[0].device_kind}, {kind}, {config.model.dtype}",
        chips=len(devices),
        images=batch,
        compile_seconds=compile_seconds,
        memory=memory,
        memory_available=available,
        collectives=_counts_and_bytes(
            (one.kind, one.bytes) for text in texts for one in collectives(text)
        ),
        flop=flop,
        bytes=moved,
        bytes_by_kind=_bytes_by_kind(operations),
        estimated=chip.clock is not None,
        seconds=sum(part.seconds for part in parts),
        seconds_arithmetic=flop / chip.peak(config.model.dtype),
        seconds_memory=moved / chip.bandwidth,
        unestimated=_counts_and_bytes(map(_unestimated, operations)) if chip.clock else {},
        parts=parts,
        loops=tuple(
            TimedLoop(loop.scope, loop.trips, loop.cycles / chip.clock if chip.clock else 0.0)
            for module in modules
            for loop in module.loops()
        ),
    )
    return made, "\n".join(texts)


def _programs(
    mode: str, config: ml_collections.ConfigDict, classes: int, mapping: DeviceMapping
) -> list[Program]:
    if mode == "train":
        return [training_program(config, classes, mapping)]
    return evaluation_programs(config, classes, mapping)


def _compile(program: Program, chip: Chip) -> jax.stages.Compiled:
    """Compiles a program; the compiler's error about memory becomes a TooLarge."""
    cached = jax.config.values["jax_enable_compilation_cache"]
    # A program for a chip that is absent can be stored in the cache, but not be loaded again.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return program.compile(**({} if chip.clock else _GPU_OPTIONS))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        text = one_line(error).removeprefix("RESOURCE_EXHAUSTED: ")
        raise TooLarge(_too_large(f"the compiler says {text}")) from None
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)


def _memory(compiled: list[jax.stages.Compiled], available: float) -> dict[str, int]:
    """Returns the memory of the largest program; raises TooLarge if it does not fit."""
    largest_program = max(map(device_memory, compiled), key=lambda memory: memory["total"])
    total = largest_program["total"]
    if total > available:
        raise TooLarge(_too_large(f"it needs {memory_text(total)} of {memory_text(available)}"))
    return largest_program


def _too_large(why: str) -> str:
    return f"the batch does not fit: {why}; use a smaller one, more chips, or --largest_batch"


def _flop_by_place(
    mode: str, config: ml_collections.ConfigDict, classes: int, devices: list[Any]
) -> Counter[tuple[str, bool]]:
    """Counts the FLOP of the mathematics: the packed layout multiplies by zeros."""
    plain = config.copy_and_resolve_references()
    plain.model.layout = "plain"
    total: Counter[tuple[str, bool]] = Counter()
    for program in _programs(mode, plain, classes, DeviceMapping("shard_map", devices)):
        for scope, count in program.flop().items():
            total[place(scope)] += count
    return total


def _parts(
    flop: Counter[tuple[str, bool]],
    operations: Iterable[Operation],
    chip: Chip,
    config: ml_collections.ConfigDict,
) -> tuple[Part, ...]:
    """Returns the parts of the program in the order of the forward pass."""
    cycles: Counter[tuple[str, bool]] = Counter()
    moved: Counter[tuple[str, bool]] = Counter()
    for operation in operations:
        where = place(operation.scope)
        cycles[where] += operation.rounds * (operation.cycles or 0)
        moved[where] += operation.rounds * operation.bytes
    peak = chip.peak(config.model.dtype)
    parts = []
    for where in dict.fromkeys([*flop, *moved]):
        if chip.clock:
            seconds = cycles[where] / chip.clock
        else:
            seconds = max(flop[where] / peak, moved[where] / chip.bandwidth)
        parts.append(Part(*where, flop[where], moved[where], seconds))
    return tuple(sorted(parts, key=lambda p: (_PLACES.get(p.name, _BACKBONE), p.name, p.backward)))


def _bytes_by_kind(operations: Iterable[Operation]) -> dict[str, int]:
    """Returns the bytes to and from memory by kind of operation, the largest first."""
    total: Counter[str] = Counter()
    for operation in operations:
        total[operation.kind] += operation.rounds * operation.bytes
    return {kind: size for kind, size in total.most_common() if size}


def _counts_and_bytes(found: Iterable[tuple[str, int] | None]) -> dict[str, tuple[int, int]]:
    """Returns number and sum of (kind, bytes) by kind."""
    totals: dict[str, tuple[int, int]] = {}
    for kind, size in filter(None, found):
        count, before = totals.get(kind, (0, 0))
        totals[kind] = (count + 1, before + size)
    return totals


def _unestimated(operation: Operation) -> tuple[str, int] | None:
    """Returns kind and bytes of an operation without an estimate; None if it is free."""
    size = operation.rounds * operation.bytes
    if operation.cycles is not None or operation.kind.endswith("-start"):
        return None
    if operation.kind.removesuffix("-done") in KINDS:
        return "collectives", size
    if not size:
        return None
    return ("ends of asynchronous copies" if operation.kind.endswith("-done") else "others"), size


def largest(fits: Callable[[int], bool], start: int) -> int:
    """The largest n of which `fits(n)` is true, to within an eighth; 0 if not even 1 fits.

    Larger n must not fit where a smaller one does not. Begins at `start`, doubles or halves, and
    then halves the interval.
    """
    low, high = 0, start
    while fits(high):
        low, high = high, 2 * high
    while low == 0 and high > 1:
        if fits(high // 2):
            low = high // 2
        else:
            high //= 2
    while low and high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def largest_forecast(
    mode: str, config: ml_collections.ConfigDict, classes: int, chip: Chip, devices: list[Any]
) -> tuple[Forecast, str]:
    """`forecast` of the largest batch that fits; says on stderr what it tries."""
    parts = config.accumulate_steps if mode == "train" else 1
    field = "batch_size" if mode == "train" else "eval.batch_size"
    config = config.copy_and_resolve_references()
    tried: dict[int, tuple[Forecast, str]] = {}

    def fits(images: int) -> bool:
        batch = images * parts * len(devices)
        config.update_from_flattened_dict({field: batch})
        try:
            tried[images] = forecast(mode, config, classes, chip, devices)
            said = f"fits, {memory_text(tried[images][0].memory['total'])} a chip"
        except TooLarge:
            said = "does not fit"
        print(f"config.{field} {batch}: {said}", file=sys.stderr)
        return images in tried

    given = config.batch_size if mode == "train" else config.eval.batch_size
    found = largest(fits, max(1, given // (parts * len(devices))))
    if not found:
        raise UserError("not even one image a chip fits: use a smaller network or another chip")
    return tried[found]
