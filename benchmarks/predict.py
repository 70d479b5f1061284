"""Measures the Python interface and the command predict on generated photos.

python -m benchmarks.predict --config=configs/voc300.py
python -m benchmarks.predict --config=configs/shapes.py --memory=4,400

Speed: images/s of the bare compiled function, on a batch that is in memory, and of the predictor on
JPEG files, in turns. Memory: the peak of `scratchdet predict` on that many photos of 12 megapixels.
The weights are random.
"""

import contextlib
import re
import shutil
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
from absl import flags

from benchmarks import measure
from scratchdet_jax import cli
from scratchdet_jax.detector import build_detector
from scratchdet_jax.predictor import load
from scratchdet_jax.run.checkpoints import Checkpoints, RunInfo
from scratchdet_jax.run.state import create_state
from scratchdet_jax.training.optimizer import make_optimizer


def define_flags() -> flags.FlagValues:
    """Returns the flags besides the config."""
    values = flags.FlagValues()
    flags.DEFINE_integer("batch", 8, "Images in a batch.", flag_values=values)
    flags.DEFINE_integer(
        "photos", 32, "Photos of 500 x 375 pixels, for the speed.", flag_values=values
    )
    flags.DEFINE_integer("repeats", 3, "Turns; medians are reported.", flag_values=values)
    flags.DEFINE_list(
        "memory",
        [],
        "Numbers of photos of 12 megapixels; instead of the speed.",
        flag_values=values,
    )
    flags.DEFINE_bool("pictures", False, "With --memory: draw pictures, too.", flag_values=values)
    flags.DEFINE_string("json", None, "Also write the figures to this file.", flag_values=values)
    return values


def main(argv: Sequence[str]) -> None:
    """Parses the command line and measures."""
    values = define_flags()
    config = cli.parse_config(argv, values)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        _save_run(run, config)
        if values.memory:
            rows = _memory(run, Path(folder), values)
        else:
            rows = _speed(run, Path(folder), values)
    measure.report(f"predict, {config.name}, {config.model.dtype}", rows, values.json)


def _save_run(workdir: Path, config: ml_collections.ConfigDict) -> None:
    detector = build_detector(config, measure.CLASSES)
    state = create_state(detector.model, make_optimizer(config), config.image_size, 0)
    checkpoints = Checkpoints(workdir)
    checkpoints.save(1, jax.device_get(state), RunInfo(config, measure.CLASSES))
    checkpoints.close()


def _write_photos(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """Writes `count` JPEG files: four smooth pictures with some noise, as large as photos."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    files = [folder / f"{number:05d}.jpg" for number in range(count)]
    for number, file in enumerate(files):
        if number >= 4:
            shutil.copy(files[number % 4], file)
            continue
        coarse = rng.integers(0, 256, (24, 32, 3), np.uint8)
        picture = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC).astype(np.int16)
        picture += rng.integers(-12, 13, picture.shape, np.int16)
        cv2.imwrite(str(file), np.clip(picture, 0, 255).astype(np.uint8))
    return files


def _speed(run: Path, folder: Path, values: flags.FlagValues) -> list[tuple[str, object]]:
    detector = load(run, batch_size=values.batch)
    files = _write_photos(folder / "photos", values.photos, (375, 500))
    images = np.random.default_rng(1).integers(
        0, 256, (values.batch, *detector.canvas, 3), np.uint8
    )
    sizes = np.tile(np.int32(detector.canvas), (values.batch, 1))
    batches = len(files) // values.batch

    def bare() -> None:
        running = [detector.function(images, sizes) for _ in range(batches)]
        jax.block_until_ready(running)

    def predictor() -> None:
        for _ in detector(iter(files[: batches * values.batch])):
            pass

    jax.block_until_ready(detector.function(images, sizes))  # compiles
    rates = {bare: [], predictor: []}
    for _ in range(values.repeats):
        for run_once, found in rates.items():
            start = time.perf_counter()
            run_once()
            found.append(batches * values.batch / (time.perf_counter() - start))
    ratios = [b / a for a, b in zip(rates[bare], rates[predictor], strict=True)]
    return [
        ("batch", values.batch),
        ("bare compiled function, images/s", statistics.median(rates[bare])),
        ("predictor on JPEG files, images/s", statistics.median(rates[predictor])),
        ("predictor / bare function", statistics.median(ratios)),
        ("predictor / bare function, each turn", ", ".join(f"{ratio:.2f}" for ratio in ratios)),
    ]


def _memory(run: Path, folder: Path, values: flags.FlagValues) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for count in map(int, values.memory):
        photos = folder / f"photos{count}"
        _write_photos(photos, count, (3000, 4000))
        start = time.perf_counter()
        command = [
            *(sys.executable, "-m", "scratchdet_jax.tools.predict", f"--workdir={run}"),
            *(f"--output={folder / f'out{count}'}", f"--batch_size={values.batch}"),
            *("--pictures" if values.pictures else "--no-pictures", photos),
        ]
        peak = 0
        with subprocess.Popen(command) as child:
            while child.poll() is None:
                peak = max(peak, _peak_kibibytes(child.pid))
                time.sleep(0.02)
        if child.returncode:
            raise RuntimeError(f"predict ended with status {child.returncode}")
        rows += [
            (f"{count} photos: peak memory, MiB", peak / 2**10),
            (f"{count} photos: seconds", time.perf_counter() - start),
        ]
        shutil.rmtree(photos)
    return rows


def _peak_kibibytes(process: int) -> int:
    """Returns the peak so far, from Linux's /proc; 0 if the process has just ended.

    The peak that the system reports at the end would include that of this process at the fork.
    """
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{process}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) if found else 0
    return 0


if __name__ == "__main__":
    cli.run(main)
