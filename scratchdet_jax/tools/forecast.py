"""Compiles a run for accelerators that are not here, and says what to expect of them.

python -m scratchdet_jax.tools.forecast train --config=FILE --device=v5e:16x16
python -m scratchdet_jax.tools.forecast eval --config=FILE --device=h100

Devices: a TPU slice (v4:2x2x1, v5e:16x16, v5p:4x4x4, v6e:2x2) or NVIDIA GPUs (a100, h100, h200,
h100:8). The chip's own compiler does the work, on this machine and without the chip:
requirements-tpu.txt and requirements-cuda.txt install it. A full step takes minutes to compile.

The program is the one that training or evaluation would run. Memory and collectives are those of
the compiled program. Speed is an estimate: on TPUs by the compiler, on GPUs a bound from the peak
of the chip and from its memory. docs/speed.md says how to read them.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
from absl import flags

from scratchdet_jax import cli
from scratchdet_jax.errors import UserError, one_line, plural
from scratchdet_jax.files import write_json
from scratchdet_jax.forecast import chips

MODES = ("train", "eval")
GPU_SHARE = 0.75  # of a GPU's memory that JAX takes at its start, unless told otherwise
_GPU_OPTIONS = {"xla_gpu_autotune_level": 0}  # autotuning would need the GPU


class Part(NamedTuple):
    """A part of the program: inputs, a block of the network, the loss, …; on one chip.

    Attributes:
        name: see `training.programs.place`.
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


class Loop(NamedTuple):
    """A loop of the program; `trips` is None where its length depends on the data.

    `seconds` is the estimate of one round.
    """

    scope: str
    trips: int | None
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
        bytes_by_kind: the same by kind of operation.
        estimated: whether `seconds` is the compiler's estimate; else a lower bound.
        seconds: of one call.
        seconds_arithmetic: if only the peak of the chip counted.
        seconds_memory: if only its memory counted.
        unestimated: number and bytes of the operations for which the compiler gives no estimate.
        parts: where the time goes.
        loops: of which those without `trips` count as one round.
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
    bytes_by_kind: dict[str, int]
    estimated: bool
    seconds: float
    seconds_arithmetic: float
    seconds_memory: float
    unestimated: dict[str, tuple[int, int]]
    parts: tuple[Part, ...]
    loops: tuple[Loop, ...]

    @property
    def images_per_second(self) -> float:
        """Of all chips, by `seconds`."""
        return self.images / self.seconds

    @property
    def share_of_peak(self) -> float:
        """FLOP a second by `seconds`, as a share of the chip's peak."""
        return self.seconds_arithmetic / self.seconds

    def record(self) -> dict[str, Any]:
        """The figures for JSON."""
        return self._asdict() | {
            "images_per_second": self.images_per_second,
            "share_of_peak": self.share_of_peak,
            "parts": [part._asdict() for part in self.parts],
            "loops": [loop._asdict() for loop in self.loops],
        }


class TooLarge(UserError):
    """The program needs more memory than a chip has."""


