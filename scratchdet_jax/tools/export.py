"""Exports a trained detector to one file that runs without this package.

scratchdet export --workdir=runs/voc300 --output=voc300.jaxexport

The file holds the program (resizing, network, decoding, NMS) for CPUs, NVIDIA GPUs and TPUs and any
batch size, the weights, the class names and the config. scratchdet_jax.load, predict and
config.init_from take it; so does JAX alone (docs/exported_example.py). --format=onnx writes an ONNX
file for one image at a time instead.
"""

import argparse
import datetime
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

import scratchdet_jax
from scratchdet_jax import cli
from scratchdet_jax.config.scales import Scale
from scratchdet_jax.errors import UserError, plural
from scratchdet_jax.evaluation.multiscale import make_scale_step
from scratchdet_jax.files import check_replaceable, mark_of, size, write_atomically, writing
from scratchdet_jax.interop import onnx_file
from scratchdet_jax.ops.nms import Detections
from scratchdet_jax.paths import run_path, user_path
from scratchdet_jax.run.checkpoints import BEST_METRIC, IMPORTED, Checkpoints
from scratchdet_jax.run.exported import (
    FORMAT,
    FUNCTION,
    METADATA,
    VERSION,
    ExportedRun,
    nested_weights,
)
from scratchdet_jax.run.open import SavedRun, load_detector, open_run

PLATFORMS = ("cpu", "cuda", "tpu")


def main(argv: Sequence[str]) -> None:
    """Parses the command line and exports."""
    options = parser(argv[0]).parse_args(argv[1:])
    run, output = open_run(options.workdir, options.checkpoint), options.output
    as_onnx = options.format == "onnx"
    if as_onnx:
        onnx_file.check_installed()
    check_replaceable(f"--output {output}", output, _mark(run), options.overwrite)
    # Names of source files in the program come without the folders of this machine.
    jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*/")
    with writing(f"--output {output}"):
        if as_onnx:
            content = onnx_model(run).SerializeToString()
            write_atomically(output, lambda file: file.write(content))
        else:
            write_export(export_run(run, output))
    megabytes = size(output) / 1e6
    target = "ONNX" if as_onnx else f"JAX on {', '.join(PLATFORMS)}"
    print(
        f"{run.workdir} step {run.step}, {plural(len(run.info.class_names), 'class')}, for "
        f"{target}: {megabytes:.1f} MB in {output}"
    )


def write_export(exported: ExportedRun) -> None:
    """Writes the file; `metadata` gets the format, its version and the names of the weights."""
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        **exported.metadata,
        "weights": list(exported.weights),
    }

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(METADATA, json.dumps(metadata, indent=1, ensure_ascii=False))
            archive.writestr(FUNCTION, exported.function)
            for name, value in exported.weights.items():
                content = io.BytesIO()
                np.lib.format.write_array(content, value, allow_pickle=False)
                archive.writestr(f"{name}.npy", content.getbuffer())

    write_atomically(exported.path, write)


def export_run(run: SavedRun, path: Path, platforms: Sequence[str] = PLATFORMS) -> ExportedRun:
    """Traces and lowers the detector of a run.

    `platforms`: of the machines that can run it, as JAX names them.

    Raises:
        UserError: the run holds no detector, but an imported backbone.
    """
    metadata = describe(run) | {"platforms": list(platforms)}
    step, variables = _step(run)

    def detect(weights: dict[str, Any], images: jax.Array, sizes: jax.Array) -> dict[str, Any]:
        return step(nested_weights(weights), {"image": images, "size": sizes})._asdict()

    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    weights = {name: np.asarray(value) for name, value in sorted(flat.items())}
    shapes = {name: jax.ShapeDtypeStruct(w.shape, w.dtype) for name, w in weights.items()}
    (batch,) = jax.export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *run.info.config.data.canvas, 3), jnp.uint8)
    sizes = jax.ShapeDtypeStruct((batch, 2), jnp.int32)
    exported = jax.export.export(jax.jit(detect), platforms=platforms)(shapes, images, sizes)
    return ExportedRun(path, metadata, bytes(exported.serialize()), weights)


def onnx_model(run: SavedRun) -> Any:
    """Converts the detector of a run to an onnx.ModelProto, which computes in float32.

    Raises:
        UserError: the run holds no detector, but an imported backbone.
    """
    metadata = describe(run)
    step, variables = _step(run, dtype="float32")  # onnxruntime has few operators for bfloat16
    variables = jax.device_get(variables)

    def detect(images: jax.Array, sizes: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(step(variables, {"image": images, "size": sizes}))

    return onnx_file.convert(detect, run.info.config.data.canvas, metadata)


def _step(run: SavedRun, **model: Any) -> tuple[Callable[..., Detections[jax.Array]], Any]:
    """Returns the function (variables, batch) → detections of a run, and its variables.

    `model` replaces fields of `config.model`.
    """
    config = run.info.config.copy_and_resolve_references()
    with config.unlocked():
        config.model.update(layout="plain", **model)  # packed maps need an even batch
    detector, variables = load_detector(run, config)
    scale = Scale(config.image_size, config.image_size)
    return make_scale_step(detector, scale), variables


def describe(run: SavedRun) -> dict[str, Any]:
    """Returns what an exported file says of its detector, as JSON values.

    Raises:
        UserError: the run holds no detector, but an imported backbone.
    """
    imported = _imported(run.workdir)
    config, classes = run.info.config, run.info.class_names
    height, width = config.data.canvas
    checkpoints = Checkpoints(run.workdir, read_only=True)
    score = checkpoints.score(run.step)
    checkpoints.close()
    return {
        "generator": _mark(run),
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


def _mark(run: SavedRun) -> str:
    """Returns the mark of an exported file: only the same run replaces it."""
    return f"scratchdet export {mark_of(run.workdir)}"


def _imported(workdir: Path) -> dict[str, Any]:
    """Returns what `import_torch` recorded of a run; nothing if it was trained."""
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


def parser(program: str) -> argparse.ArgumentParser:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(prog=program, description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--workdir", required=True, type=run_path, help="folder of the run, as for train.py")
    add(
        "--output", required=True, type=user_path, help="the file to write, such as model.jaxexport"
    )
    add("--overwrite", action="store_true", help="replace the file, whoever wrote it")
    add("--checkpoint", default="best", help="best, latest or a step")
    add(
        "--format",
        choices=("jax", "onnx"),
        default="jax",
        help="jax: for JAX, scratchdet_jax.load, predict and init_from; onnx: needs "
        "requirements-onnx.txt",
    )
    return parser


if __name__ == "__main__":
    cli.run(main)
