r"""Imports PyTorch weights into a run.

scratchdet import_torch --checkpoint=F.pth \
    --config=configs/mmdet_release/ssd300.py --workdir=runs/release300
python eval.py --workdir=runs/release300

Reads the authors' mmdetection release, the SSDs of mmdetection, ssd.pytorch and torchvision
(configs/stock_ssd.py), and torchvision's ImageNet backbones. A backbone is not a detector yet:
start a run from it with --config.init_from=WORKDIR. Needs PyTorch
(pip install -r requirements-torch.txt), or for a .safetensors file only safetensors.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import ml_collections
import numpy as np
import optax
from absl import flags

from scratchdet_jax import cli
from scratchdet_jax.data import coco_classes
from scratchdet_jax.datasets.voc_xml import VOC_CLASSES
from scratchdet_jax.detector import build_detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.files import writable_folder, write_text_atomically
from scratchdet_jax.interop.torch_files import read_arrays
from scratchdet_jax.interop.torch_weights import Imported, check_version, convert, number_of_classes
from scratchdet_jax.paths import run_path, user_path
from scratchdet_jax.run.checkpoints import IMPORTED, Checkpoints, RunInfo
from scratchdet_jax.run.state import create_state

_CLASSES = {len(names): names for names in (VOC_CLASSES, coco_classes.NAMES)}


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
    read = read_arrays(user_path(checkpoint))
    check_version(read.arrays, read.mmdetection)
    imported = import_run(read.arrays, config, run_path(workdir))
    print(to_text(imported))
    if imported.initial:
        print(f"start a run from it: python train.py --config=… --config.init_from={workdir}")
    else:
        print(f"score it: python eval.py --workdir={workdir}")


def import_run(
    state: dict[str, np.ndarray], config: ml_collections.ConfigDict, workdir: Path
) -> Imported:
    """Writes a run with the weights `state` at step 0.

    Raises:
        UserError: the weights do not fit the recipe, or `workdir` holds a run.
    """
    writable_folder(workdir, "--workdir")
    checkpoints = Checkpoints(workdir)
    if checkpoints.latest_step is not None:
        checkpoints.close()
        raise UserError(f"{workdir} already holds a run: choose another --workdir")
    class_names = _class_names(state)
    detector = build_detector(config, class_names)
    averaged = config.ema_decay > 0
    initial = create_state(
        detector.model, optax.identity(), config.image_size, config.seed, averaged
    )
    imported = convert(state, jax.device_get(initial.variables))
    variables = jax.tree.map(jax.numpy.asarray, imported.variables)
    # The checkpoint comes last: without it, the same command can be run again.
    record = {"format": imported.source, "initial": imported.initial}
    write_text_atomically(workdir / IMPORTED, json.dumps(record, indent=2) + "\n")
    checkpoints.save(0, initial.starting_from(variables), RunInfo(config, class_names), None)
    checkpoints.close()
    return imported


def _class_names(state: dict[str, np.ndarray]) -> tuple[str, ...]:
    """Returns the classes of the known data set with as many; a backbone has none."""
    count = number_of_classes(state)
    if count is None:
        return ("object",)
    if count not in _CLASSES:
        raise UserError(
            f"the checkpoint's head predicts {count} classes: class names are known only for "
            "VOC (20) and COCO (80)"
        )
    return tuple(_CLASSES[count])


def to_text(imported: Imported) -> str:
    """Returns one line per array (imported, or left at its initial value), then the counts."""
    lines = [f"  imported {ours} {shape} from {theirs}" for ours, theirs, shape in imported.taken]
    lines += [f"  initial  {name}: not in an ImageNet classifier" for name in imported.initial]
    counts = (
        f"{len(imported.taken)} arrays imported, {len(imported.initial)} at their initial values"
    )
    return "\n".join([*lines, f"{imported.source} format: {counts}"])


if __name__ == "__main__":
    cli.run(main)
