"""Bytes -> uint8 RGB pixels of one size: the one preprocessing of shard, train and classify.

JPEG is decoded by libjpeg-turbo (simplejpeg), shrunk in the DCT domain when a small picture is wanted; everything else,
and the JPEGs simplejpeg cannot read (CMYK, ...), by Pillow. Pictures come out upright (EXIF orientation applied),
animations as their first frame, transparency on white. Whatever is wrong with a file ends as one `ImageError`.

Resize: stretch to the wanted height and width (no crop, no padding): every axis that must shrink twofold or more is
shrunk by area averaging (cv2.INTER_AREA), then what is left is done linearly (cv2.INTER_LINEAR; under twofold it skips
no pixel, and takes a third of the time).
"""

import logging
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from io import BytesIO
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from fruitcnn import rgb
from fruitcnn.jpeg_header import Frame, read_header

Pixels = npt.NDArray[np.uint8]
Hold = Callable[[int], AbstractContextManager[None]]
"""hold(bytes) -> a context in which so much memory may be taken."""

CAUSES = ("empty", "not-an-image", "unsupported", "truncated", "corrupt", "too-large")

# 200 megapixels: the largest phone cameras. Through Pillow its own, lower limit holds as well (178,956,970 pixels).
DEFAULT_MAX_PIXELS = 200_000_000

# An allowlist, so that no format runs a program (EPS: Ghostscript), needs a plug-in (GRIB, HDF5, ...), or has so weak
# a signature that noise passes for a picture.
# fmt: off
FORMATS = (
    "JPEG", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "ICNS", "QOI", "PCX",
    "SGI", "DDS", "PSD", "SUN",
)
# fmt: on

_TRUNCATED_WORDS = ("truncated", "not enough", "requires a buffer", "too short")
_UNSUPPORTED_WORDS = ("support", "not available", "cannot handle", "unknown", "unrecognized image mode")
_ARCHIVES = (b"PK\3\4", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"7z\xbc\xaf")
_OTHER_SIGNATURES = {b"<svg": "SVG", b"%PDF": "PDF", b"ftyphe": "HEIC", b"ftypmif1": "HEIF", b"ftypmsf1": "HEIF"}

LARGE_PIXELS = 1 << 21
"""Pictures of more pixels are decoded under `hold`."""

_CMYK_COMPONENTS = 4
_JPEG_BYTES_PER_PIXEL = 6  # the coefficients of a progressive one; what comes out is small
_FREE = nullcontext()
_ORIENTATION_TAG = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Callers decode in threads of their own; OpenCV's would only fight with them.
cv2.setNumThreads(1)
# What Pillow has to say about a file is in the ImageError. warnings.catch_warnings is not thread-safe, so once, here.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
logging.getLogger("PIL").setLevel(logging.CRITICAL)


class ImageError(ValueError):
    """These bytes cannot become a picture. `cause` is one of CAUSES, `detail` one short line."""

    def __init__(self, cause: str, detail: str) -> None:
        assert cause in CAUSES, cause
        super().__init__(cause, detail)
        self.cause = cause
        self.detail = " ".join(detail.split())[:200]

    def __str__(self) -> str:
        return f"{self.cause}: {self.detail}"


class Decoded(NamedTuple):
    """pixels: (height, width, 3) uint8 RGB, upright; width_px, height_px: size of the upright original."""

    pixels: Pixels
    width_px: int
    height_px: int


def decode(
    data: bytes, input_px: tuple[int, int], max_pixels: int = DEFAULT_MAX_PIXELS, hold: Hold | None = None
) -> Decoded:
    """Decode a picture and stretch it to input_px = (height, width); Decoded.pixels is (height, width, 3) uint8 RGB.

    The same bytes give the same bits in any thread. hold: entered around the decoding of a large picture, with the
    bytes that it may take at most; it may wait. Raises ImageError for bytes that are no whole picture, or one of more
    than max_pixels; ValueError for an impossible input_px.
    """
    if min(input_px) < 1:
        raise ValueError(f"input_px: got {input_px}, wanted (height, width), both at least 1 pixel")
    return _guarded(data, input_px, max_pixels, hold)


