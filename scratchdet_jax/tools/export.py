"""Exports a trained detector to one file that runs without this package.

python -m scratchdet_jax.tools.export --workdir=runs/voc300 --output=voc300.jaxexport

The file holds the program (resizing, network, decoding, NMS) for CPUs, NVIDIA GPUs and TPUs and any
batch size, the weights, the class names and the config. scratchdet_jax.load, predict and
config.init_from take it; so does JAX alone (docs/exported_example.py).
"""

import argparse
import datetime
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

import scratchdet_jax
from scratchdet_jax import cli
from scratchdet_jax.config.scales import Scale
from scratchdet_jax.errors import UserError, plural
from scratchdet_jax.evaluation.multiscale import make_scale_step
from scratchdet_jax.files import mark_of
from scratchdet_jax.run.checkpoints import BEST_METRIC, IMPORTED, Checkpoints
from scratchdet_jax.run.exported import (
    ExportedRun,
    flat_weights,
    nested_weights,
    read_export,
    write_export,
)
from scratchdet_jax.run.open import SavedRun, load_detector, open_run

PLATFORMS = ("cpu", "cuda", "tpu")


def main(argv: Sequence[str]) -> None:
    """Parses the command line and exports."""
    options = _parse(argv)
    run, output = open_run(Path(options.workdir), options.checkpoint), Path(options.output)
    _check_output(output, run.workdir)
    exported = export_run(run, output)
    try:
        write_export(exported)
    except OSError as error:
        raise UserError(
            f"--output {output} cannot be written ({error.strerror}): choose another file"
        ) from None
    megabytes = output.stat().st_size / 1e6
    print(
        f"{run.workdir} step {run.step}, {plural(len(run.info.class_names), 'class')}, for "
        f"{', '.join(PLATFORMS)}: {megabytes:.1f} MB in {output}"
    )


def export_run(run: SavedRun, path: Path, platforms: Sequence[str] = PLATFORMS) -> ExportedRun:
    """Traces and lowers the detector of a run.

    Args:
        run: the checkpoint.
        path: the file that it is for.
        platforms: of the machines that can run it, as JAX names them.

    Raises:
        UserError: the run holds no detector, but an imported backbone.
    """
    imported = _imported(run.workdir)
    config = run.info.config.copy_and_resolve_references()
    with config.unlocked():
        config.model.layout = "plain"  # packed maps need an even batch
    detector, variables = load_detector(run, config)
    step = make_scale_step(detector, Scale(config.image_size))

    def detect(weights: dict[str, Any], images: jax.Array, sizes: jax.Array) -> dict[str, Any]:
        return step(nested_weights(weights), {"image": images, "size": sizes})._asdict()

    weights = flat_weights(variables)
    shapes = {name: jax.ShapeDtypeStruct(w.shape, w.dtype) for name, w in weights.items()}
    (batch,) = jax.export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *config.data.canvas, 3), jnp.uint8)
    sizes = jax.ShapeDtypeStruct((batch, 2), jnp.int32)
    exported = jax.export.export(jax.jit(detect), platforms=platforms)(shapes, images, sizes)
    metadata = describe(run, imported) | {"platforms": list(platforms)}
    return ExportedRun(path, metadata, bytes(exported.serialize()), weights)


def describe(run: SavedRun, imported: Mapping[str, Any]) -> dict[str, Any]:
    """What an exported file says of its detector, as JSON values."""
    config, classes = run.info.config, run.info.class_names
    height, width = config.data.canvas
    checkpoints = Checkpoints(run.workdir, read_only=True)
    score = checkpoints.score(run.step)
    checkpoints.close()
    return {
        "class_names": list(classes),
        "image_size": config.image_size,
        "canvas": [height, width],
        "score_threshold": config.eval.score_threshold,
        "nms_iou": config.eval.nms_iou,
        "max_detections": config.eval.max_detections,
        "inputs": {
            "images": f"uint8 [b, {height}, {width}, 3]: RGB; each image at the top left, reduced "
            "to fit if it is larger, the rest 0",
            "sizes": "int32 [b, 2]: height and width of the image in it",
        },
        "outputs": {
            "boxes": "float32 [b, k, 4]: (ymin, xmin, ymax, xmax) as shares of the image's sides",
            "scores": "float32 [b, k]: descending",
            "labels": "int32 [b, k]: label i is class_names[i - 1], 0 an empty slot",
        },
        "origin": {
            "recipe": config.name,
            "workdir": str(run.workdir),
            "run": mark_of(run.workdir),
            "step": run.step,
            BEST_METRIC: score,
            "metric": config.eval.metric,
            "imported": imported.get("format"),
            "exported": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "scratchdet_jax": scratchdet_jax.__version__,
            "jax": jax.__version__,
        },
        "config": json.loads(config.to_json_best_effort()),
    }


def _imported(workdir: Path) -> dict[str, Any]:
    """What `import_torch` recorded of a run; empty if it was trained."""
    record = workdir / IMPORTED
    if not record.exists():
        return {}
    imported = json.loads(record.read_text(encoding="utf-8"))
    if imported["initial"]:
        raise UserError(
            f"{workdir} holds an imported backbone, which is no detector yet: start a run from it "
            f"with --config.init_from={workdir}, and export that"
        )
    return imported


def _check_output(output: Path, workdir: Path) -> None:
    """Makes sure that nothing but an earlier export of the same run would be replaced."""
    if not os.path.lexists(output):
        return
    try:
        is_ours = read_export(output).metadata["origin"]["run"] == mark_of(workdir)
    except UserError:
        is_ours = False
    if not is_ours or output.is_symlink():
        raise UserError(
            f"{output} exists and is not an export of {workdir}: choose another file with "
            "--output, or remove it"
        )


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=argv[0], description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--workdir", required=True, help="folder of the run, as for train.py")
    add("--output", required=True, help="the file to write, such as model.jaxexport")
    add("--checkpoint", default="best", help="best, latest or a step")
    return parser.parse_args(argv[1:])


if __name__ == "__main__":
    cli.run(main)
