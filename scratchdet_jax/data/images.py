"""Encoded images of any kind → RGB pixels: headers, decoding, EXIF turns, reduction to a canvas.

OpenCV decodes (it leaves Python's other threads free), Pillow reads headers. Grey and palette
images become RGB, 16-bit samples keep their high byte, alpha is dropped (hidden pixels show the
colour stored beneath), CMYK is converted without its colour profile. Of several pictures in a
file the first one counts.
"""

import contextlib
import io
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from PIL import ExifTags, Image

MAX_PIXELS = 178_956_970  # more is refused as a decompression bomb: Pillow's own limit

# Images above this are decoded one at a time, so that threads do not add up their memory.
_LARGE = 2**24
_large_images = threading.Lock()
_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_REDUCED = {
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
# A marker in a JPEG stream: not a stuffed 0xFF, a restart marker or a fill byte.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# Start-of-frame markers, which carry the size: C0 to CF but for C4, C8 and CC.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN = 0xDA
# A progressive JPEG has some ten scans; libjpeg goes through the whole image for each.
_MAX_SCANS = 100
# Pillow warns of odd metadata, and from half of its limit on, without saying of which file.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageHeader(NamedTuple):
    """What an image file says of itself.

    Attributes:
        format: Pillow's name of it, such as JPEG, PNG or WEBP.
        size: (height, width) in pixels, as stored.
        orientation: EXIF's, 1…8; 1 (as stored) where it is absent or nonsense. Of TIFF always 1:
            its decoders make the turn themselves, and `size` is after it.
    """

    format: str
    size: tuple[int, int]
    orientation: int

    @property
    def displayed_size(self) -> tuple[int, int]:
        """(height, width) after the turn that `orientation` asks for."""
        return _turned_size(self.size, self.orientation)


def read_header(encoded: bytes) -> ImageHeader:
    """Format, size and orientation; no pixel is decoded.

    Raises:
        ValueError: no image, or one of more than MAX_PIXELS pixels.
    """
    with _opened(encoded) as image:
        orientation = 1
        with contextlib.suppress(Exception):  # Pillow fails on broken EXIF in many ways
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        if orientation not in range(1, 9) or image.format == "TIFF":
            orientation = 1
        return ImageHeader(str(image.format), (image.height, image.width), int(orientation))


def decode_image(encoded: bytes, orientation: int = 1) -> np.ndarray:
    """An encoded image as uint8 [h, w, 3], RGB.

    Args:
        encoded: the file.
        orientation: the turn to make, 1…8 as in EXIF. The file's own tag is not looked at.

    Raises:
        ValueError: the bytes are no image that can be decoded, or one of too many pixels.
    """
    (height, width), _ = _size(encoded)
    with _memory_for(height * width):
        return _turn(_decode(encoded, _FLAGS), orientation)


def decode_to_canvas(
    encoded: bytes, canvas: tuple[int, int], orientation: int = 1
) -> tuple[np.ndarray, tuple[int, int]]:
    """An image shrunk to fit a canvas, keeping its proportions; never enlarged.

    A JPEG of at least twice the wanted size is decoded at a half, a quarter or an eighth (libjpeg
    then skips most of the work); the rest of the way is INTER_AREA. An edge that this factor does
    not divide is then filled up, by less than a pixel of the canvas.

    Memory: three bytes for each pixel decoded, and up to six more for each pixel of a progressive
    JPEG, reduced or not (CMYK: eight), which libjpeg holds whole. Of images above 16 megapixels
    in this sense, one is decoded at a time: at most MAX_PIXELS × 9 bytes (11) for all of them.

    Args:
        encoded: the file.
        canvas: (H, W) in pixels.
        orientation: as in decode_image; the canvas holds the turned image.

    Returns:
        uint8 [h, w, 3] RGB with h ≤ H and w ≤ W, and (height, width) of the whole image as turned.

    Raises:
        ValueError: as decode_image.
    """
    stored, is_jpeg = _size(encoded)
    full = _turned_size(stored, orientation)
    wanted = _turned_size(_fitted(full, canvas), orientation)  # a turn is its own inverse here
    factor = 1
    if is_jpeg:
        scale = min(stored[0] // wanted[0], stored[1] // wanted[1])
        factor = max((f for f in _REDUCED if f <= scale), default=1)
    flags = _FLAGS if factor == 1 else _REDUCED[factor] | cv2.IMREAD_IGNORE_ORIENTATION
    held = stored[0] * stored[1]
    if factor > 1 and held > _LARGE and not _jpeg_is_held_whole(encoded):
        held //= factor**2
    with _memory_for(held):
        pixels = _decode(encoded, flags)
        if factor > 1:
            cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
        return _turn(_reduce(pixels, wanted), orientation), full


def fit_to_canvas(image: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """Shrinks uint8 [h, w, 3] to fit (H, W), keeping its proportions; never enlarges."""
    return _reduce(image, _fitted(image.shape[:2], canvas))


def check_whole(encoded: bytes) -> None:
    """Makes sure that an image goes on to its end and can be decoded.

    Raises:
        ValueError: it cannot, or has too many pixels.
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
                raise ValueError(f"it cannot be decoded whole: {error}") from None
            image.close()
        _decode(encoded, flags)


def turn_boxes(boxes: np.ndarray, orientation: int) -> np.ndarray:
    """Boxes of the stored frame in the frame after the turn of `orientation` (EXIF 1…8).

    Args:
        boxes: [n, 4], (ymin, xmin, ymax, xmax) normalised to [0, 1].
        orientation: 1…8.

    Returns:
        [n, 4], likewise, in the turned frame.
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
    """uint8 [h, w, 3] turned as EXIF's orientation asks; contiguous."""
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
    """The size within a canvas, at the same proportions and not above the size itself."""
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


def _size(encoded: bytes) -> tuple[tuple[int, int], bool]:
    """(height, width) as stored, and whether it is a JPEG.

    JPEGs are looked through here, marker by marker, which takes a fifth of Pillow's time; the
    loader does so for every image.
    """
    for marker, position in _jpeg_segments(encoded):
        if marker in _JPEG_FRAMES and position + 9 <= len(encoded):
            height, width = struct.unpack_from(">HH", encoded, position + 5)
            if height and width:
                return _bounded((height, width)), True
            break
    with _opened(encoded) as image:  # what is odd in any way is left to Pillow
        return (image.height, image.width), image.format in ("JPEG", "MPO")


def _bounded(size: tuple[int, int]) -> tuple[int, int]:
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"it has more than {MAX_PIXELS} pixels, a decompression bomb")
    return size


def _opened(encoded: bytes) -> Image.Image:
    """Pillow's view of an image, of which only the header has been read."""
    try:
        image = Image.open(io.BytesIO(encoded))
    except Image.DecompressionBombError:
        raise ValueError(f"it has more than {MAX_PIXELS} pixels, a decompression bomb") from None
    except Exception:  # Pillow's readers fail on broken headers in many ways
        raise ValueError("no readable image") from None
    _bounded((image.height, image.width))  # Pillow's own limit may have been lifted
    return image


def _memory_for(pixels: int) -> contextlib.AbstractContextManager:
    return _large_images if pixels > _LARGE else contextlib.nullcontext()


def _decode(encoded: bytes, flags: int) -> np.ndarray:
    """The pixels uint8 [h, w, 3], as OpenCV decodes them."""
    if encoded[:2] in (b"II", b"MM"):
        with _opened(encoded) as image:
            if image.format == "TIFF" and image.mode in ("RGBA", "RGBa"):
                return _straight_colours(image)
    try:
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(str(error.err or error)) from None
    if pixels is None:
        raise ValueError("no readable image")
    return pixels


def _straight_colours(image: Image.Image) -> np.ndarray:
    """Of a TIFF with alpha, by Pillow, as OpenCV multiplies the colours of such by alpha."""
    try:
        image.load()
        if image.mode == "RGBa":  # stored multiplied
            image = image.convert("RGBA")
        return np.ascontiguousarray(np.asarray(image)[..., :3])
    except Exception as error:  # Pillow's readers fail in many ways
        raise ValueError(f"it cannot be decoded: {error}") from None


def _jpeg_segments(encoded: bytes) -> Iterator[tuple[int, int]]:
    """Marker and position of each segment of a JPEG up to the data of its first scan.

    Ends early at what is unusual, such as a marker without a segment.
    """
    position = 2 if encoded.startswith(b"\xff\xd8") else len(encoded)
    while position + 4 <= len(encoded) and encoded[position] == 0xFF:
        marker = encoded[position + 1]
        if marker < 0xC0 or 0xD0 <= marker <= 0xD9 or marker == 0xFF:
            return
        yield marker, position
        if marker == _JPEG_SCAN:
            return
        position += 2 + int.from_bytes(encoded[position + 2 : position + 4], "big")


def _jpeg_is_held_whole(encoded: bytes) -> bool:
    """Whether libjpeg has to keep the whole image's coefficients: several scans, or progressive."""
    components = b""
    for marker, position in _jpeg_segments(encoded):
        if marker in _JPEG_FRAMES:
            if marker not in (0xC0, 0xC1):
                return True
            components = encoded[position + 9 : position + 10]
        elif marker == _JPEG_SCAN:
            return encoded[position + 4 : position + 5] != components
    return True


def _check_scans(encoded: bytes) -> None:
    """Refuses a JPEG that ends before its end marker (OpenCV fills up what is missing with grey).

    Or one with so many scans that decoding it would take minutes.
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
