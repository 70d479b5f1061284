"""What to expect of a program: the figures of a forecast, for JSON and as tables."""

from typing import Any, NamedTuple

GPU_SHARE = 0.75  # of a GPU's memory that JAX takes at its start, unless told otherwise


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


class TimedLoop(NamedTuple):
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
    loops: tuple[TimedLoop, ...]

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


def memory_text(size: float) -> str:
    """Returns a number of bytes in GiB or MiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.2f} MiB"


def to_text(made: Forecast) -> str:
    """The forecast as a table of figures and one of the parts."""
    share = made.images / made.chips
    memory = ", ".join(f"{n} {memory_text(v)}" for n, v in made.memory.items() if n != "total")
    sent = [
        f"{count} {kind}, {size / 1e6:.2f} MB" for kind, (count, size) in made.collectives.items()
    ]
    fastest = "" if made.estimated else "at least "
    most = "" if made.estimated else "at most "
    source = "the compiler's" if made.estimated else "peak and memory, no overlap between parts"
    rows = [
        ("compiled", f"in {made.compile_seconds:.0f} s"),
        ("images a chip", f"{share:g}"),
        (
            "memory a chip",
            f"{memory_text(made.memory['total'])} of {memory_text(made.memory_available)}",
        ),
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
