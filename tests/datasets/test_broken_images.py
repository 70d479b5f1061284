"""Broken images and bombs: left out and counted, or decodable, in bounded memory."""

import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from scratchdet_jax.datasets.objects import Kind
from tests.datasets.broken import (
    IDS,
    PICTURES,
    SECONDS,
    XML,
    XMLS,
    check_voc,
    encoded,
    make_voc,
    mutated,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def voc(tmp_path):
    return make_voc(tmp_path)


def png(width, height, rows=b"", depth=8, colour=2):
    """A PNG with a given header."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )


def jpeg_of_size(width, height):
    """A JPEG whose header claims a different size."""
    data = encoded(".jpg")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def bmp_of_size(width, height):
    data = encoded(".bmp")
    return data[:18] + struct.pack("<ii", width, height) + data[26:]


IMAGES = {
    "empty": b"",
    "one byte": b"\xff",
    "zeros": bytes(5000),
    "text": b"not an image",
    "html": b"<html>403 Forbidden</html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "gzip": b"\x1f\x8b\x08" + zlib.compress(bytes(100)),
    "only a marker": b"\xff\xd8\xff\xd9",
    "jpeg header without data": encoded(".jpg")[:160],
    "png bomb": png(30_000, 30_000, bytes(30_001 * 100)),
    "png of 2³¹ pixels a side": png(2**31 - 1, 2**31 - 1),
    "png of no width": png(0, 24),
    "png without rows": png(32, 24),
    "png with too few rows": png(32, 24, bytes(97 * 10)),
    "png with too many rows": png(32, 24, bytes(97 * 2400)),
    "png of an odd depth": png(32, 24, bytes(97 * 24), depth=7),
    "png of an odd colour type": png(32, 24, bytes(97 * 24), colour=5),
    "png palette without a palette": png(32, 24, bytes(33 * 24), colour=3),
    "jpeg bomb": jpeg_of_size(65_500, 65_500),
    "jpeg of no height": jpeg_of_size(32, 0),
    "jpeg of more rows than it has": jpeg_of_size(32, 2400),
    "jpeg of fewer rows than it has": jpeg_of_size(32, 8),
    "bmp bomb": bmp_of_size(60_000, 60_000),
    "bmp upside down": bmp_of_size(32, -24),
    "bmp of negative width": bmp_of_size(-32, 24),
    "bmp of more rows than it has": bmp_of_size(32, 2400),
    "two pictures in one": PICTURES["one"] + PICTURES["two"],
    "one pixel": encoded(".png", size=(1, 1)),
    "a line": encoded(".png", size=(1, 3000)),
    "exif of nonsense": encoded(".jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40),
    "exif that points to itself": encoded(
        ".jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\x87\x69\0\4\0\0\0\1\0\0\0\x08\0\0\0\x08"
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images(name, voc):
    (voc / "JPEGImages" / "two.jpg").write_bytes(IMAGES[name])
    report = check_voc(voc)
    assert report.images["train"] >= 3


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif"])
@pytest.mark.parametrize("seed", range(10))
def test_mutated_images(suffix, seed, voc):
    (voc / "JPEGImages" / "two.jpg").unlink()
    data = mutated(encoded(suffix), random.Random(f"{suffix} {seed}"))
    (voc / "JPEGImages" / f"two{suffix.upper()}").write_bytes(data)
    report = check_voc(voc)
    assert report.images["train"] >= 3


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
def test_truncated_images_are_left_out(suffix, voc):
    """However little is missing: 9 lengths of each format in one folder."""
    data = encoded(suffix)
    names = []
    for i, share in enumerate(np.linspace(0.1, 0.99, 9)):
        names.append(f"cut{i}")
        (voc / "JPEGImages" / f"cut{i}{suffix}").write_bytes(data[: int(len(data) * share)])
        (voc / "Annotations" / f"cut{i}.xml").write_bytes(XML)
    (voc / "ImageSets" / "Main" / "train.txt").write_text("\n".join([*IDS, *names]))
    report = check_voc(voc)
    assert report.counts() == {Kind.BROKEN_IMAGE: 9}
    assert report.left_out == {"train": 9}


def test_decompression_bombs_take_little_memory(voc):
    """All of them in one folder, prepared by a separate process."""
    names = list(IDS)
    bombs = {n: IMAGES[n] for n in IMAGES if "bomb" in n or "2³¹" in n}
    for i, data in enumerate(bombs.values()):
        (voc / "JPEGImages" / f"bomb{i}.jpg").write_bytes(data)
        (voc / "Annotations" / f"bomb{i}.xml").write_bytes(XML)
        names.append(f"bomb{i}")
    for i, key in enumerate(("billion laughs", "quadratic blowup", "nested", "large")):
        (voc / "JPEGImages" / f"laugh{i}.jpg").write_bytes(PICTURES["one"])
        (voc / "Annotations" / f"laugh{i}.xml").write_bytes(XMLS[key])
        names.append(f"laugh{i}")
    (voc / "ImageSets" / "Main" / "train.txt").write_text("\n".join(names))
    program = (
        "import sys, resource\n"
        "from scratchdet_jax import cli\n"
        "from scratchdet_jax.tools import prepare\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "cli.run(prepare.main)\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print('grew', after - before, file=sys.stderr)\n"
    )
    arguments = ["voc", f"--folder={voc}", "--name=b", f"--data_dir={voc.parent / 'data'}"]
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert result.returncode == 0, result.stderr
    assert "train: 4 images (8 more left out)" in result.stdout
    grew = int(result.stderr.split("grew ")[1])
    assert grew < 200 * 1024, f"{grew} KiB"
