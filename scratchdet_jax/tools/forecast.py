"""Compiles a run for absent accelerators, and says what to expect of them.

scratchdet forecast train --config=FILE --device=v5e:16x16
scratchdet forecast eval --config=FILE --device=h100

Devices: a TPU slice (v4:2x2x1, v5e:16x16, v5p:4x4x4, v6e:2x2) or NVIDIA GPUs (a100, h100, h200,
h100:8). The chip's own compiler does the work, on this machine and without the chip:
requirements-tpu.txt and requirements-cuda.txt install it. A full step takes minutes to compile.

The program is the one that training or evaluation would run. Memory and collectives are the
compiled program's. Speed is an estimate: on TPUs by the compiler, on GPUs a bound from the peak
of the chip and from its memory. docs/speed.md says how to read them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from scratchdet_jax import cli
from scratchdet_jax.errors import UserError
from scratchdet_jax.files import write_json, write_text_atomically, writing
from scratchdet_jax.forecast import chips
from scratchdet_jax.paths import user_path
from scratchdet_jax.reports.page.tables import text_table

if TYPE_CHECKING:
    from scratchdet_jax.forecast.estimate import Forecast

MODES = ("train", "eval")


def define_flags() -> flags.FlagValues:
    """Returns the flags besides the config."""
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
    from scratchdet_jax.forecast import estimate  # imports JAX

    chip, devices = chips.devices(device)
    values = define_flags()
    config = cli.parse_config(argv, values)
    json_file, text_file = (given and user_path(given) for given in (values.json, values.hlo))
    make = estimate.largest_forecast if values.largest_batch else estimate.forecast
    made, text = make(mode, config, values.num_classes, chip, devices)
    print(to_text(made))
    if json_file:
        write_json(json_file, made.record(), "--json")
    if text_file:
        with writing(f"--hlo {text_file}"):
            write_text_atomically(text_file, text)


def to_text(made: "Forecast") -> str:
    """Writes a forecast as a table of figures and one of the parts."""
    from scratchdet_jax.forecast.estimate import GPU_SHARE, memory_text

    share = made.images / made.chips
    memory = ", ".join(f"{n} {memory_text(v)}" for n, v in made.memory.items() if n != "total")
    sent = [
        f"{count} {kind}, {size / 1e6:.2f} MB" for kind, (count, size) in made.collectives.items()
    ]
    least, most = ("", "") if made.estimated else ("at least ", "at most ")
    if made.estimated:
        source = "the compiler's"
        notes = "a loop of unknown length counts as one round; collectives are not in the time"
    else:
        source = "peak and memory, no overlap between parts"
        notes = (
            "not in the memory: what cuDNN needs for itself; available is the "
            f"{GPU_SHARE:.0%} that JAX takes by default (XLA_PYTHON_CLIENT_MEM_FRACTION)"
        )
    total, available = memory_text(made.memory["total"]), memory_text(made.memory_available)
    rows = [
        ("compiled", f"in {made.compile_seconds:.0f} s"),
        ("images a chip", f"{share:g}"),
        ("memory a chip", f"{total} of {available}"),
        ("", memory),
        ("GFLOP an image", f"{made.flop / share / 1e9:.2f}"),
        ("MB an image, to and from memory", f"{made.bytes / share / 1e6:.1f}"),
        ("collectives a chip", "; ".join(sent) or "none"),
        ("estimate: time of a step", f"{least}{made.seconds * 1e3:.2f} ms ({source})"),
        ("  by arithmetic alone", f"at least {made.seconds_arithmetic * 1e3:.2f} ms"),
        ("  by memory alone", f"at least {made.seconds_memory * 1e3:.2f} ms"),
        ("estimate: images/s", f"{most}{made.images_per_second:,.0f}"),
        ("estimate: images/s a chip", f"{most}{made.images_per_second / made.chips:,.1f}"),
        ("estimate: share of peak", f"{most}{made.share_of_peak:.1%}"),
    ]
    parts = [
        (
            f"{part.name}, {'backward' if part.backward else 'forward'}",
            f"{part.flop / 1e9:.2f}",
            f"{part.bytes / 1e6:.1f}",
            f"{part.seconds * 1e3:.3f}",
            f"{part.seconds / made.seconds:.1%}",
        )
        for part in made.parts
    ]
    head = ("part, on one chip", "GFLOP", "MB", f"{least or 'estimate, '}ms", "share")
    lines = [f"  {name:<33} {value}" for name, value in rows]
    return "\n".join(
        [
            made.title,
            "nothing was run; what is named an estimate is one\n",
            *lines,
            f"\n{text_table([head, *parts])}",
            notes,
        ]
    )


if __name__ == "__main__":
    cli.run(main)
