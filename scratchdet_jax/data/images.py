"""Encoded images of any kind → RGB pixels: headers, decoding, EXIF turns, reduction to a canvas.

OpenCV decodes (it releases the GIL), Pillow reads headers. Grey and palette images become RGB,
alpha is dropped (hidden pixels show the colour stored beneath), CMYK is converted without its
colour profile. Of several pictures in a file the first one is used.

16-bit samples keep their high byte, except in a PNG or TIFF whose samples use 14 bits or fewer, as
cameras with 12 bits write: they keep the 8 highest bits of the depth that they use, because the
image would be nearly black. TIFFs of floating-point or 32-bit samples are refused.
"""

import contextlib
import io
import re
import threading
import warnings
from typing import NamedTuple

import cv2
import numpy as np
from PIL import ExifTags, Image

MAX_PIXELS = 178_956_970  # more is refused as a decompression bomb: Pillow's own limit

# Images above this many pixels are decoded one at a time, to bound the memory of all threads.
_LARGE = 2**24
_large_images = threading.Lock()
_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_REDUCED = {
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_BITS_PER_SAMPLE = 258  # TIFF's tag
_MOST_SCALED_BITS = 14  # in 16-bit samples; with more, the high byte is bright enough
# A marker in a JPEG stream, as opposed to a stuffed 0xFF, a restart marker or a fill byte.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_SCAN = 0xDA
# A progressive JPEG has about ten scans; libjpeg processes the entire image for each.
_MAX_SCANS = 100
# Pillow warns of odd metadata and of half its pixel limit without naming the file.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.")
# OpenCV logs what it cannot decode, which the caller reports.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class ImageHeader(NamedTuple):
    """The header of an image file.

    Attributes:
        format: Pillow's name of the format, such as JPEG, PNG or WEBP.
        size: (height, width) in pixels, as stored.
        orientation: the EXIF orientation, 1…8; 1 (as stored) if it is absent or invalid. Always 1
            for TIFF: its decoders make the turn themselves, and `size` is the size after it.
    """

    format: str
    size: tuple[int, int]
    orientation: int

    @property
    def displayed_size(self) -> tuple[int, int]:
        """Returns (height, width) after the turn given by `orientation`."""
        return _turned_size(self.size, self.orientation)


def read_header(encoded: bytes) -> ImageHeader:
    """Reads format, size and orientation; decodes no pixel.

    Raises:
        ValueError: the bytes are not an image, or it has more than MAX_PIXELS pixels.
    """
    with _opened(encoded) as image:
        orientation = 1
        with contextlib.suppress(Exception):  # Pillow fails on broken EXIF in many ways
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        if orientation not in range(1, 9) or image.format == "TIFF":
            orientation = 1
        return ImageHeader(str(image.format), (image.height, image.width), int(orientation))


def decode_to_canvas(
    encoded: bytes, canvas: tuple[int, int], orientation: int = 1
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decodes an image, reduced to fit a canvas with its proportions; never enlarges it.

    A JPEG of at least twice the target size is decoded at a half, a quarter or an eighth (libjpeg
    then skips most of the work); INTER_AREA does the rest. An edge that this factor does not divide
    is padded by less than a pixel of the canvas.

    Memory: three bytes per decoded pixel, and up to six more (CMYK: eight) per pixel of a
    progressive JPEG, reduced or not, because libjpeg buffers all of it. Images above 16 megapixels
    in this sense are decoded one at a time: at most MAX_PIXELS × 9 bytes (11) for all threads.

    Args:
        encoded: content of the file.
        canvas: (H, W) in pixels.
        orientation: the turn to make, 1…8 as in EXIF; the file's own tag is ignored.

    Returns:
        uint8 [h, w, 3] RGB with h ≤ H and w ≤ W, and (height, width) of the turned, full image.

    Raises:
        ValueError: the image cannot be decoded or has too many pixels.
    """
    with _opened(encoded) as image:
        stored, is_jpeg = (image.height, image.width), image.format in ("JPEG", "MPO")
        buffered_whole = "progressive" in image.info
    full = _turned_size(stored, orientation)
    target = _turned_size(_fitted(full, canvas), orientation)  # a turn of a size is its own inverse
    factor = 1
    if is_jpeg:
        scale = min(stored[0] // target[0], stored[1] // target[1])
        factor = max((f for f in _REDUCED if f <= scale), default=1)
    flags = _FLAGS if factor == 1 else _REDUCED[factor] | cv2.IMREAD_IGNORE_ORIENTATION
    buffered = stored[0] * stored[1]
    if not buffered_whole:
        buffered //= factor**2
    with _memory_for(buffered):
        pixels = _decode(encoded, flags)
        if factor > 1:
            cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
        return _turn(_reduce(pixels, target), orientation), full


def fit_to_canvas(image: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """Reduces uint8 [h, w, 3] to fit (H, W), keeping its proportions; never enlarges."""
    return _reduce(image, _fitted(image.shape[:2], canvas))


def check_complete(encoded: bytes) -> None:
    """Makes sure that an image is not truncated and can be decoded.

    Raises:
        ValueError: it is truncated, cannot be decoded, or has too many pixels.
    """
    with _opened(encoded) as image, _memory_for(image.height * image.width):
        flags = _FLAGS
        if image.format in ("JPEG", "MPO"):
            _check_scans(encoded)
            if image.height * image.width > _LARGE:
                flags = _REDUCED[8]
        else:
            try:
                image.load()  # unlike OpenCV, Pillow is strict about the end of a file
            except Exception as error:
                raise ValueError(f"it cannot be decoded completely: {error}") from None
            image.close()
        _decode(encoded, flags)


def turn_boxes(boxes: np.ndarray, orientation: int) -> np.ndarray:
    """Transforms boxes from the stored frame to the frame after an EXIF turn.

    Args:
        boxes: [n, 4], (ymin, xmin, ymax, xmax) normalised to [0, 1].
        orientation: the turn, 1…8.

    Returns:
        [n, 4] in the same form, in the turned frame.
    """
    ymin, xmin, ymax, xmax = np.moveaxis(np.asarray(boxes), -1, 0)
    if orientation >= 5:
        ymin, xmin, ymax, xmax = xmin, ymin, xmax, ymax
    if orientation in (2, 3, 6, 7):
        xmin, xmax = 1 - xmax, 1 - xmin
    if orientation in (3, 4, 7, 8):
        ymin, ymax = 1 - ymax, 1 - ymin
    return np.stack([ymin, xmin, ymax, xmax], -1)


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns uint8 [h, w, 3] according to the EXIF orientation; the result is contiguous."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def _turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return size[::-1] if orientation >= 5 else size


def _fitted(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """Reduces a size to fit a canvas, with the same proportions; never enlarges it."""
    scale = min(canvas[0] / size[0], canvas[1] / size[1])
    if scale >= 1:
        return size
    height, width = (
        min(limit, max(1, round(side * scale))) for side, limit in zip(size, canvas, strict=True)
    )
    return height, width


def _reduce(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)


def _opened(encoded: bytes) -> Image.Image:
    """Opens the image by Pillow, which reads only the header."""
    try:
        return Image.open(io.BytesIO(encoded))
    except Image.DecompressionBombError:
        raise ValueError(f"it has more than {MAX_PIXELS} pixels, a decompression bomb") from None
    except Exception:  # Pillow's readers fail on broken headers in many ways
        raise ValueError("it is not a readable image") from None


def _memory_for(pixels: int) -> contextlib.AbstractContextManager[object]:
    return _large_images if pixels > _LARGE else contextlib.nullcontext()


def _decode(encoded: bytes, flags: int) -> np.ndarray:
    """Decodes the pixels uint8 [h, w, 3] by OpenCV or, for some TIFF files, by Pillow."""
    deep = encoded.startswith(b"\x89PNG") and encoded[24:25] == b"\x10"
    if encoded[:2] in (b"II", b"MM"):
        with _opened(encoded) as image:
            if image.format == "TIFF":
                if image.mode in ("F", "I"):
                    raise ValueError("its samples have 32 bits: convert it to 8 or 16 bits")
                deep = 16 in np.ravel(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, 8))
                if image.mode == "RGBa" or (image.mode == "RGBA" and not deep):
                    return _straight_colours(image)
    pixels = _imdecode(encoded, flags)
    if deep and pixels.max() <= 2 ** (_MOST_SCALED_BITS - 8):  # OpenCV may round up
        samples = _imdecode(encoded, cv2.IMREAD_UNCHANGED)
        if samples.dtype == np.uint16:
            return _from_samples(samples)
    return pixels


def _imdecode(encoded: bytes, flags: int) -> np.ndarray:
    try:
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(str(error.err or error)) from None
    if pixels is None:
        raise ValueError("it is not a readable image")
    return pixels


def _from_samples(samples: np.ndarray) -> np.ndarray:
    """Converts 16-bit [h, w] or [h, w, 3 or 4] (BGR) to uint8 RGB, by the depth in use."""
    colours = samples[..., None] if samples.ndim == 2 else samples[..., 2::-1]
    used = int(colours.max()).bit_length()
    # The usual depths of sensors: one dark image of a set is not brightened more than the others.
    depth = next(bits for bits in (8, 10, 12, _MOST_SCALED_BITS, 16) if used <= bits)
    pixels = (colours >> (depth - 8)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _straight_colours(image: Image.Image) -> np.ndarray:
    """Returns the colours of a TIFF with alpha, by Pillow: OpenCV would multiply them by alpha."""
    try:
        image.load()
        # RGBa is stored multiplied by alpha.
        return np.ascontiguousarray(np.asarray(image.convert("RGBA"))[..., :3])
    except Exception as error:  # Pillow's readers fail in many ways
        raise ValueError(f"it cannot be decoded: {error}") from None


def _check_scans(encoded: bytes) -> None:
    """Refuses a truncated JPEG (OpenCV would fill the missing part with grey).

    Also refuses a JPEG with so many scans that decoding it would take minutes.
    """
    position, scans = 2, 0
    while marker := _JPEG_MARKER.search(encoded, position):
        if marker[0] == b"\xff\xd9":
            return
        scans += marker[0][1] == _JPEG_SCAN
        if scans > _MAX_SCANS:
            raise ValueError(f"it has more than {_MAX_SCANS} scans, a decompression bomb")
        length = int.from_bytes(encoded[marker.end() : marker.end() + 2], "big")
        position = marker.end() + length
    raise ValueError("the file ends before the image does")
