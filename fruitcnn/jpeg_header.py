"""A JPEG's header -> its size and EXIF block, from marker to marker, without decoding. Used by images.py.

A third of the time of asking libjpeg, which sets up a decoder first. What is damaged or odd is left to libjpeg.
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


class Header(NamedTuple):
    """frame: None where none is found on the straight way; exif: the EXIF block, or nothing."""

    frame: Frame | None
    exif: bytes


def read_header(data: bytes) -> Header:
    """The header of bytes that begin like a JPEG; microseconds at any size, whatever the bytes are.

    An EXIF block belongs right behind the first two bytes (CIPA DC-008, 4.5.4); behind the frame nobody looks for it.
    """
    start, last, exif = 2, len(data) - _FRAME_BYTES, b""
    while start < last and data[start] == _FILL:
        marker = data[start + 1]
        if marker == _FILL:
            start += 1
            continue
        if marker in _FRAMES:
            return Header(_frame(data, start), exif)
        if marker == _START_OF_SCAN:
            break
        end = start + 2 + (data[start + 2] << 8) + data[start + 3]
        if marker == _APP1 and not exif and data.startswith(_EXIF, start + 4):
            exif = data[start + 4 : end]
        start = end
    return Header(None, exif)


def _frame(data: bytes, start: int) -> Frame:
    height_px = (data[start + 5] << 8) + data[start + 6]
    width_px = (data[start + 7] << 8) + data[start + 8]
    return Frame(height_px, width_px, data[start + 9])
