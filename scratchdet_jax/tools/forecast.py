"""Compiles a run for accelerators that are not here, and says what to expect of them.

scratchdet forecast train --config=FILE --device=v5e:16x16
scratchdet forecast eval --config=FILE --device=h100

Devices: a TPU slice (v4:2x2x1, v5e:16x16, v5p:4x4x4, v6e:2x2) or NVIDIA GPUs (a100, h100, h200,
h100:8). The chip's own compiler does the work, on this machine and without the chip:
requirements-tpu.txt and requirements-cuda.txt install it. A full step takes minutes to compile.

The program is the one that training or evaluation would run. Memory and collectives are those of
the compiled program. Speed is an estimate: on TPUs by the compiler, on GPUs a bound from the peak
of the chip and from its memory. docs/speed.md says how to read them.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from scratchdet_jax import cli
from scratchdet_jax.errors import UserError
from scratchdet_jax.files import write_json
from scratchdet_jax.forecast import chips, figures

MODES = ("train", "eval")


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
    from scratchdet_jax.forecast import estimate  # imports JAX

    chip, devices = chips.devices(device)
    values = define_flags()
    config = cli.parse_config(argv, values)
    make = estimate.largest_forecast if values.largest_batch else estimate.forecast
    made, text = make(mode, config, values.num_classes, chip, devices)
    print(figures.to_text(made))
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
