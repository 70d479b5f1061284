"""Detects objects in photos, folders and videos, or in the run's eval split.

scratchdet predict --workdir=runs/voc300 --output=found a.jpg photos clip.mp4

The results are written as they come: detections.json in COCO's format (or CSV, or VOC's text
files), a picture of each image, an annotated copy of each video, and a grid of a few images. Images
that cannot be read are named at the end. It replaces only pictures and detections.json that it
wrote itself for the same workdir, never an image or another file.
"""

import argparse
import collections
import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scratchdet_jax import cli
from scratchdet_jax.data.sources import open_split
from scratchdet_jax.errors import UserError, plural
from scratchdet_jax.evaluation.drawing import grid, save_png
from scratchdet_jax.evaluation.formats import split_name
from scratchdet_jax.files import check_replaceable, mark_of, writable_folder
from scratchdet_jax.mirror import Mirror
from scratchdet_jax.paths import in_bucket, user_path
from scratchdet_jax.predictor import BATCH_SIZE, THRESHOLD, Predictor, Threshold, from_run
from scratchdet_jax.progress import Progress
from scratchdet_jax.run.exported import ExportedRun
from scratchdet_jax.run.open import SavedRun, open_trained
from scratchdet_jax.tools.predict import inputs, outputs
from scratchdet_jax.tools.predict.inputs import Item
from scratchdet_jax.tools.predict.outputs import FORMATS, GRID_LIMIT, Drawn

_GRID = "grid"


class _Work(NamedTuple):
    """The images to detect in, and the names of what is written.

    Attributes:
        items: the images.
        total: their number, as far as it is known before the videos are read.
        photos: stems of the pictures, but for the frames of videos.
        videos: stems of the videos.
        files: the files to read.
        split: part of the names of VOC's files.
    """

    items: Iterator[Item]
    total: int
    photos: list[str]
    videos: list[str]
    files: list[str]
    split: str


def main(argv: Sequence[str]) -> None:
    """Parses the command line, detects objects and writes what was found."""
    options = parser(argv[0]).parse_args(argv[1:])
    run, output = open_trained(options.workdir, options.checkpoint), options.output
    broken: list[str] = []
    work = _files(options, broken) if options.images else _split_images(options, run)
    classes, software = run.info.class_names, f"{inputs.MARK} {mark_of(options.workdir)}"
    files = outputs.result_files(options.format, output, classes, work.split)
    _check_output(options, work, files, software)
    detector = from_run(run, max(1, min(options.batch_size, work.total)))
    found = _detected(detector, work.items, _threshold(options.threshold, classes))
    writable_folder(output, "--output")
    with contextlib.closing(Mirror(output)) as mirror:
        files = outputs.result_files(options.format, mirror.folder, classes, work.split)
        results = outputs.open_results(options.format, files, classes, software)
        done, counts = _write(options, work, found, mirror.folder, results, software, broken)
    classified = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(10))
    print(
        f"{plural(done, 'image')}, {plural(counts.total(), 'detection')}"
        + (f" ({classified}{', …' if len(counts) > 10 else ''})" if counts else "")
        + f" in {output}"
    )
    if broken:
        listed = "\n".join(f"  {line}" for line in broken)
        raise UserError(f"{plural(len(broken), 'file')} could not be used:\n{listed}")


def _write(
    options: argparse.Namespace,
    work: _Work,
    found: Iterator[Drawn],
    output: Path,
    results: outputs.Results,
    software: str,
    broken: list[str],
) -> tuple[int, collections.Counter[str]]:
    """Writes what was found, as it comes; adds to `broken` what could not be used.

    Returns:
        The number of images, and of detections by class.
    """
    if options.pictures:
        has_grid = not work.videos and len(work.photos) <= GRID_LIMIT
        found = outputs.drawn(found, output, software, frames=options.frames, cells=has_grid)
    cells: list[np.ndarray] = []
    counts: collections.Counter[str] = collections.Counter()
    done = 0
    annotates = options.pictures and not options.frames
    tracked = _tracked(found, work.total)
    for (video, rate), group in itertools.groupby(tracked, lambda d: (d.item.video, d.item.rate)):
        keeping: AbstractContextManager[Callable[[np.ndarray], None]]
        keeping = contextlib.nullcontext(cells.append)
        if video and annotates:
            keeping = outputs.video_writer(output / f"{video}.mp4", rate)
        with keeping as keep:
            for item, result, picture in group:
                if isinstance(result, UserError):
                    broken.append(str(result))
                    continue
                results.add(item, result)
                counts.update(result.names)
                done += 1
                if picture is not None:
                    keep(picture)
    results.close()
    if cells:
        save_png(output / f"{_GRID}.png", grid(cells, options.columns), software)
    return done, counts


