"""Compares an exported detector with the run that it comes from: detections, size, first detection.

python -m benchmarks.exported --workdir=runs/bccd BCCD/JPEGImages/*.jpg
python -m benchmarks.exported --recipe=configs/voc300.py --count=8 photos/*.jpg

With --recipe, the weights are random, and BatchNorm has the statistics of the photos. The
detections include all scores, in float32 on the canvas of the run. The time to the first
detection is that of a new process, from its start until it has printed the objects in one photo,
without a compilation cache. ONNX is measured where jax2onnx and onnxruntime are installed.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import jax
import ml_collections
import numpy as np

from benchmarks import measure
from scratchdet_jax import cli
from scratchdet_jax.config.recipes import load_recipe
from scratchdet_jax.detector import build_detector
from scratchdet_jax.ops import nms
from scratchdet_jax.predictor import Detections, Predictor, load
from scratchdet_jax.run.checkpoints import Checkpoints, RunInfo
from scratchdet_jax.run.state import create_state
from scratchdet_jax.tools import export as export
from scratchdet_jax.training.optimizer import make_optimizer

ROOT = Path(__file__).resolve().parents[1]
_LOAD = "import sys, scratchdet_jax; print(len(scratchdet_jax.load(sys.argv[1])(sys.argv[2])))"


def main(argv: Sequence[str]) -> None:
    """Parses the command line and measures."""
    options = parser(argv[0]).parse_args(argv[1:])
    options.workdir = options.workdir and os.path.abspath(options.workdir)
    photos = [os.path.abspath(photo) for photo in options.photos[: options.count]]
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(options.workdir or Path(folder, "run"))
        if not options.workdir:
            _save_run(workdir, load_recipe(options.recipe), photos)
        files = {"exported": Path(folder, "model.jaxexport")}
        if all(map(importlib.util.find_spec, ("jax2onnx", "onnxruntime"))):
            files["ONNX"] = Path(folder, "model.onnx")
        for kind, file in files.items():
            name = "onnx" if kind == "ONNX" else "jax"
            export.main(["", f"--workdir={workdir}", f"--output={file}", f"--format={name}"])
        rows = [("photos", len(photos)), *_compare(workdir, files, photos)]
        rows += [(f"{kind}: file, MB", file.stat().st_size / 1e6) for kind, file in files.items()]
        rows += _first_detections(workdir, files, photos[0], options.repeats)
    measure.report(f"exported, {workdir}", rows, None)


def _save_run(workdir: Path, config: ml_collections.ConfigDict, photos: Sequence[str]) -> None:
    """Saves random weights with BatchNorm statistics of the photos; others give scores of 1."""
    side, config.model.norm_decay = config.image_size, 0.0
    detector = build_detector(config, measure.CLASSES)
    state = create_state(detector.model, make_optimizer(config), side, 0)
    images = np.stack([cv2.resize(cv2.imread(p)[..., ::-1], (side, side)) for p in photos])
    forward = jax.jit(detector.forward)
    _, moments = forward(state.params, state.batch_stats, detector.normalize(images))
    variables = {"params": state.params, "batch_stats": moments}
    checkpoints = Checkpoints(workdir)
    checkpoints.save(1, state.starting_from(variables), RunInfo(config, measure.CLASSES))
    checkpoints.close()


def _onnx_predictor(file: Path, live: Predictor) -> Predictor:
    import onnxruntime

    session = onnxruntime.InferenceSession(file)

    def function(images: np.ndarray, sizes: np.ndarray) -> nms.Detections:
        return nms.Detections(*session.run(None, {"images": images, "sizes": sizes}))

    return Predictor(function, live.class_names, live.canvas, 1)


def _compare(
    workdir: Path, files: dict[str, Path], photos: Sequence[str]
) -> list[tuple[str, object]]:
    live = load(workdir)
    expected = [live(photo, 0) for photo in photos]
    rows: list[tuple[str, object]] = [("detections in them", sum(map(len, expected)))]
    for kind, file in files.items():
        other = _onnx_predictor(file, live) if kind == "ONNX" else load(file)
        rows += _differences(kind, [other(photo, 0) for photo in photos], expected)
        if kind == "exported":
            batched = list(zip(other(photos, 0), live(photos, 0), strict=True))
            rows += _differences("exported, batches of 8", *zip(*batched, strict=True))
    return rows


def _differences(
    kind: str, found: Sequence[Detections], expected: Sequence[Detections]
) -> list[tuple[str, object]]:
    pairs = list(zip(found, expected, strict=True))
    same = [
        all(np.array_equal(getattr(a, f), getattr(b, f)) for f in ("boxes", "scores", "labels"))
        for a, b in pairs
    ]
    rows: list[tuple[str, object]] = [(f"{kind}: photos equal to the bit", sum(same))]
    if all(same):
        return rows
    alike = [(a, b) for a, b in pairs if np.array_equal(a.labels, b.labels)]
    counted = [(a, b) for a, b in pairs if len(a) == len(b)]
    scores = [float(np.abs(a.scores - b.scores).max(initial=0)) for a, b in counted]
    boxes = [float(np.abs(a.boxes - b.boxes).max(initial=0)) for a, b in alike]
    return [
        *rows,
        (f"{kind}: photos with the same labels in order", len(alike)),
        (f"{kind}: photos with as many detections", len(counted)),
        (f"{kind}: scores in them differ by, rank by rank", max(scores, default=0.0)),
        (f"{kind}: boxes differ by, pixels, in the same order", max(boxes, default=0.0)),
    ]


def _first_detections(
    workdir: Path, files: dict[str, Path], photo: str, repeats: int
) -> list[tuple[str, object]]:
    programs = {
        "the run": ("-c", _LOAD, workdir),
        "exported, scratchdet_jax.load": ("-c", _LOAD, files["exported"]),
        "exported, JAX alone": (ROOT / "docs" / "exported_example.py", files["exported"]),
    }
    if "ONNX" in files:
        programs["onnxruntime"] = (ROOT / "docs" / "onnx_example.py", files["ONNX"])
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            command = [sys.executable, *map(str, program), photo]
            start = time.perf_counter()
            subprocess.run(
                command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
            )
            times[name].append(time.perf_counter() - start)
    return [(f"first detection, {n}, s", statistics.median(found)) for n, found in times.items()]


def parser(program: str) -> argparse.ArgumentParser:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", help="folder of a run")
    source.add_argument("--recipe", help="instead of a run: random weights of this recipe")
    parser.add_argument("photos", nargs="+", help="image files")
    parser.add_argument("--count", type=int, default=50, help="largest number of photos")
    parser.add_argument("--repeats", type=int, default=3, help="turns; medians are reported")
    return parser


if __name__ == "__main__":
    cli.run(main)
