"""Compiles the programs of a config for devices that are absent, and estimates their cost.

To be imported after `chips.prepare_environment`, because it imports JAX.
"""

import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import ml_collections

from scratchdet_jax.errors import UserError, one_line, plural
from scratchdet_jax.forecast.chips import Chip
from scratchdet_jax.forecast.compiled import Operation, collectives, device_memory, operations
from scratchdet_jax.forecast.programs import Program, evaluation_programs, place, training_program
from scratchdet_jax.parallel.devices import DeviceMapping

GPU_SHARE = 0.75  # of a GPU's memory that JAX takes at its start, unless told otherwise
_GPU_OPTIONS = {"xla_gpu_autotune_level": 0}  # autotuning would need the GPU
# The order of the forward pass; "" stands for the blocks of the backbone.
_PLACES = ("inputs", "root", "", "extras", "head", "loss", "detections", "update", "rest")


class Part(NamedTuple):
    """A part of the program: inputs, a block of the network, the loss, …; on one chip.

    Attributes:
        name: see `programs.place`.
        backward: whether it is the backward pass.
        flop: of convolutions and matrix products.
        bytes: read from and written to the main memory.
        seconds: estimate; on GPUs a lower bound, by the slower of the peak and the memory.
    """

    name: str
    backward: bool
    flop: float
    bytes: int
    seconds: float


class Forecast(NamedTuple):
    """What to expect of a program; all figures are of one chip, except `images`.

    Attributes:
        title: config, program and devices, in words.
        chips: their number.
        images: of one call, on all chips.
        compile_seconds: on this machine.
        memory: bytes: arguments, results, temporaries and total.
        memory_available: bytes.
        collectives: number and bytes by kind.
        flop: of convolutions and matrix products.
        bytes: to and from the main memory.
        estimated: whether `seconds` is the compiler's estimate; else a lower bound.
        seconds: of one call.
        seconds_arithmetic: if only the peak of the chip counted.
        seconds_memory: if only its memory counted.
        parts: where the time goes; a loop of unknown length counts as one round.
    """

    title: str
    chips: int
    images: int
    compile_seconds: float
    memory: dict[str, int]
    memory_available: float
    collectives: dict[str, tuple[int, int]]
    flop: float
    bytes: int
    estimated: bool
    seconds: float
    seconds_arithmetic: float
    seconds_memory: float
    parts: tuple[Part, ...]

    @property
    def images_per_second(self) -> float:
        """Returns the images per second of all chips, by `seconds`."""
        return self.images / self.seconds

    @property
    def share_of_peak(self) -> float:
        """Returns the FLOP a second by `seconds`, as a share of the chip's peak."""
        return self.seconds_arithmetic / self.seconds

    def record(self) -> dict[str, Any]:
        """Returns the figures for JSON."""
        return self._asdict() | {
            "images_per_second": self.images_per_second,
            "share_of_peak": self.share_of_peak,
            "parts": [part._asdict() for part in self.parts],
        }


class TooLarge(UserError):
    """The program needs more memory than a chip has."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"the batch does not fit: {why}; use a smaller one, more chips, or --largest_batch"
        )


def forecast(
    mode: str, config: ml_collections.ConfigDict, classes: int, chip: Chip, devices: list[Any]
) -> tuple[Forecast, str]:
    """Compiles the training step or the evaluation of a config.

    `mode` is "train" or "eval"; `devices`, from `chips.devices`, are of the kind `chip`.

    Returns:
        The figures, and the text of the compiled programs.

    Raises:
        UserError: the config cannot run on these devices.
        TooLarge: it needs more memory than they have.
    """
    config = config.copy_and_resolve_references()
    kind = config.parallel if mode == "train" else "shard_map"
    start = time.perf_counter()
    mapping = DeviceMapping(kind, devices)
    compiled = [_compile(program, chip) for program in _programs(mode, config, classes, mapping)]
    compile_seconds = time.perf_counter() - start
    available = chip.memory if chip.clock else GPU_SHARE * chip.memory
    memory = _memory(compiled, available)

    texts = [program.as_text() or "" for program in compiled]
    found = [operation for text in texts for operation in operations(text)]
    parts = _parts(_flop_by_place(mode, config, classes, devices), found, chip, config)
    flop = sum(part.flop for part in parts)
    moved = sum(part.bytes for part in parts)
    batch = config.batch_size
    if mode == "eval":
        batch = mapping.whole_batch(config.eval.batch_size)
    made = Forecast(
        title=f"{config.name}, {mode}: {plural(batch, 'image')} on {len(devices)} x "
        f"{devices[0].device_kind}, {kind}, {config.model.dtype}",
        chips=len(devices),
        images=batch,
        compile_seconds=compile_seconds,
        memory=memory,
        memory_available=available,
        collectives=_collectives(texts),
        flop=flop,
        bytes=moved,
        estimated=chip.clock is not None,
        seconds=sum(part.seconds for part in parts),
        seconds_arithmetic=flop / chip.peak(config.model.dtype),
        seconds_memory=moved / chip.bandwidth,
        parts=parts,
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
        raise TooLarge(f"the compiler says {text}") from None
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)


def _memory(compiled: list[jax.stages.Compiled], available: float) -> dict[str, int]:
    """Returns the memory of the largest program; raises TooLarge if it does not fit."""
    largest_program = max(map(device_memory, compiled), key=lambda memory: memory["total"])
    total = largest_program["total"]
    if total > available:
        raise TooLarge(f"it needs {memory_text(total)} of {memory_text(available)}")
    return largest_program


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

    def order(part: Part) -> tuple[int, str, bool]:
        place = _PLACES.index(part.name if part.name in _PLACES else "")
        return place, part.name, part.backward

    return tuple(sorted(parts, key=order))


def _collectives(texts: list[str]) -> dict[str, tuple[int, int]]:
    """Returns number and bytes of the collectives by kind."""
    totals: dict[str, tuple[int, int]] = {}
    for kind, result in itertools.chain(*map(collectives, texts)):
        count, size = totals.get(kind, (0, 0))
        totals[kind] = (count + 1, size + result)
    return totals


def memory_text(size: float) -> str:
    """Returns a number of bytes in GiB or MiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.2f} MiB"


def largest(fits: Callable[[int], bool], start: int) -> int:
    """Returns the largest n of which `fits(n)` is true, to within an eighth; 0 if not even 1 fits.

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
    """Returns the `forecast` of the largest batch that fits; says on stderr what it tries."""
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
