r"""Imports PyTorch weights into a run.

scratchdet import_torch --checkpoint=F.pth \
    --config=configs/mmdet_release/ssd300.py --workdir=runs/release300
python eval.py --workdir=runs/release300

Reads the authors' mmdetection release, the SSDs of mmdetection, ssd.pytorch and torchvision
(configs/stock_ssd.py), and torchvision's ImageNet backbones. A backbone is not a detector yet:
start a run from it with --config.init_from=WORKDIR. Needs PyTorch
(pip install -r requirements-torch.txt), or for a .safetensors file only safetensors.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from scratchdet_jax import cli
from scratchdet_jax.errors import UserError
from scratchdet_jax.interop.torch_files import read_arrays
from scratchdet_jax.interop.torch_run import import_run, to_text
from scratchdet_jax.interop.torch_weights import check_version


def define_flags() -> flags.FlagValues:
    """Returns the flags besides the config."""
    values = flags.FlagValues()
    flags.DEFINE_string("checkpoint", None, "The PyTorch or safetensors file.", values)
    flags.DEFINE_string("workdir", None, "Folder of the new run; must not hold a run.", values)
    return values


def main(argv: Sequence[str]) -> None:
    """Parses the command line and imports."""
    values = define_flags()
    config = cli.parse_config(argv, values)
    checkpoint, workdir = values.checkpoint, values.workdir
    if not checkpoint or not workdir:
        raise UserError("name the PyTorch file and the new run: --checkpoint=F.pth --workdir=DIR")
    read = read_arrays(Path(checkpoint))
    check_version(read.arrays, read.mmdetection)
    imported = import_run(read.arrays, config, Path(workdir))
    print(to_text(imported))
    if imported.initial:
        print(f"start a run from it: python train.py --config=… --config.init_from={workdir}")
    else:
        print(f"score it: python eval.py --workdir={workdir}")


if __name__ == "__main__":
    cli.run(main)