def _files(options: argparse.Namespace, broken: list[str]) -> _Work:
    """Finds the images that the command line names; broken videos are added to `broken`."""
    names = inputs.find_files(options.images, options.output)
    stems = inputs.unique_stems(names, [_GRID])
    videos = [s for s, name in zip(stems, names, strict=True) if inputs.is_video(name)]
    photos = [s for s, name in zip(stems, names, strict=True) if not inputs.is_video(name)]
    items = inputs.file_items(names, stems, broken)
    return _Work(items, inputs.count_images(names), photos, videos, names, "images")


def _split_images(options: argparse.Namespace, run: SavedRun | ExportedRun) -> _Work:
    """Takes the first images of the run's eval split."""
    source = open_split(run.info.config.data, "eval")
    ids = [source.image_id(i) for i in range(min(options.count, len(source)))]
    stems = inputs.unique_stems(ids, [_GRID])
    items = inputs.split_items(source, stems)
    return _Work(items, len(ids), stems, [], [], split_name(source.spec))


def _detected(detector: Predictor, items: Iterable[Item], threshold: Threshold) -> Iterator[Drawn]:
    """Yields each image with what was found in it, or why it could not be used."""
    mine, theirs = itertools.tee(items)
    found = detector((item.image for item in theirs), threshold, return_exceptions=True)
    return map(Drawn, mine, found)


def _tracked(found: Iterator[Drawn], total: int) -> Iterator[Drawn]:
    """Shows the progress; compilation, before the first result, does not count."""
    with Progress(total, "predicting", "image", rate=True) as progress:
        with progress.paused():
            first = list(itertools.islice(found, 1))
        for one in itertools.chain(first, found):
            yield one
            progress.update()


def _check_output(
    options: argparse.Namespace, work: _Work, results: Sequence[Path], software: str
) -> None:
    """Checks that neither an input nor a file of another command or run would be replaced.

    Raises:
        UserError: a file that would be written is an image to detect on, or an error of
            `check_replaceable`.
    """
    output = options.output
    images = {_identity(file) for file in map(Path, work.files) if file.exists()}
    written = [output / f"{stem}.png" for stem in (*work.photos, _GRID)]
    for stem in work.videos:
        inside = output / stem
        if not options.frames:
            written.append(output / f"{stem}.mp4")
        elif inside.exists():
            written += inside.iterdir() if inside.is_dir() else [inside]
    files = [*(written if options.pictures else []), *results]
    if in_bucket(output):  # a listing instead of a request for each file
        there = set(output.iterdir()) if output.exists() else set()
        files = [file for file in files if file in there]
    for file in files:
        if not in_bucket(file) and file.exists() and _identity(file) in images:
            raise UserError(
                f"{file} is one of the images and would be replaced: choose another folder with "
                "--output"
            )
        mark = software if file.suffix in (".png", ".json", ".jsonl") else ""
        check_replaceable(str(file), file, mark, options.overwrite)


def _identity(file: Path) -> tuple[int, int]:
    """Returns what all names of a file have in common: links, or other case on some systems."""
    status = file.stat()
    return status.st_dev, status.st_ino


def _threshold(texts: Sequence[str], class_names: Sequence[str]) -> Threshold:
    """Returns the threshold of each class, from texts NUMBER (for all) and CLASS=NUMBER."""
    default, named = THRESHOLD, {}
    for text in texts:
        name, separator, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            raise UserError(
                f"--threshold={text} is neither a number nor CLASS=NUMBER, such as 0.5 or "
                f"{class_names[0]}=0.5"
            ) from None
        if separator:
            named[name] = value
        else:
            default = value
    return {**dict.fromkeys(class_names, default), **named}


def parser(program: str) -> argparse.ArgumentParser:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "images",
        nargs="*",
        help="image files, videos, folders (with all below) and globs; default: images of the "
        "eval split",
    )
    add(
        "--workdir",
        required=True,
        type=user_path,
        help="folder of the run, as for train.py, or an exported file",
    )
    add("--output", required=True, type=user_path, help="folder for the results and pictures")
    add("--overwrite", action="store_true", help="replace any file in the folder")
    add("--checkpoint", default="best", help="best, latest or a step")
    add(
        "--threshold",
        action="append",
        default=[],
        help="lowest score that is kept, 0.5 by default; CLASS=NUMBER for one class; repeatable",
    )
    add("--format", choices=FORMATS, default="coco", help="of the results: COCO JSON, CSV, VOC")
    add(
        "--pictures",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="draw pictures; for videos annotated videos",
    )
    add("--frames", action="store_true", help="draw each frame of a video as a picture")
    add("--count", type=cli.whole_number(1), default=8, help="number of eval images")
    add(
        "--columns",
        type=cli.whole_number(1),
        default=4,
        help=f"of the grid of up to {GRID_LIMIT} pictures",
    )
    add("--batch_size", type=cli.whole_number(1), default=BATCH_SIZE, help="images in a batch")
    return parser


if __name__ == "__main__":
    cli.run(main)
