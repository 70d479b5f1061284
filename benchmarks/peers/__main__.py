"""Trains this project's detector and others on the same photos, and compares them.

python -m benchmarks.peers --photos=BCCD --output=runs/peers --minutes=20

Every detector starts from random weights and trains for the same time on the split `train`, with
the settings of its own project. `scratchdet score` scores all of them on `val`. The others run in
their own environment, which is made in the output folder (several GB). Nothing else should run
on the machine. The same command resumes a stopped comparison; finished detectors are not trained
again. The table is also written to table.md.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from scratchdet_jax import cli
from scratchdet_jax.config.defaults import number_of_steps
from scratchdet_jax.detector import build_detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.files import writable_folder
from scratchdet_jax.progress import usable_cores
from scratchdet_jax.reports.curves import read_run
from scratchdet_jax.run.open import open_run
from scratchdet_jax.tools.score import score_coco
from scratchdet_jax.tools.summary import layers_of, totals

HERE = Path(__file__).parent
NAME = "peers"  # of the prepared data set
OURS = "scratchdet_jax"
PEERS = {  # the script that trains it, by name
    "yolo11n": "train_yolo.py",
    "ssdlite320_mobilenet_v3_large": "train_torchvision.py",
    "ssd300_vgg16": "train_torchvision.py",
}
TITLES = {
    OURS: "this project: SSD, Root-ResNet-18 × 0.25, 240 px",
    "yolo11n": "Ultralytics: YOLO11n, 320 px",
    "ssdlite320_mobilenet_v3_large": "torchvision: SSDlite, MobileNetV3, 320 px",
    "ssd300_vgg16": "torchvision: SSD300, VGG-16, 300 px",
}
OWN_DATA_PAGE = ("--config.image_size=240", "--config.data.canvas=240,320")  # docs/own-data.md
TRIAL_STEPS = 40  # of the run that measures this project's speed


def run(*command: str | Path) -> float:
    """Shows and runs a command; returns the seconds it took.

    Raises:
        UserError: it failed.
    """
    words = [str(word) for word in command]
    print(f"\n$ {' '.join(words)}", flush=True)
    start = time.monotonic()
    if status := subprocess.run(words, check=False).returncode:
        raise UserError(f"{' '.join(words)} ended with status {status}")
    return time.monotonic() - start


def prepare_data(photos: str, output: Path) -> Path:
    """Prepares the photos for all detectors; returns the folder that the others read."""
    data_dir, folder = output / "data", output / "exported"
    tool = (sys.executable, "-m", "scratchdet_jax.tools.prepare", "voc")
    run(*tool, f"--folder={photos}", f"--name={NAME}", f"--data_dir={data_dir}")
    if not (folder / "data.yaml").exists():  # written last
        tool = (sys.executable, "-m", "benchmarks.peers.prepare", f"voc_folder/{NAME}")
        run(*tool, f"--data_dir={data_dir}", f"--output={folder}")
    return folder


def train_ours(output: Path, minutes: float) -> None:
    """Trains the recipe for own images on as many images as the time allows, and detects on val.

    A short run before gives the speed, and the time that starting, compiling and evaluating take.
    """
    train = (
        *(sys.executable, "train.py", "--config=configs/voc_folder.py", *OWN_DATA_PAGE),
        *(
            f"--config.data.train=voc_folder/{NAME}:train",
            f"--config.data.eval=voc_folder/{NAME}:val",
        ),
        *(f"--config.data.dir={output / 'data'}", "--config.eval.every_steps=0"),
    )
    trial, workdir, summary = output / "trial", output / "run", output / OURS / "summary.json"
    images_file = output / "images.txt"  # a resumed run must have the same length
    if not images_file.exists():
        length = f"--config.num_steps={TRIAL_STEPS}"
        spent = run(*train, length, "--config.log_every=5", f"--workdir={trial}")
        records = read_run(trial, "trial").train[1:]  # the first includes compilation
        speed = statistics.median(record["images_per_second"] for record in records)
        batch = open_run(trial, "latest").info.config.batch_size
        overhead = max(0.0, spent - TRIAL_STEPS * batch / speed)
        images_file.write_text(str(max(batch, int(speed * (60 * minutes - overhead)))))
    spent = run(*train, f"--config.train_images={images_file.read_text()}", f"--workdir={workdir}")
    run(sys.executable, "eval.py", f"--workdir={workdir}")
    info = open_run(workdir, "latest").info
    layers = layers_of(build_detector(info.config, info.class_names))
    summary.parent.mkdir(exist_ok=True)
    shutil.copy(workdir / "eval" / "coco_results.json", summary.with_name("detections.json"))
    record = {
        "model": OURS,
        "parameters": totals(layers)["total"][0],
        "jax": jax.__version__,
        "images": number_of_steps(info.config) * info.config.batch_size,
        "minutes": spent / 60,
    }
    summary.write_text(json.dumps(record, indent=2) + "\n")


def train_peers(output: Path, folder: Path, minutes: float) -> None:
    """Makes the environment of the other projects, and trains each of their detectors."""
    python = output / "venv" / "bin" / "python"
    if not (output / "venv" / "installed").exists():
        run(sys.executable, "-m", "venv", output / "venv")
        run(python, "-m", "pip", "install", "--quiet", "-r", HERE / "requirements.txt")
        (output / "venv" / "installed").touch()
    for name, script in PEERS.items():
        if not (folder / name / "detections.json").exists():  # written last
            flags = (f"--data={folder}", f"--minutes={minutes}", f"--threads={usable_cores()}")
            run(python, HERE / script, name, *flags)


def table(output: Path, folder: Path) -> str:
    """Writes the comparison of the finished detectors as Markdown."""
    lines = [
        "| detector | AP50 | AP | images seen | parameters | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for name, title in TITLES.items():
        made = (output if name == OURS else folder) / name
        if not (made / "detections.json").exists():
            continue
        summary = json.loads((made / "summary.json").read_text())
        scores = score_coco(folder / "val.json", made / "detections.json")
        lines.append(
            f"| {title} | {scores['AP50']:.3f} | {scores['mAP']:.3f} | {summary['images']:,} | "
            f"{summary['parameters'] / 1e6:.1f} M | {summary['minutes']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def parser(program: str) -> argparse.ArgumentParser:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", required=True, help="VOC annotations, lists train and val")
    parser.add_argument("--output", required=True, help="folder of everything that is made")
    parser.add_argument("--minutes", type=float, default=20, help="training time of each")
    return parser


def main(argv: Sequence[str]) -> None:
    """Parses the command line, trains all detectors and prints the table."""
    options = parser(argv[0]).parse_args(argv[1:])
    output = writable_folder(Path(options.output), "--output")
    folder = prepare_data(options.photos, output)
    if not (output / OURS / "summary.json").exists():
        train_ours(output, options.minutes)
    train_peers(output, folder, options.minutes)
    text = table(output, folder)
    (output / "table.md").write_text(text)
    print(f"\n{text}")


if __name__ == "__main__":
    cli.run(main)