def forecast(
    mode: str, config: ml_collections.ConfigDict, classes: int, chip: chips.Chip, devices: list
) -> tuple[Forecast, str]:
    """Compiles the training step or the evaluation of a config; returns the program's text, too.

    Args:
        mode: "train" or "eval".
        config: the run's config.
        classes: their number, without the background.
        chip: what `devices` are.
        devices: from `chips.devices`.

    Raises:
        UserError: the config cannot run on these devices.
        TooLarge: it needs more memory than they have.
    """
    from scratchdet_jax.forecast import compiled as hlo
    from scratchdet_jax.forecast import programs
    from scratchdet_jax.parallel.devices import DeviceMapping

    def all_programs(mapping: DeviceMapping, layout: str) -> list[programs.Program]:
        chosen = config.copy_and_resolve_references()
        chosen.model.layout = layout
        if mode == "train":
            return [programs.training_program(chosen, classes, mapping)]
        return programs.evaluation_programs(chosen, classes, mapping)

    kind = config.parallel if mode == "train" else "shard_map"
    start = time.perf_counter()
    compiled = [
        _compile(program, chip)
        for program in all_programs(DeviceMapping(kind, devices), config.model.layout)
    ]
    seconds = time.perf_counter() - start
    texts = [program.as_text() for program in compiled]
    memory = max((hlo.device_memory(program) for program in compiled), key=lambda m: m["total"])
    available = chip.memory if chip.clock else GPU_SHARE * chip.memory
    if memory["total"] > available:
        raise TooLarge(_too_large(f"it needs {_memory(memory['total'])} of {_memory(available)}"))

    flop: Counter[tuple[str, bool]] = Counter()
    for program in all_programs(DeviceMapping("shard_map", devices), "plain"):
        for scope, count in program.flop().items():
            flop[programs.place(scope)] += count
    parsed = [hlo.Text(text) for text in texts]
    operations = [operation for text in parsed for operation in text.operations()]
    cycles: Counter[tuple[str, bool]] = Counter()
    moved: Counter[tuple[str, bool]] = Counter()
    kinds: Counter[str] = Counter()
    for operation in operations:
        place = programs.place(operation.scope)
        cycles[place] += operation.rounds * (operation.cycles or 0)
        moved[place] += operation.rounds * operation.bytes
        kinds[operation.kind] += operation.rounds * operation.bytes
    peak = chip.peak(config.model.dtype)

    def cost(place: tuple[str, bool]) -> float:
        if chip.clock:
            return cycles[place] / chip.clock
        return max(flop[place] / peak, moved[place] / chip.bandwidth)

    places = dict.fromkeys([*flop, *moved])
    parts = [Part(*place, flop[place], moved[place], cost(place)) for place in places]
    sent = [(one.kind, one.bytes) for text in texts for one in hlo.collectives(text)]
    batch = config.batch_size if mode == "train" else config.eval.batch_size
    made = Forecast(
        title=f"{config.name}, {mode}: {plural(batch, 'image')} on {len(devices)} x "
        f"{devices[0].device_kind}, {kind}, {config.model.dtype}",
        chips=len(devices),
        images=batch,
        compile_seconds=seconds,
        memory=memory,
        memory_available=available,
        collectives=_counts_and_bytes(sent),
        flop=sum(flop.values()),
        bytes=sum(moved.values()),
        bytes_by_kind={kind: size for kind, size in kinds.most_common() if size},
        estimated=chip.clock is not None,
        seconds=sum(part.seconds for part in parts),
        seconds_arithmetic=sum(flop.values()) / peak,
        seconds_memory=sum(moved.values()) / chip.bandwidth,
        unestimated=_counts_and_bytes(map(_unestimated, operations)) if chip.clock else {},
        parts=tuple(sorted(parts, key=_order)),
        loops=tuple(
            Loop(loop.scope, loop.trips, loop.cycles / chip.clock if chip.clock else 0.0)
            for text in parsed
            for loop in text.loops()
        ),
    )
    return made, "\n".join(texts)


def _counts_and_bytes(found: Iterable[tuple[str, int] | None]) -> dict[str, tuple[int, int]]:
    """Number and sum of (kind, bytes) by kind."""
    totals: dict[str, tuple[int, int]] = {}
    for kind, size in filter(None, found):
        count, before = totals.get(kind, (0, 0))
        totals[kind] = (count + 1, before + size)
    return totals


def _unestimated(operation: Any) -> tuple[str, int] | None:
    """What an operation without the compiler's estimate is, and its bytes; None if it is free."""
    from scratchdet_jax.forecast.compiled import KINDS

    size = operation.rounds * operation.bytes
    if operation.cycles is not None or operation.kind.endswith("-start"):
        return None
    if operation.kind.removesuffix("-done") in KINDS:
        return "collectives", size
    if not size:
        return None
    return ("ends of asynchronous copies" if operation.kind.endswith("-done") else "others"), size


def _compile(program: Any, chip: chips.Chip) -> Any:
    """Compiles a program; what the compiler says of memory becomes a TooLarge."""
    import jax

    cached = jax.config.jax_enable_compilation_cache
    # A program for a chip that is not here can be kept there, but not be loaded again.
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


def _too_large(why: str) -> str:
    return f"the batch does not fit: {why}; use a smaller one, more chips, or --largest_batch"