def check(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[int, int]:
    """Decode a picture at full size; returns its upright (width_px, height_px), raises ImageError as decode does."""
    decoded = _guarded(data, None, max_pixels, None)
    return decoded.width_px, decoded.height_px


def _guarded(data: bytes, input_px: tuple[int, int] | None, max_pixels: int, hold: Hold | None) -> Decoded:
    if not data:
        raise ImageError("empty", "0 bytes")
    try:
        if not data.startswith(b"\xff\xd8\xff"):
            return _decode_other(data, input_px, max_pixels, None, hold)
        frame, exif = read_header(data)
        orientation = _orientation(exif)
        decoded = _decode_jpeg(data, input_px, max_pixels, frame, orientation, hold)
        return decoded or _decode_other(data, input_px, max_pixels, orientation, hold)
    except ImageError:
        raise
    except Exception as error:  # deliberately wide: decoders of untrusted bytes raise anything
        raise _image_error(error, data) from error


def _decode_jpeg(
    data: bytes,
    input_px: tuple[int, int] | None,
    max_pixels: int,
    frame: Frame | None,
    orientation: int,
    hold: Hold | None,
) -> Decoded | None:
    """Decode with simplejpeg; None where Pillow must judge (CMYK, 12 bits, a harmless warning, a damaged header)."""
    try:
        height, width = frame[:2] if frame else simplejpeg.decode_jpeg_header(data)[:2]
        if frame and frame.num_components == _CMYK_COMPONENTS:
            return None
        _limit(width, height, max_pixels)
        min_height, min_width = _turned(*(input_px or (0, 0)), orientation)
        # strict (the default) makes libjpeg's warnings errors: otherwise a cut file is filled up with grey.
        with _held(hold, width * height, _JPEG_BYTES_PER_PIXEL):
            pixels = simplejpeg.decode_jpeg(data, min_height=min_height, min_width=min_width)
    except ImageError:
        raise
    except ValueError as error:
        message = str(error)
        if message.startswith("Premature end of JPEG"):
            raise ImageError("truncated", message) from error
        if message.startswith("Corrupt JPEG data") and "ICC" not in message:
            raise ImageError("corrupt", message) from error
        return None
    return Decoded(_resize(_upright(pixels, orientation), input_px), *_turned(width, height, orientation))


def _decode_other(
    data: bytes, input_px: tuple[int, int] | None, max_pixels: int, jpeg_orientation: int | None, hold: Hold | None
) -> Decoded:
    with Image.open(BytesIO(data), formats=FORMATS) as image:
        _limit(*image.size, max_pixels)
        size = image.size
        with _held(hold, size[0] * size[1], rgb.bytes_per_pixel(image)):
            if jpeg_orientation and input_px:
                min_height, min_width = _turned(*input_px, jpeg_orientation)
                image.draft(None, (min_width, min_height))
            image.load()
            if not jpeg_orientation:
                size = image.size  # loading turns a TIFF upright and tells the size of an icon
            orientation = jpeg_orientation or _orientation(image.info.get("exif", b""))
            return Decoded(_resize(_upright(rgb.pixels(image), orientation), input_px), *_turned(*size, orientation))


def _held(hold: Hold | None, num_pixels: int, bytes_per_pixel: int) -> AbstractContextManager[None]:
    return hold(num_pixels * bytes_per_pixel) if hold and num_pixels > LARGE_PIXELS else _FREE


def _orientation(exif_block: bytes) -> int:
    if not exif_block:
        return 1
    exif = Image.Exif()
    try:
        exif.load(exif_block)
        orientation = exif.get(_ORIENTATION_TAG)
    except Exception:  # noqa: BLE001 - a damaged EXIF block does not damage the picture
        return 1
    return orientation if orientation in _TRANSPOSITIONS else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    if orientation not in _TRANSPOSITIONS:
        return pixels
    return np.array(Image.fromarray(pixels).transpose(_TRANSPOSITIONS[orientation]))


def _turned(first: int, second: int, orientation: int) -> tuple[int, int]:
    return (second, first) if orientation in _SIDEWAYS else (first, second)


def _resize(pixels: Pixels, input_px: tuple[int, int] | None) -> Pixels:
    if input_px is None:
        return pixels
    old_height, old_width, _ = pixels.shape
    height, width = input_px
    if old_height >= 2 * height or old_width >= 2 * width:
        old_height = height if old_height >= 2 * height else old_height
        old_width = width if old_width >= 2 * width else old_width
        pixels = cv2.resize(pixels, (old_width, old_height), interpolation=cv2.INTER_AREA)
    if old_height == height and old_width == width:
        return pixels
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)


def _limit(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError("too-large", f"{width}x{height} pixels, more than the {max_pixels:,} allowed")


def _image_error(error: Exception, data: bytes) -> ImageError:
    if isinstance(error, UnidentifiedImageError):
        return _unidentified(data)
    return ImageError(_cause(error), f"{type(error).__name__}: {error}")


def _cause(error: Exception) -> str:
    message = str(error).lower()
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return "too-large"
    if isinstance(error, EOFError) or any(word in message for word in _TRUNCATED_WORDS):
        return "truncated"
    if isinstance(error, NotImplementedError) or any(word in message for word in _UNSUPPORTED_WORDS):
        return "unsupported"
    return "corrupt"


def _unidentified(data: bytes) -> ImageError:
    """Say why no format of FORMATS took the file: a damaged one of them, another known format, or no picture at all."""
    head = data[:16].ljust(16, b"\0")  # some of Pillow's signature checks need 8 bytes
    for name, (factory, accept) in Image.OPEN.items():
        if not accept or not (accepted := accept(head)):
            continue
        if name not in FORMATS or isinstance(accepted, str):
            return ImageError("unsupported", f"{name} files are not read")
        try:
            factory(BytesIO(data), "").close()
        except Exception as reason:  # noqa: BLE001 - Image.open hides its reasons; here they are asked for again
            return ImageError(_cause(reason), f"{name}: {reason}")
    for signature, name in _OTHER_SIGNATURES.items():
        if signature in data[:1024]:
            return ImageError("unsupported", f"{name} files are not read")
    if data.startswith(_ARCHIVES):
        return ImageError("not-an-image", "an archive: unpack it, or give it as a .zip, .tar or .tar.gz of its own")
    return ImageError("not-an-image", "no known signature")
