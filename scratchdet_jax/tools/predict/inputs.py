"""What to detect in: files, folders, globs and videos, or images of the run's eval split."""

import collections
import contextlib
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from scratchdet_jax.data.images import read_header
from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.datasets.untrusted import IMAGE_SUFFIXES
from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation.detections import ImageGroundTruth
from scratchdet_jax.files import absolute, is_marked
from scratchdet_jax.paths import local_path
from scratchdet_jax.predictor import EncodedImage, Image

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what cannot be read is reported by us
MARK = "scratchdet predict"  # begins the Software text of the pictures of this command
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
_SUFFIXES = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
_FRAME_RATE = 25.0  # frames per second of a video that does not say it
_MOST_LOST = 0.05  # of the frames that a video announces; some formats only estimate the number


class Item(NamedTuple):
    """An image to detect in.

    Attributes:
        name: the path as given, or found in a folder; PATH#FRAME, from 0, in a video; an id.
        voc_id: its id in VOC's files: the name of a file without folder and suffix.
        stem: the name of its picture, without the suffix and unlike all others.
        image: for the predictor.
        truth: its annotated boxes, if it is of a split.
        video: the stem of the annotated video that it is a frame of; "" for other images.
        rate: frames per second of the video.
    """

    name: str
    voc_id: str
    stem: str
    image: Image
    truth: ImageGroundTruth | None = None
    video: str = ""
    rate: float = 0.0


def find_files(arguments: Sequence[str], output: Path) -> list[str]:
    """Returns the files that the arguments name, each once: files, folders with all below, globs.

    Passed over in folders are hidden files, pictures that this command wrote, and everything in
    `output`, unless that is the folder itself.

    Raises:
        UserError: a file is missing, a folder has no images or videos, or a glob matches nothing.
    """
    found: list[str] = []
    for given in arguments:
        argument = str(local_path(given))
        is_glob = not os.path.lexists(argument) and any(c in argument for c in "*?[")
        names = sorted(glob.glob(argument, recursive=True)) if is_glob else [argument]
        files: list[str] = []
        for name in names:
            files += _in_folder(name, absolute(output)) if os.path.isdir(name) else [name]
        if not files or not all(map(os.path.exists, names)):
            raise UserError(
                f"there is no image {argument}: name image files, videos, folders that hold some, "
                f"or globs ({', '.join(_SUFFIXES)})"
            )
        found += files
    return list(dict.fromkeys(found))


def _in_folder(folder: str, output: Path) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(
            f for f in folders if f[0] != "." and Path(place, f).resolve() != output
        )
        for name in sorted(files):
            path = os.path.join(place, name)
            suffix = os.path.splitext(name)[1].lower()
            if name[0] == "." or suffix not in _SUFFIXES:
                continue
            if suffix != ".png" or not is_marked(Path(path), MARK):
                yield path


def is_video(name: str) -> bool:
    """Returns whether a file is a video, by its suffix."""
    return name.lower().endswith(VIDEO_SUFFIXES)


def unique_stems(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Names the picture of each image: by its own name, numbered if another image has the same.

    Upper and lower case count as the same name, as they do on some file systems.

    `names` are paths, or ids, of which .v2 is no suffix; `taken` are not given.
    """
    used = {name.lower() for name in taken}
    last: collections.Counter[str] = collections.Counter()
    stems = []
    for name in names:
        path = Path(name)
        free = stem = path.stem if path.suffix.lower() in _SUFFIXES else path.name
        while free.lower() in used:
            last[stem.lower()] += 1
            free = f"{stem}-{last[stem.lower()] + 1}"
        used.add(free.lower())
        stems.append(free)
    return stems


def file_items(files: Sequence[str], stems: Sequence[str], broken: list[str]) -> Iterator[Item]:
    """Yields images and frames of videos; what cannot be read of a video goes to `broken`."""
    for name, stem in zip(files, stems, strict=True):
        if is_video(name):
            yield from _frames(name, stem, broken)
        else:
            yield Item(name, stem, stem, name)


def count_images(files: Sequence[str]) -> int:
    """Counts images and frames; the frames are as many as the videos announce."""
    total = 0
    for name in files:
        total += 1
        if is_video(name):
            capture = _capture(name)
            total += max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))) - 1
            capture.release()
    return total


def _frames(name: str, stem: str, broken: list[str]) -> Iterator[Item]:
    capture = _capture(name)
    announced = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    rate = capture.get(cv2.CAP_PROP_FPS)
    rate = rate if 0 < rate <= 1000 else _FRAME_RATE
    number = 0
    try:
        while True:
            decoded, frame = capture.read()
            if not decoded:
                break
            pixels = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            frame_stem = f"{stem}/{number:06d}"
            yield Item(f"{name}#{number}", frame_stem, frame_stem, pixels, None, stem, rate)
            number += 1
    finally:
        capture.release()
    if number == 0:
        broken.append(f"{name} cannot be decoded as a video")
    elif number < (1 - _MOST_LOST) * announced:
        broken.append(f"{name}: only {number} of {announced:.0f} frames can be decoded")


def _capture(name: str) -> cv2.VideoCapture:
    # An absolute path is neither a URL nor a number, which OpenCV would open.
    return cv2.VideoCapture(os.path.abspath(name), cv2.CAP_FFMPEG)


def split_items(source: DetectionSource, stems: Sequence[str]) -> Iterator[Item]:
    """Yields the first images of a split, with their ground truth."""
    for index, stem in enumerate(stems):
        example, name = source[index], source.image_id(index)
        image = EncodedImage(name, example["image"], example["orientation"])
        truth = None
        with contextlib.suppress(ValueError):  # the predictor reports an image that is broken
            header = read_header(image.content)._replace(orientation=image.orientation)
            scale = np.tile(np.asarray(header.displayed_size, np.float64), 2)
            truth = ImageGroundTruth(example["boxes"] * scale, example["labels"], example["ignore"])
        yield Item(name, name, stem, image, truth)