def _order(part: Part) -> tuple[int, str, bool]:
    """The order of the forward pass."""
    ends = {"inputs": 0, "root": 1, "extras": 3, "head": 4, "loss": 5, "detections": 5}
    ends |= {"update": 6, "rest": 7}
    return ends.get(part.name, 2), part.name, part.backward


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
    mode: str, config: ml_collections.ConfigDict, classes: int, chip: chips.Chip, devices: list
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
            said = f"fits, {_memory(tried[images][0].memory['total'])} a chip"
        except TooLarge:
            said = "does not fit"
        print(f"config.{field} {batch}: {said}", file=sys.stderr)
        return images in tried

    given = config.batch_size if mode == "train" else config.eval.batch_size
    found = largest(fits, max(1, given // (parts * len(devices))))
    if not found:
        raise UserError("not even one image a chip fits: use a smaller network or another chip")
    return tried[found]


def _memory(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.2f} MiB"


def to_text(made: Forecast) -> str:
    """The forecast as a table of figures and one of the parts."""
    share = made.images / made.chips
    memory = ", ".join(f"{n} {_memory(v)}" for n, v in made.memory.items() if n != "total")
    sent = [
        f"{count} {kind}, {size / 1e6:.2f} MB" for kind, (count, size) in made.collectives.items()
    ]
    fastest = "" if made.estimated else "at least "
    most = "" if made.estimated else "at most "
    source = "the compiler's" if made.estimated else "peak and memory, no overlap between parts"
    rows = [
        ("compiled", f"in {made.compile_seconds:.0f} s"),
        ("images a chip", f"{share:g}"),
        ("memory a chip", f"{_memory(made.memory['total'])} of {_memory(made.memory_available)}"),
        ("", memory),
        ("GFLOP an image", f"{made.flop / share / 1e9:.2f}"),
        ("MB an image, to and from memory", f"{made.bytes / share / 1e6:.1f}"),
        ("collectives a chip", "; ".join(sent) or "none"),
        ("estimate: time of a step", f"{fastest}{made.seconds * 1e3:.2f} ms ({source})"),
        ("  by arithmetic alone", f"at least {made.seconds_arithmetic * 1e3:.2f} ms"),
        ("  by memory alone", f"at least {made.seconds_memory * 1e3:.2f} ms"),
        ("estimate: images/s", f"{most}{made.images_per_second:,.0f}"),
        ("estimate: images/s a chip", f"{most}{made.images_per_second / made.chips:,.1f}"),
        ("estimate: share of peak", f"{most}{made.share_of_peak:.1%}"),
    ]
    lines = [made.title, "nothing was run; what is named an estimate is one", ""]
    lines += [f"  {name:<33} {value}" for name, value in rows]
    lines += ["", _table(made, "estimate, ms" if made.estimated else "at least, ms")]
    unknown = [loop for loop in made.loops if loop.trips is None]
    for loop in made.loops:
        rounds = "rounds depend on the data; one is counted" if loop in unknown else loop.trips
        each = f", {loop.seconds * 1e3:.3f} ms a round" if made.estimated else ""
        lines.append(f"loop in {loop.scope}: {rounds}{each}")
    if made.unestimated:
        left_out = ", ".join(
            f"{count} {kind} ({size / 1e6:.1f} MB)"
            for kind, (count, size) in made.unestimated.items()
        )
        lines.append(f"the compiler gives no estimate of: {left_out}")
    if not made.estimated:
        large = ", ".join(f"{k} {v / 1e6:.0f}" for k, v in list(made.bytes_by_kind.items())[:6])
        lines.append(f"MB by kind of operation: {large}")
        lines.append(
            "not in the memory: what cuDNN needs for itself; available is the "
            f"{GPU_SHARE:.0%} that JAX takes by default (XLA_PYTHON_CLIENT_MEM_FRACTION)"
        )
    return "\n".join(lines)


def _table(made: Forecast, time_title: str) -> str:
    rows = [
        (
            part.name,
            "backward" if part.backward else "forward",
            f"{part.flop / 1e9:.2f}",
            f"{part.bytes / 1e6:.1f}",
            f"{part.seconds * 1e3:.3f}",
            f"{part.seconds / made.seconds:.1%}",
        )
        for part in made.parts
    ]
    titles = ("part, on one chip", "pass", "GFLOP", "MB", time_title, "share")
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    return "\n".join(
        "  "
        + "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (titles, *rows)
    )


def define_flags() -> flags.FlagValues:
    """The flags besides the config."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "device", None, "What to compile for: v5e:16x16, v5p:2x2x1, h100, h100:8, ….", values
    )
    flags.DEFINE_integer(
        "num_classes", 20, "Number of classes, without the background.", flag_values=values
    )
    flags.DEFINE_bool(
        "largest_batch", False, "Find the largest batch that fits, and forecast it.", values
    )
    flags.DEFINE_string("json", None, "Also write the figures to this file.", values)
    flags.DEFINE_string(
        "hlo", None, "Also write the text of the compiled program to this file.", values
    )
    return values


def main(argv: Sequence[str]) -> None:
    """Parses the command line, compiles and prints."""
    program, *arguments = argv
    mode = arguments.pop(0) if arguments else ""
    if mode not in MODES:
        raise UserError(f"name what to forecast: {program} {' or '.join(MODES)} --config=FILE …")
    argv = [program, *arguments]
    device = cli.parse_early(argv, define_flags()).device
    if not device:
        raise UserError("name what to compile for, such as --device=v5e:2x2 or --device=h100")
    chips.prepare_environment()
    chip, devices = chips.devices(device)
    values = define_flags()
    config = cli.parse_config(argv, values)
    make = largest_forecast if values.largest_batch else forecast
    made, text = make(mode, config, values.num_classes, chip, devices)
    print(to_text(made))
    if values.json:
        write_json(values.json, made.record(), "--json")
    if values.hlo:
        try:
            Path(values.hlo).write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"--hlo {values.hlo} cannot be written ({error.strerror}): choose another file"
            ) from None


if __name__ == "__main__":
    cli.run(main)
