"""A JPEG's header -> its size and EXIF block, from marker to marker, without decoding. Used by images.py.

One walk tells both, in less time than libjpeg, which sets up a decoder first, takes for the size alone. What is damaged
or odd is left to libjpeg.
"""

from typing import NamedTuple

_APP1, _START_OF_SCAN, _FILL = 0xE1, 0xDA, 0xFF
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the markers that tell the size: ITU-T T.81, table B.1
_FRAME_BYTES = 10  # of a frame's segment up to the number of components
_EXIF = b"Exif\0\0"


class Frame(NamedTuple):
    """Size as stored, before EXIF turns it; num_components: 1 grey, 3 colour, 4 CMYK."""

    height_px: int
    width_px: int
    num_components: int


def read_header(data: bytes) -> tuple[Frame | None, bytes]:
    """The frame and the EXIF block of bytes that begin like a JPEG; microseconds at any size, whatever the bytes are.

    None where no frame is found on the straight way, no bytes where there is no block. An EXIF block belongs
    right behind the first two bytes (CIPA DC-008, 4.5.4); behind the frame nobody looks for it.
    """
    start, last, exif = 2, len(data) - _FRAME_BYTES, b""
    while start < last and data[start] == _FILL:
        marker = data[start + 1]
        if marker == _FILL:
            start += 1
            continue
        if marker in _FRAMES:
            height_px = (data[start + 5] << 8) + data[start + 6]
            width_px = (data[start + 7] << 8) + data[start + 8]
            return Frame(height_px, width_px, data[start + 9]), exif
        if marker == _START_OF_SCAN:
            break
        end = start + 2 + (data[start + 2] << 8) + data[start + 3]
        if marker == _APP1 and not exif and data.startswith(_EXIF, start + 4):
            exif = data[start + 4 : end]
        start = end
    return None, exif
