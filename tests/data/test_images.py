"""Every kind of image, compared with Pillow; turns, reduction, and images to refuse."""

import contextlib
import io
import resource
import struct
import subprocess
import sys
import tempfile
import threading
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from scratchdet_jax.data import images
from scratchdet_jax.data.images import (
    check_complete,
    decode_to_canvas,
    fit_to_canvas,
    read_header,
    turn_boxes,
)


def decode_image(data, orientation=1):
    """The full image: no canvas is too small."""
    return decode_to_canvas(data, (2**31, 2**31), orientation)[0]


def smooth(height=60, width=80):
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 9) + np.cos(y / 7), np.sin((x + y) / 11), np.cos(x / 13 - y / 5)]
    return np.stack([127 + 60 * wave for wave in waves], -1).astype(np.uint8)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_orientation(image, orientation, kind="JPEG", **options):
    exif = Image.Exif()
    exif[0x112] = orientation
    return encoded(image, kind, exif=exif, **options)


RGB = Image.fromarray(smooth())
TRANSPARENT = Image.fromarray(np.dstack([smooth(), smooth()[..., 0]]))
CMYK = encoded(Image.fromarray(np.dstack([255 - smooth(), smooth()[..., 1]]), "CMYK"), "JPEG")


def without_adobe(jpeg):
    """Removes the Adobe segment, which says that the inks are stored inverted."""
    start = jpeg.index(b"\xff\xee")
    return jpeg[:start] + jpeg[start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big") :]


def as_ycck(jpeg):
    """Declares YCCK (the transform in the Adobe segment is 2)."""
    at = jpeg.index(b"Adobe") + 11
    return jpeg[:at] + b"\x02" + jpeg[at + 1 :]


KINDS = {
    "grey PNG": encoded(RGB.convert("L"), "PNG"),
    "palette PNG": encoded(RGB.convert("P"), "PNG"),
    "palette PNG with a transparent colour": encoded(RGB.convert("P"), "PNG", transparency=3),
    "one-bit PNG": encoded(RGB.convert("1"), "PNG"),
    "PNG with alpha": encoded(TRANSPARENT, "PNG"),
    "grey PNG with alpha": encoded(RGB.convert("LA"), "PNG"),
    "JPEG": encoded(RGB, "JPEG", quality=95),
    "progressive JPEG": encoded(RGB, "JPEG", quality=95, progressive=True),
    "grey JPEG": encoded(RGB.convert("L"), "JPEG", quality=95),
    "CMYK JPEG": CMYK,
    "CMYK JPEG without Adobe's segment": without_adobe(CMYK),
    "YCCK JPEG": as_ycck(CMYK),
    "two pictures in a JPEG": encoded(RGB, "MPO", save_all=True, append_images=[RGB.rotate(180)]),
    "WebP": encoded(RGB, "WEBP", quality=95),
    "WebP with alpha": encoded(TRANSPARENT, "WEBP", lossless=True, exact=True),
    "BMP": encoded(RGB, "BMP"),
    "TIFF": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "one-bit TIFF": encoded(RGB.convert("1"), "TIFF", compression="group4"),
    "CMYK TIFF": encoded(RGB.convert("CMYK"), "TIFF"),
    "TIFF with alpha": encoded(TRANSPARENT, "TIFF", compression="tiff_lzw"),
    "TIFF with JPEG": encoded(RGB, "TIFF", compression="jpeg"),
    "GIF": encoded(RGB.convert("P"), "GIF"),
    "AVIF": encoded(RGB, "AVIF"),
    "JPEG 2000": encoded(RGB, "JPEG2000"),
    "animated WebP": encoded(
        RGB, "WEBP", save_all=True, append_images=[RGB.rotate(180)], lossless=True
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_decodes_as_pillow_does(kind):
    data = KINDS[kind]
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    found = decode_image(data)
    assert (found.dtype, found.shape) == (np.uint8, (60, 80, 3))
    assert found.flags.c_contiguous
    # Different conversions of CMYK and of YCbCr round differently.
    assert np.abs(found - expected).max() <= 2
    header = read_header(data)
    assert (header.size, header.orientation) == ((60, 80), 1)
    assert header.format == Image.open(io.BytesIO(data)).format
    check_complete(data)
    on_canvas, full = decode_to_canvas(data, (100, 100))
    assert full == (60, 80)
    np.testing.assert_array_equal(on_canvas, found)


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_keep_the_high_byte(channels):
    deep = np.random.default_rng(0).integers(0, 2**16, (9, 7, channels), np.uint16)
    found = decode_image(cv2.imencode(".png", deep)[1].tobytes())
    expected = np.broadcast_to(deep[..., ::-1], (9, 7, 3)).astype(float) / 257
    assert np.abs(found - expected).max() < 1


def in_container(kind, samples):
    """16-bit samples [h, w] or [h, w, 3] RGB in a file."""
    if kind == "PNG":
        return cv2.imencode(".png", samples[..., ::-1] if samples.ndim == 3 else samples)[
            1
        ].tobytes()
    if samples.ndim == 3:
        return cv2.imencode(".tif", samples[..., ::-1])[1].tobytes()
    return encoded(Image.fromarray(samples), "TIFF")


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("colours", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_shallow_pictures_in_16_bits_are_not_black(kind, colours, bits):
    shown = smooth() if colours else smooth()[..., 0]
    shown[0, 0] = 255
    samples = (shown.astype(np.uint16) << (bits - 8)) | 1
    expected = shown | (1 if bits == 8 else 0)
    expected = expected if colours else np.repeat(expected[..., None], 3, -1)
    data = in_container(kind, samples)
    found = decode_image(data)
    # OpenCV rounds when it reduces colours of 16 bits.
    assert np.abs(found.astype(int) - expected).max() <= (bits == 16)
    assert found.flags.c_contiguous
    check_complete(data)
    np.testing.assert_array_equal(decode_to_canvas(data, (99, 99))[0], found)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_black_bits_stay_black(kind):
    assert decode_image(in_container(kind, np.zeros((5, 6), np.uint16))).max() == 0


def test_alpha_does_not_count_as_depth():
    shallow = np.dstack([smooth().astype(np.uint16) << 4, np.full((60, 80), 65535, np.uint16)])
    data = cv2.imencode(".png", shallow)[1].tobytes()
    np.testing.assert_array_equal(decode_image(data), smooth()[..., ::-1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_tiffs_come_upright_once(orientation):
    grey = smooth()[..., 0]
    upright = ImageOps.exif_transpose(
        Image.open(io.BytesIO(with_orientation(Image.fromarray(grey), orientation, "TIFF")))
    )
    expected = np.repeat(np.asarray(upright)[..., None], 3, -1).astype(int)
    samples = grey.astype(np.uint16) << 4
    data = with_orientation(Image.fromarray(samples), orientation, "TIFF")
    header = read_header(data)
    assert header.displayed_size == expected.shape[:2]
    assert np.abs(decode_image(data, header.orientation) - expected).max() <= 1


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_tiffs_of_32_bit_samples_are_refused(kind):
    data = encoded(Image.fromarray(smooth()[..., 0].astype(kind)), "TIFF")
    for read in (decode_image, check_complete):
        with pytest.raises(ValueError, match="its samples have 32 bits: convert it"):
            read(data)


def test_a_failure_of_opencv_is_not_logged(capfd):
    data = cv2.imencode(".tif", smooth().astype(np.float32) / 255)[1].tobytes()
    with pytest.raises(ValueError, match="not a readable image"):
        decode_image(data)
    images._imdecode(KINDS["TIFF"], images._FLAGS)
    with pytest.raises(ValueError, match="not a readable image"):
        images._imdecode(data, images._FLAGS)
    assert capfd.readouterr() == ("", "")


def test_one_pixel():
    data = encoded(Image.fromarray(np.uint8([[[9, 200, 30]]])), "PNG")
    np.testing.assert_array_equal(decode_to_canvas(data, (4, 4))[0], [[[9, 200, 30]]])
    check_complete(data)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turns_follow_exif(orientation, kind):
    data = with_orientation(RGB, orientation, kind, **{"lossless": True} if kind == "WEBP" else {})
    assert read_header(data).orientation == orientation
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    found = decode_image(data, orientation)
    np.testing.assert_array_equal(found, upright)
    assert found.flags.c_contiguous
    assert read_header(data).displayed_size == upright.shape[:2]
    stored = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data), stored)  # only on request
    reduced, full = decode_to_canvas(data, (50, 50), orientation)
    assert full == upright.shape[:2]
    expected = fit_to_canvas(upright.copy(), (50, 50)).astype(int)
    assert reduced.shape == expected.shape
    assert np.abs(reduced - expected).max() <= 1
    quarter, _ = decode_to_canvas(data, (15, 15), orientation)  # a JPEG at a quarter
    assert np.abs(quarter - fit_to_canvas(upright.copy(), (15, 15)).astype(int)).mean() < 6


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiffs_come_upright_once(orientation, mode):
    data = with_orientation(RGB.convert(mode), orientation, "TIFF")
    header = read_header(data)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert header.displayed_size == upright.shape[:2]
    np.testing.assert_array_equal(decode_image(data, header.orientation), upright)
    on_canvas, full = decode_to_canvas(data, (90, 90), header.orientation)
    assert full == upright.shape[:2]
    np.testing.assert_array_equal(on_canvas, upright)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_with_the_image(orientation):
    rng = np.random.default_rng(orientation)
    for _ in range(20):
        y0, x0 = rng.integers(0, (50, 70))
        y1, x1 = y0 + rng.integers(1, 60 - y0), x0 + rng.integers(1, 80 - x0)
        mask = np.zeros((60, 80, 3), np.uint8)
        mask[y0:y1, x0:x1] = 255
        turned = decode_image(encoded(Image.fromarray(mask), "PNG"), orientation)
        rows, columns = turned[..., 0].any(1), turned[..., 0].any(0)
        inside = [np.flatnonzero(axis)[[0, -1]] + [0, 1] for axis in (rows, columns)]
        expected = np.array([inside[0][0], inside[1][0], inside[0][1], inside[1][1]])
        box = np.array([[y0 / 60, x0 / 80, y1 / 60, x1 / 80]])
        height, width = turned.shape[:2]
        scaled = turn_boxes(box, orientation)[0] * [height, width, height, width]
        np.testing.assert_allclose(scaled, expected, atol=1e-9)


def test_an_invalid_exif_orientation_means_no_turn():
    assert read_header(with_orientation(RGB, 99)).orientation == 1
    assert read_header(with_orientation(RGB, 0)).orientation == 1


@settings(max_examples=80, deadline=None)
@given(*[st.integers(1, 90)] * 4)
def test_reduction_fits_the_canvas_and_keeps_proportions(height, width, canvas_h, canvas_w):
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    reduced = fit_to_canvas(image, (canvas_h, canvas_w))
    new_h, new_w = reduced.shape[:2]
    if height <= canvas_h and width <= canvas_w:
        assert reduced is image
        return
    scale = min(canvas_h / height, canvas_w / width)
    assert 1 <= new_h <= canvas_h
    assert 1 <= new_w <= canvas_w
    assert new_h == canvas_h or new_w == canvas_w
    assert abs(new_h - scale * height) <= 0.5 or new_h == 1
    assert abs(new_w - scale * width) <= 0.5 or new_w == 1
    expected = cv2.resize(image, (new_w, new_h), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(reduced, expected)


def test_reduction_by_a_whole_number_averages():
    image = np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8)
    mean = image.reshape(4, 2, 6, 2, 3).mean((1, 3))
    assert np.abs(fit_to_canvas(image, (4, 99)) - mean).max() <= 0.5


@settings(max_examples=40, deadline=None)
@given(*[st.integers(200, 900)] * 2, *[st.integers(50, 200)] * 2, st.booleans())
def test_jpegs_decoded_reduced_match_full_ones_reduced_afterwards(
    height, width, canvas_h, canvas_w, even
):
    if even:
        height, width = height // 8 * 8, width // 8 * 8
    picture = cv2.resize(smooth(), (width, height), interpolation=cv2.INTER_CUBIC)
    data = encoded(Image.fromarray(picture), "JPEG", quality=95)
    found, full = decode_to_canvas(data, (canvas_h, canvas_w))
    assert full == (height, width)
    expected = fit_to_canvas(decode_image(data), (canvas_h, canvas_w))
    assert found.shape == expected.shape
    # libjpeg averages in the frequency domain, before rounding to bytes, and two reductions blur
    # slightly more than one.
    difference = np.abs(found.astype(int) - expected).mean()
    if even:
        assert difference < 3
    else:  # an edge that the factor does not divide is padded by less than a canvas pixel
        step = np.abs(np.diff(expected.astype(int), axis=1)).mean()
        step += np.abs(np.diff(expected.astype(int), axis=0)).mean()
        assert difference < 3 + step


def test_large_jpegs_are_decoded_reduced(monkeypatch):
    flags = []
    decode = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda b, f: flags.append(f) or decode(b, f))
    data = encoded(Image.fromarray(smooth(400, 640)), "JPEG")
    for canvas, flag in [
        ((500, 500), images._FLAGS),
        ((320, 320), 17),
        ((160, 160), 33),
        ((79, 79), 65),
        ((201, 900), images._FLAGS),
    ]:
        decode_to_canvas(data, canvas)
        expected = flag if flag == images._FLAGS else flag | cv2.IMREAD_IGNORE_ORIENTATION
        assert flags[-1] == expected


def png_of(height, width):
    """A PNG that claims a size but has almost no data."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "read", [read_header, decode_image, check_complete, lambda data: decode_to_canvas(data, (9, 9))]
)
def test_bombs_and_nonsense_are_refused(read):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for size in ((50_000, 50_000), (13_400, 13_400), (2**31 - 1, 2**31 - 1)):
        with pytest.raises(ValueError, match=r"decompression bomb|not a readable image"):
            read(png_of(*size))
    for data in (b"", b"nonsense", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"):
        with pytest.raises(ValueError, match="not a readable image"):
            read(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("GIF", "two pictures in a JPEG")])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_file_is_not_complete(kind, share):
    data = KINDS[kind]
    with pytest.raises(ValueError, match=r"\w"):
        check_complete(data[: int(share * len(data))])


def test_a_size_cannot_be_hidden():
    data = KINDS["JPEG"]
    frame = data.index(b"\xff\xc0")
    decoy = data[frame : frame + 5] + struct.pack(">HH", 2, 2) + data[frame + 9 :]
    # The marker 01 has no length; reading FF E0 as its length would lead to the decoy.
    hidden = (b"\xff\xd8\xff\x01" + data[2:]).ljust(4 + 0xFFE0, b"\0") + decoy
    for read in (decode_image, lambda data: decode_to_canvas(data, (99, 99))):
        with pytest.raises(ValueError, match="not a readable image"):  # according to Pillow
            read(hidden)


def test_many_scans_are_refused():
    data = KINDS["progressive JPEG"]
    last = data.rindex(b"\xff\xda")
    check_complete(data[:-2] + data[last:-2] * 20 + data[-2:])
    with pytest.raises(ValueError, match="more than 100 scans"):
        check_complete(data[:-2] + data[last:-2] * 100 + data[-2:])


@pytest.mark.parametrize(
    ("options", "held"),
    [({}, False), ({"progressive": True}, True), ({"subsampling": 0, "quality": 5}, False)],
)
def test_large_progressive_jpegs_are_decoded_one_at_a_time(monkeypatch, options, held):
    monkeypatch.setattr(images, "_LARGE", 3000)
    counted = []
    monkeypatch.setattr(
        images, "_memory_for", lambda n: counted.append(n) or contextlib.nullcontext()
    )
    decode_to_canvas(encoded(RGB, "JPEG", **options), (8, 8))
    assert counted == [60 * 80 if held else 60 * 80 // 64]


def test_a_hundred_megapixels_take_little_memory():
    program = (
        "import io, resource\n"
        "from PIL import Image\n"
        "from scratchdet_jax.data.images import check_complete, decode_to_canvas\n"
        "data = open({!r}, 'rb').read()\n"
        "decode_to_canvas(data[:0] + open({!r}, 'rb').read(), (500, 500))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "image, full = decode_to_canvas(data, (500, 500))\n"
        "check_complete(data)\n"
        "print(image.shape, full, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        large, small = f"{folder}/large.jpg", f"{folder}/small.jpg"
        Image.new("RGB", (12_500, 8_000), (9, 99, 199)).save(large, quality=50)
        RGB.save(small)
        result = subprocess.run(
            [sys.executable, "-c", program.format(large, small)],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
    shape, _, rest = result.stdout.partition(") (")
    assert shape == "(320, 500, 3"
    assert rest.startswith("8000, 12500) ")
    assert int(rest.split()[-1]) < 60_000  # KiB, where all pixels would take 293,000


def test_large_images_are_decoded_one_at_a_time(monkeypatch):
    monkeypatch.setattr(images, "_LARGE", 1000)
    running, most, decode = [0], [0], cv2.imdecode

    def counting(data, flags):
        running[0] += 1
        most[0] = max(most[0], running[0])
        try:
            threading.Event().wait(0.02)
            return decode(data, flags)
        finally:
            running[0] -= 1

    monkeypatch.setattr(cv2, "imdecode", counting)
    for data, expected in ((KINDS["BMP"], 1), (encoded(RGB.resize((9, 9)), "BMP"), 4)):
        most[0] = 0
        threads = [threading.Thread(target=decode_image, args=(data,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (most[0] == 1) == (expected == 1)
