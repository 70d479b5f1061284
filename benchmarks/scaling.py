"""Estimates weak scaling on paper.

python -m benchmarks.scaling --collectives=FILE

FILE was written by python -m benchmarks.collectives --json=FILE. Prints, in Markdown, the time of
the step's reductions on rings of given bandwidth and latency, compared with the time of its
arithmetic, and the number of chips from which they exceed the share `--matters` of it. Nothing is
measured: bandwidths are the makers' figures, latencies and the share of the peak are assumptions.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from scratchdet_jax import cli
from scratchdet_jax.errors import UserError

CHIPS = (8, 64, 512, 4096)
MOST_CHIPS = 2**20  # the search for a threshold ends here


class Network(NamedTuple):
    """A network between chips, and the chip assumed with it.

    Attributes:
        name: of the network and the chip.
        bandwidth: bytes/s that one chip sends in one direction.
        latency: seconds per hop.
        peak: bfloat16 FLOP/s of the chip.
    """

    name: str
    bandwidth: float
    latency: float
    peak: float


# H100: NVLink 900 GB/s; v5p: 1200 GB/s on six links. Both figures count both directions.
NETWORKS = (
    Network("NVLink 4, H100", 450e9, 5e-6, 989e12),
    Network("100 Gb/s a GPU, H100", 12.5e9, 5e-6, 989e12),
    Network("ICI, one link of a TPU v5p", 100e9, 1e-6, 459e12),
)


class Reductions(NamedTuple):
    """The reductions of one update: bytes of gradients, bytes and operations of statistics."""

    gradients: int
    statistics: int
    operations: int


def read_reductions(path: str) -> Reductions:
    """Reads the JSON file of benchmarks.collectives; UserError if it is not one."""
    try:
        record = json.loads(Path(path).read_text())
        found = Reductions(
            record["gradients and loss sums"],
            record["BatchNorm statistics, forward and backward"],
            record["all-reduce operations as compiled"] - 1,  # without that of the gradients
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"--collectives {path} is not a file of benchmarks.collectives --json ({error!r})"
        ) from None
    if not found.statistics:
        raise UserError(
            f"--collectives {path} has no statistics across devices: count with norm_span 0"
        )
    return found


def ring_seconds(size: float, chips: int, network: Network, operations: int = 1) -> float:
    """Computes the seconds of successive ring all-reduces of `size` bytes in total.

    Each sends 2 (n − 1) messages of 1/n of its bytes: 2 (n − 1) α + 2 (n − 1) / n · size / β.
    """
    hops = 2 * (chips - 1)
    return operations * hops * network.latency + hops / chips * size / network.bandwidth


def tree_seconds(size: float, chips: int, network: Network, operations: int = 1) -> float:
    """Computes the seconds of tree all-reduces, for small sizes: 2 ⌈log₂ n⌉ (α + size / β)."""
    hops = 2 * math.ceil(math.log2(chips)) if chips > 1 else 0
    return hops * (operations * network.latency + size / network.bandwidth)


def threshold(seconds: Callable[[int], float], limit: float) -> str:
    """Returns the smallest power of two of chips, from 2, at which `seconds` exceed `limit`."""
    chips = 2
    while chips <= MOST_CHIPS:
        if seconds(chips) > limit:
            return f"{chips:,}"
        chips *= 2
    return "never"


def rows(reductions: Reductions, images: int, gflop: float, share: float, matters: float) -> str:
    """Returns the Markdown tables: milliseconds by network and chips, and thresholds."""
    size, operations = reductions.statistics, reductions.operations
    times = [
        "| network and chip | arithmetic, ms | chips | gradients, ring | statistics, ring "
        "| statistics, tree |",
        "|---|---|---|---|---|---|",
    ]
    limits = [
        "| network and chip | gradients, ring | statistics, ring | statistics, tree |",
        "|---|---|---|---|",
    ]
    for network in NETWORKS:
        arithmetic = images * gflop * 1e9 / (share * network.peak)
        columns = (
            lambda n, net=network: ring_seconds(reductions.gradients, n, net),
            lambda n, net=network: ring_seconds(size, n, net, operations),
            lambda n, net=network: tree_seconds(size, n, net, operations),
        )
        for chips in CHIPS:
            cells = " | ".join(f"{1e3 * seconds(chips):,.2f}" for seconds in columns)
            times.append(f"| {network.name} | {1e3 * arithmetic:.1f} | {chips} | {cells} |")
        found = " | ".join(threshold(seconds, matters * arithmetic) for seconds in columns)
        limits.append(f"| {network.name} | {found} |")
    return "\n".join([*times, "", *limits])


def define_flags() -> flags.FlagValues:
    """Returns the flags."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "collectives", None, "JSON file of benchmarks.collectives.", flag_values=values
    )
    flags.DEFINE_integer(
        "images", 16, "Images per chip and update; constant in weak scaling.", flag_values=values
    )
    flags.DEFINE_float(
        "gflop", 197.0, "GFLOP per trained image (from benchmarks.train_step).", flag_values=values
    )
    flags.DEFINE_float(
        "share", 0.3, "Assumed share of the chip's peak that the step achieves.", flag_values=values
    )
    flags.DEFINE_float(
        "matters",
        0.1,
        "Share of the arithmetic's time that counts as too much.",
        flag_values=values,
    )
    return values


def main(argv: Sequence[str]) -> None:
    """Parses the command line and prints the tables."""
    values = cli.parse_flags(argv, define_flags())
    if not values.collectives:
        raise UserError("name the counts: --collectives=FILE (from benchmarks.collectives --json)")
    for name in ("images", "gflop", "share", "matters"):
        if values[name].value <= 0:
            raise UserError(f"--{name} must be above 0")
    reductions = read_reductions(values.collectives)
    print(rows(reductions, values.images, values.gflop, values.share, values.matters))


if __name__ == "__main__":
    cli.run(main)
