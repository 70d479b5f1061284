r"""Makes a run of PyTorch weights: the authors' mmdetection release, or torchvision's backbones.

python -m scratchdet_jax.tools.import_torch --checkpoint=F.pth \
    --config=configs/mmdet_release/ssd300.py --workdir=runs/release300
python eval.py --workdir=runs/release300

An ImageNet backbone is no detector yet; a run begins from it by --config.init_from=WORKDIR. Needs
PyTorch (pip install -r requirements-torch.txt).
"""

import json
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import ml_collections
import numpy as np
import optax
from absl import flags

from scratchdet_jax import cli
from scratchdet_jax.data import coco_classes
from scratchdet_jax.data.builders.voc_scan import VOC_CLASSES
from scratchdet_jax.detector import build_detector
from scratchdet_jax.errors import UserError, one_line, writable_folder
from scratchdet_jax.models.torch_weights import Imported, convert, number_of_classes
from scratchdet_jax.run.checkpoints import IMPORTED, Checkpoints, RunInfo
from scratchdet_jax.run.state import create_state

flags.DEFINE_string("checkpoint", None, "The PyTorch file.")
flags.DEFINE_string("workdir", None, "The run to make; must not hold one.")

_CLASSES = {len(names): names for names in (VOC_CLASSES, coco_classes.NAMES)}


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a PyTorch checkpoint by name; nothing in the file is executed.

    A file may hold the state dict itself or, as mmdetection's do, under `state_dict`.

    Raises:
        UserError: PyTorch is not installed, or the file is no checkpoint of plain tensors.
    """
    try:
        import torch
    except ImportError:
        raise UserError(
            "importing PyTorch weights needs PyTorch: pip install -r requirements-torch.txt"
        ) from None
    if not path.is_file():
        raise UserError(f"--checkpoint {path}: there is no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = one_line(str(error).split(". ")[0])
        raise UserError(
            f"--checkpoint {path} is no PyTorch checkpoint of tensors alone, which is all that is "
            f"read ({reason}): name a file that torch.save(model.state_dict(), …) has written"
        ) from None
    content = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(content, dict) or not all(torch.is_tensor(x) for x in content.values()):
        raise UserError(f"--checkpoint {path} holds no state dict: a dictionary of tensors by name")
    return {name: tensor.float().numpy() for name, tensor in content.items()}


def import_run(
    state: dict[str, np.ndarray], config: ml_collections.ConfigDict, workdir: Path
) -> Imported:
    """Writes a run of the weights `state` at step 0.

    Args:
        state: arrays by PyTorch's names.
        config: the recipe that the weights belong to.
        workdir: of the new run.

    Raises:
        UserError: the weights do not fit the recipe, or `workdir` holds a run.
    """
    writable_folder(workdir, "--workdir")
    checkpoints = Checkpoints(workdir)
    if checkpoints.latest_step is not None:
        checkpoints.close()
        raise UserError(f"{workdir} holds a run already: choose another --workdir")
    class_names = _class_names(state)
    detector = build_detector(config, class_names)
    initial = create_state(detector.model, optax.identity(), config.image_size, config.seed)
    imported = convert(state, jax.device_get(initial.variables))
    variables = jax.tree.map(jax.numpy.asarray, imported.variables)
    checkpoints.save(0, initial.replace(**variables), RunInfo(config, class_names), None)
    checkpoints.close()
    record = {"format": imported.source, "initial": imported.initial}
    (workdir / IMPORTED).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return imported


def _class_names(state: dict[str, np.ndarray]) -> tuple[str, ...]:
    """Of the data set with as many classes as the checkpoint's head; a backbone has no classes."""
    count = number_of_classes(state)
    if count is None:
        return ("object",)
    if count not in _CLASSES:
        raise UserError(
            f"the checkpoint's head predicts {count} classes: only VOC's 20 and COCO's 80 are "
            "known by name"
        )
    return tuple(_CLASSES[count])


def to_text(imported: Imported) -> str:
    """What was taken and what keeps its initial value, a line each, and the counts."""
    lines = [f"  taken    {ours} {shape} from {theirs}" for ours, theirs, shape in imported.taken]
    lines += [f"  initial  {name}: not in an ImageNet classifier" for name in imported.initial]
    counts = f"{len(imported.taken)} arrays taken, {len(imported.initial)} at their initial values"
    return "\n".join([*lines, f"{imported.source} format: {counts}"])


def main(argv: Sequence[str]) -> None:
    """Parses the command line and imports."""
    config = cli.parse_config(argv)
    checkpoint, workdir = flags.FLAGS.checkpoint, flags.FLAGS.workdir
    if not checkpoint or not workdir:
        raise UserError("name the PyTorch file and the new run: --checkpoint=F.pth --workdir=DIR")
    imported = import_run(read_state_dict(Path(checkpoint)), config, Path(workdir))
    print(to_text(imported))
    if imported.initial:
        print(f"begin a run from it: python train.py --config=… --config.init_from={workdir}")
    else:
        print(f"score it: python eval.py --workdir={workdir}")


if __name__ == "__main__":
    cli.run(main, sys.argv)
