"""A Pillow image of any mode -> RGB pixels: transparency on white, 16 bits and floats to 8. Used by images.

Large pictures go through in strips, so that they are in memory twice at most: as Pillow has them, and as they come out.
"""

import contextlib
import ctypes
import re
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

_STRIP_PIXELS = 1 << 20


def bytes_per_pixel(image: Image.Image) -> int:
    """Return what an image that is loaded, made RGB and turned upright takes at most, bytes."""
    # Modes I and F: the darkest and the brightest value must be known first, so all of it goes through at once.
    return 20 if image.mode[0] in "IF" else 11


def pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return (H, W, 3) uint8 RGB of a loaded image."""
    if image.mode[0] in "IF":
        return cv2.cvtColor(_to_8_bits(np.asarray(image)), cv2.COLOR_GRAY2RGB)
    found = np.empty((image.height, image.width, 3), np.uint8)
    num_rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, num_rows):
        bottom = min(top + num_rows, image.height)
        is_whole = num_rows >= image.height
        found[top:bottom] = np.asarray(_to_rgb(image if is_whole else image.crop((0, top, image.width, bottom))))
    return found


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Grey levels of 16 or 32 bits or floats, (H, W), to 8 bits.

    Integers within 0..65535 are 16-bit levels, floats within 0..1 fractions, floats within 0..255 8-bit levels; of
    anything else the darkest value becomes black and the brightest white.
    """
    with np.errstate(all="ignore"):  # a damaged file holds any float
        levels = np.nan_to_num(values) if values.dtype.kind == "f" else values
        low, high = float(levels.min()), float(levels.max())
        ranges = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (65535.0,)
        white = next((top for top in ranges if low >= 0 and high <= top), None)
        black, white = (0.0, white) if white else (low, max(high, low + 1))
        grey = np.empty(levels.size, np.uint8)
        for start in range(0, levels.size, _STRIP_PIXELS):  # a float64 copy of it all could be gigabytes
            block = levels.reshape(-1)[start : start + _STRIP_PIXELS].astype(np.float64)
            grey[start : start + _STRIP_PIXELS] = np.rint((block - black) * (255 / (white - black)))
    return grey.reshape(levels.shape)


def _silence_libtiff() -> None:
    """Pillow's libtiff prints what is wrong with a file, without the file's name, where a job shows its progress.

    What is wrong becomes the picture's row all the same: Pillow raises it.
    """
    with contextlib.suppress(OSError, AttributeError):  # another build of Pillow, which may be as talkative as it likes
        for path in {*re.findall(r" (/.*/libtiff[^/\n]*)$", Path("/proc/self/maps").read_text(), re.MULTILINE)}:
            library = ctypes.CDLL(path)
            for set_handler in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
                set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
                set_handler(None)


_silence_libtiff()
