"""jpeg_header.py: size and EXIF block of a JPEG, as libjpeg and Pillow read them; odd bytes harm nothing."""

from io import BytesIO

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fruitcnn.jpeg_header import Frame, read_header

EXIF = Image.Exif()
EXIF[0x0112] = 6


def encoded(mode: str = "RGB", size: tuple[int, int] = (30, 20), **options: object) -> bytes:
    buffer = BytesIO()
    Image.new(mode, size, 100).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("mode", "components"), [("L", 1), ("RGB", 3), ("CMYK", 4)])
@pytest.mark.parametrize("progressive", [False, True])
def test_size_and_components_are_those_of_the_frame(mode, components, progressive):
    data = encoded(mode, (300, 20), progressive=progressive)
    assert read_header(data) == (Frame(20, 300, components), b"")
    assert simplejpeg.decode_jpeg_header(data)[:2] == (20, 300)


def test_the_first_exif_block_counts():
    first = EXIF.tobytes()
    data = encoded(exif=first)
    start = data.index(b"Exif\0\0") - 4
    segment = data[start : start + 4 + len(first)]
    other = segment.replace(b"\x06", b"\x03")
    assert other != segment
    assert read_header(data.replace(segment, segment + other)) == (Frame(20, 30, 3), first)


def test_a_thumbnail_in_the_exif_block_is_not_taken_for_the_picture():
    block = b"Exif\0\0" + encoded(size=(8, 8))
    assert read_header(encoded(exif=block)) == (Frame(20, 30, 3), block)


def test_of_a_header_that_is_cut_no_frame_is_made_up():
    data = encoded()
    frame = data.index(b"\xff\xc0")
    assert all(read_header(data[:end])[0] in (None, Frame(20, 30, 3)) for end in range(len(data)))
    assert read_header(data[: frame + 9])[0] is None


@given(st.binary(max_size=80), st.integers(0, 400), st.booleans())
def test_any_bytes_give_a_header_and_no_error(noise, place, has_exif):
    data = encoded(exif=EXIF.tobytes()) if has_exif else encoded()
    damaged = data[:place] + noise + data[place:]
    frame, exif = read_header(damaged)
    assert frame is None or frame.num_components in range(256)
    assert exif in damaged


def test_the_sizes_of_many_pictures_agree_with_libjpeg():
    drawn = np.random.default_rng(3)
    for _ in range(50):
        size = tuple(drawn.integers(1, 700, 2).tolist())
        data = encoded(size=size, quality=int(drawn.integers(1, 96)))
        assert read_header(data)[0][:2] == simplejpeg.decode_jpeg_header(data)[:2]
