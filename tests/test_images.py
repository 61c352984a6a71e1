"""images.py: every picture decodes to the same upright pixels anywhere; everything else is one ImageError."""

import pickle
import random
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from fruitcnn import images, rgb
from fruitcnn.images import CAUSES, ImageError, check, decode

# pytest puts its own warning filters in the place of those images.py sets.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

HEIGHT_PX, WIDTH_PX = 60, 80
INPUT_PX = (30, 40)
CUT_CAUSES = {"empty", "not-an-image", "truncated", "corrupt"}


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


@cache
def picture(height_px: int = HEIGHT_PX, width_px: int = WIDTH_PX) -> Image.Image:
    """Smooth colours, different in every corner, so that a wrong turn or channel order shows."""
    coarse = np.random.default_rng(7).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(cv2.resize(coarse, (width_px, height_px), interpolation=cv2.INTER_LINEAR))


def in_mode(mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(np.asarray(picture().convert("L")).astype(np.float32) / 255)
    return picture().convert(mode)


def exif_block(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def with_bytes(data: bytes, position: int, new: bytes) -> bytes:
    return data[:position] + new + data[position + len(new) :]


@cache
def mixed_set() -> dict[str, bytes]:
    modes = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F")
    found: dict[str, bytes] = {}
    for image_format in images.FORMATS:
        for mode in modes:
            try:
                found[f"{image_format} {mode}"] = encoded(in_mode(mode), image_format)
            except (OSError, KeyError, ValueError):
                continue  # Pillow does not write this mode in this format
    found = {name: data for name, data in found.items() if not name.startswith("ICNS")}  # 1024x1024: slow, tried apart
    palette = picture().quantize(64)
    jpeg = encoded(picture(), "JPEG")
    return found | {
        "progressive JPEG": encoded(picture(), "JPEG", progressive=True),
        "4:2:0 JPEG": encoded(picture(), "JPEG", subsampling=2),
        "restart marker JPEG": encoded(picture(), "JPEG", restart_marker_blocks=2),
        "JPEG with EXIF": encoded(picture(), "JPEG", exif=exif_block(6)),
        "CMYK JPEG with EXIF": encoded(picture().convert("CMYK"), "JPEG", exif=exif_block(6)),
        "JPEG of an unknown JFIF revision": with_bytes(jpeg, 11, b"\x07"),
        "palette PNG with transparency": encoded(palette, "PNG", transparency=0),
        "RGB PNG with transparency": encoded(picture(), "PNG", transparency=(255, 255, 255)),
        "GIF with transparency": encoded(palette, "GIF", transparency=0),
        "animated GIF": encoded(palette, "GIF", save_all=True, append_images=[Image.new("P", palette.size)]),
        "animated WEBP": encoded(picture(), "WEBP", save_all=True, append_images=[Image.new("RGB", palette.size)]),
        "animated PNG": encoded(picture(), "PNG", save_all=True, append_images=[Image.new("RGB", palette.size)]),
        "deflated TIFF": encoded(picture(), "TIFF", compression="tiff_adobe_deflate"),
        "JPEG TIFF": encoded(picture(), "TIFF", compression="jpeg"),
        "TIFF with EXIF": encoded(picture(), "TIFF", exif=exif_block(6)),
    }


def difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(int) - second.astype(int)).mean())


def outcome(data: bytes, input_px: tuple[int, int] = INPUT_PX) -> str:
    """'decoded', or the cause of the refusal. Any other exception fails the test."""
    refusal, decoded = None, None
    try:
        decoded = decode(data, input_px)
    except ImageError as error:
        refusal = error
    if refusal:
        assert refusal.cause in CAUSES
        assert 0 < len(refusal.detail) <= 200
        assert "\n" not in refusal.detail
        return refusal.cause
    assert decoded is not None
    assert decoded.pixels.shape == (*input_px, 3)
    assert decoded.pixels.dtype == np.uint8
    return "decoded"


def checked(data: bytes) -> str:
    try:
        check(data)
    except ImageError as error:
        return error.cause
    return "decoded"


def cuts(data: bytes) -> list[bytes]:
    lengths = {len(data) * percent // 100 for percent in range(0, 100, 5)} | {len(data) - 1, len(data) - 2, 1, 3, 9}
    return [data[:length] for length in sorted(lengths) if 0 <= length < len(data)]


# Acceptance


def test_the_mixed_set_covers_what_pillow_writes():
    formats = {name.split()[0] for name in mixed_set()}
    assert {"JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "QOI"} <= formats
    assert len(mixed_set()) > 60


@pytest.mark.parametrize("name", mixed_set())
def test_every_picture_decodes_and_check_agrees(name):
    data = mixed_set()[name]
    decoded = decode(data, INPUT_PX)
    assert decoded.pixels.shape == (*INPUT_PX, 3)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.flags["C_CONTIGUOUS"]
    assert decoded.pixels.flags["WRITEABLE"]
    assert check(data) == (decoded.width_px, decoded.height_px)


GREY_MODES, COLOUR_MODES = ("L", "LA", "I;16", "F"), ("RGB", "RGBA", "CMYK", "YCbCr")
# Written by Pillow as something else than the picture: levels clipped, not scaled.
CLIPPED = {"PPM F", "GIF F", "WEBP F", "AVIF F", "GIF I;16", "WEBP I;16", "AVIF I;16", "ICO I;16"}
FAITHFUL = {f"{image_format} {mode}" for image_format in images.FORMATS for mode in GREY_MODES + COLOUR_MODES} - CLIPPED


@pytest.mark.parametrize("name", [name for name in mixed_set() if name in FAITHFUL])
def test_the_colours_survive_every_format_and_mode(name):
    is_grey = name.split()[1] in GREY_MODES
    wanted = picture().convert("L").convert("RGB") if is_grey else picture()
    pixels = decode(mixed_set()[name], (HEIGHT_PX, WIDTH_PX)).pixels
    assert difference(pixels, np.asarray(wanted)) < 8


@pytest.mark.parametrize("name", mixed_set())
def test_a_large_picture_is_the_same_though_it_goes_through_in_strips(name, monkeypatch):
    whole = decode(mixed_set()[name], INPUT_PX).pixels
    monkeypatch.setattr(rgb, "_STRIP_PIXELS", 7 * WIDTH_PX)
    assert np.array_equal(decode(mixed_set()[name], INPUT_PX).pixels, whole)


def test_transparency_is_composited_on_white():
    clear = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    clear_palette = Image.new("P", (8, 8))
    key_colour = Image.new("RGB", (8, 8), (9, 9, 9))
    for image_format in ("PNG", "WEBP", "TIFF", "GIF"):
        assert decode(encoded(clear, image_format), (4, 4)).pixels.min() == 255, image_format
    assert decode(encoded(clear_palette, "PNG", transparency=0), (4, 4)).pixels.min() == 255
    assert decode(encoded(clear_palette, "GIF", transparency=0), (4, 4)).pixels.min() == 255
    assert decode(encoded(key_colour, "PNG", transparency=(9, 9, 9)), (4, 4)).pixels.min() == 255
    assert decode(encoded(clear.convert("LA"), "PNG"), (4, 4)).pixels.min() == 255
    assert np.all(np.abs(decode(encoded(half, "PNG"), (4, 4)).pixels.astype(int) - 127) <= 1)


@pytest.mark.parametrize(
    ("levels", "wanted"),
    [
        (np.array([[0, 128 * 257, 65535]], np.uint16), [0, 128, 255]),
        (np.array([[0, 32896, 65535]], np.int32), [0, 128, 255]),
        (np.array([[-1000, 0, 1000]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 128, 255]], np.float32), [0, 128, 255]),
        (np.array([[-5, 0, 5]], np.float32), [0, 128, 255]),
        (np.array([[0, np.nan, 1]], np.float32), [0, 0, 255]),
        (np.array([[7e4, 7e4, 7e4]], np.float32), [0, 0, 0]),
    ],
)
def test_16_bit_and_float_levels_are_scaled_not_clipped(levels, wanted):
    pixels = decode(encoded(Image.fromarray(levels), "TIFF"), levels.shape).pixels
    assert np.abs(pixels[0, :, 0].astype(int) - wanted).max() <= 1
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_an_animation_is_its_first_frame():
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    for image_format in ("GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"):
        pixels = decode(encoded(red, image_format, save_all=True, append_images=[blue]), (4, 4)).pixels
        assert difference(pixels, np.full_like(pixels, (255, 0, 0))) < 4, image_format


# Orientation


def stored_as(orientation: int) -> Image.Image:
    """The picture as a camera stores it under that orientation: turning it upright gives picture() back."""
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # values of Image.Transpose
    return picture().transpose(Image.Transpose(inverse[orientation])) if orientation in inverse else picture()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "CMYK", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_exif_orientation_comes_out_upright(image_format, orientation):
    stored = stored_as(orientation).convert("CMYK" if image_format == "CMYK" else "RGB")
    data = encoded(stored, "JPEG" if image_format == "CMYK" else image_format, exif=exif_block(orientation))
    decoded = decode(data, INPUT_PX)
    wanted = decode(encoded(picture(), "PNG"), INPUT_PX).pixels
    assert (decoded.width_px, decoded.height_px) == (WIDTH_PX, HEIGHT_PX)
    assert check(data) == (WIDTH_PX, HEIGHT_PX)
    assert difference(decoded.pixels, wanted) < 4


@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0nonsense", exif_block(6)[:20], exif_block(9), exif_block(0)])
def test_a_damaged_exif_block_does_not_damage_the_picture(block):
    data = encoded(picture(), "JPEG", exif=block)
    assert check(data) == (WIDTH_PX, HEIGHT_PX)


def test_fill_bytes_before_the_exif_block_are_skipped():
    data = encoded(picture(), "JPEG", exif=exif_block(6))
    assert check(data[:2] + b"\xff\xff" + data[2:]) == (HEIGHT_PX, WIDTH_PX)


def test_only_the_exif_of_the_header_counts():
    data = encoded(picture(), "JPEG")
    assert check(data + encoded(picture(), "JPEG", exif=exif_block(6))) == (WIDTH_PX, HEIGHT_PX)


# Scaled decoding and the resize


def test_scaled_decoding_is_near_the_full_decode():
    photo = picture(2000, 3000)
    for image, limit in ((photo, 1.5), (photo.convert("CMYK"), 3)):
        data = encoded(image, "JPEG", quality=90)
        decoded = decode(data, (96, 128))
        full = cv2.resize(np.asarray(photo), (128, 96), interpolation=cv2.INTER_AREA)
        assert (decoded.width_px, decoded.height_px) == (3000, 2000)
        assert difference(decoded.pixels, full) < limit


@given(height=st.integers(1, 200), width=st.integers(1, 200))
@example(height=1, width=200)
@example(height=HEIGHT_PX, width=WIDTH_PX)
def test_any_size_gives_that_size(height, width):
    sources = (encoded(picture(), "JPEG"), encoded(picture(), "PNG"))
    pixels = [decode(data, (height, width)).pixels for data in sources]
    assert [array.shape for array in pixels] == [(height, width, 3)] * 2
    assert difference(*pixels) < 12


def test_the_same_bytes_give_the_same_bits_in_any_thread():
    names = list(mixed_set())
    alone = [decode(mixed_set()[name], INPUT_PX).pixels for name in names]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda name: decode(mixed_set()[name], INPUT_PX).pixels, names * 4))
    for index, pixels in enumerate(together):
        assert np.array_equal(pixels, alone[index % len(names)]), names[index % len(names)]


@pytest.mark.parametrize("input_px", [(0, 10), (10, -1)])
def test_an_impossible_size_is_the_callers_error(input_px):
    with pytest.raises(ValueError, match="input_px") as caught:
        decode(encoded(picture(), "PNG"), input_px)
    assert not isinstance(caught.value, ImageError)


# Refusals


def num_bytes_needed(data: bytes) -> int:
    """A JPEG needs its end mark. A PNG has all its pixels before its end chunk and the checksum before that."""
    return data.rindex(b"IEND") - 8 if data.startswith(b"\x89PNG") else len(data)


@pytest.mark.parametrize(
    "name", [name for name, data in mixed_set().items() if data.startswith((b"\x89PNG", b"\xff\xd8\xff"))]
)
def test_a_cut_jpeg_or_png_is_refused(name):
    data = mixed_set()[name]
    for cut in cuts(data):
        found = outcome(cut)
        assert found == checked(cut), len(cut)
        if found == "decoded":
            assert len(cut) >= num_bytes_needed(data)
        else:
            assert found in CUT_CAUSES


@pytest.mark.parametrize("name", mixed_set())
def test_a_cut_file_of_any_format_decodes_or_is_refused(name):
    for cut in cuts(mixed_set()[name])[::2]:
        assert outcome(cut) in ("decoded", *CAUSES)


@pytest.mark.parametrize("tail", [b"\0", b"\r\n", b"garbage" * 100, b"\xff\xd9", b"\xff\xd8\xff\xe0"])
def test_trailing_bytes_after_a_jpeg_are_harmless(tail):
    for name in ("JPEG RGB", "JPEG CMYK", "progressive JPEG", "JPEG L"):
        assert np.array_equal(
            decode(mixed_set()[name] + tail, INPUT_PX).pixels, decode(mixed_set()[name], INPUT_PX).pixels
        )


@pytest.mark.parametrize("name", ["JPEG RGB", "progressive JPEG", "restart marker JPEG", "4:2:0 JPEG", "JPEG CMYK"])
def test_a_damaged_jpeg_is_judged_alike_at_any_scale(name):
    data, chance = mixed_set()[name], random.Random(name)
    found = []
    for _ in range(60):
        damaged = with_bytes(data, chance.randrange(2, len(data)), bytes([chance.randrange(256)]))
        found.append(checked(damaged))
        assert {outcome(damaged, input_px) for input_px in ((1, 1), (7, 10), INPUT_PX, (200, 200))} == {found[-1]}
    assert "decoded" in found
    assert set(found) - {"decoded"}


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@cache
def bombs() -> dict[str, bytes]:
    jpeg = encoded(picture(), "JPEG")
    frame = jpeg.index(b"\xff\xc0") + 5
    deflate = zlib.compressobj(9)
    rows = b"".join(deflate.compress(bytes(20_000 // 8 + 1)) for _ in range(20_000)) + deflate.flush()
    return {
        "PNG header": png(100_000, 100_000, 8, b""),
        "1-bit PNG": png(20_000, 20_000, 1, rows),
        "JPEG header": with_bytes(jpeg, frame, struct.pack(">HH", 65_000, 65_000)),
        "GIF header": with_bytes(mixed_set()["GIF P"], 6, struct.pack("<HH", 65_000, 65_000)),
        "BMP header": with_bytes(mixed_set()["BMP RGB"], 18, struct.pack("<ii", 100_000, 100_000)),
    }


@pytest.mark.parametrize("name", ["PNG header", "1-bit PNG", "JPEG header", "GIF header", "BMP header"])
def test_a_decompression_bomb_is_refused_at_once(name):
    data = bombs()[name]
    outcome(mixed_set()["PNG RGB"])  # Pillow loads its plug-ins at the first call
    tracemalloc.start()
    start = time.perf_counter()
    assert outcome(data) == checked(data) == "too-large"
    seconds = time.perf_counter() - start
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 0.1
    assert peak_bytes < 1_000_000 + 3 * len(data)


@pytest.mark.parametrize("name", ["JPEG RGB", "JPEG CMYK", "PNG RGB", "TIFF RGB", "WEBP RGB"])
def test_the_pixel_limit_is_the_callers(name):
    data, num_pixels = mixed_set()[name], HEIGHT_PX * WIDTH_PX
    assert check(data, max_pixels=num_pixels) == (WIDTH_PX, HEIGHT_PX)
    with pytest.raises(ImageError, match="80x60 pixels") as caught:
        decode(data, INPUT_PX, max_pixels=num_pixels - 1)
    assert caught.value.cause == "too-large"


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "empty"),
        (b"hello, world\n" * 10, "not-an-image"),
        (b"<!DOCTYPE html><html></html>", "not-an-image"),
        (b"PK\3\4" + bytes(60), "not-an-image"),
        (bytes(1000), "not-an-image"),
        (b"\xff", "not-an-image"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported"),
        (b"%PDF-1.7\n", "unsupported"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "unsupported"),
        (b"\xc5\xd0\xd3\xc6" + bytes(60), "unsupported"),
        (b"\xd7\xcd\xc6\x9a" + bytes(60), "unsupported"),
        (b"\x89HDF\r\n\x1a\n" + bytes(60), "unsupported"),
        (b"\0\0\0\x20ftypheic\0\0\0\0mif1heic" + bytes(60), "unsupported"),
        (b"\xff\xd8\xff", "corrupt"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
    ],
)
def test_what_is_no_picture_is_named(data, cause):
    assert outcome(data) == checked(data) == cause


@pytest.mark.parametrize("start", [b"PK\3\4", b"\x1f\x8b\x08", b"BZh9"])
def test_an_archive_where_a_picture_should_be_is_called_one(start):
    with pytest.raises(ImageError, match=r"not-an-image: an archive: unpack it, or give it as a \.zip"):
        decode(start + bytes(60), INPUT_PX)


def test_eps_never_starts_a_program(monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    assert outcome(encoded(picture(), "EPS")) == "unsupported"


def test_a_harmless_libjpeg_warning_hides_no_truncation():
    data = mixed_set()["JPEG of an unknown JFIF revision"]
    assert {outcome(cut) for cut in cuts(data)} <= CUT_CAUSES
    assert outcome(data) == "decoded"


@pytest.mark.parametrize("compression", ["jpeg", "tiff_lzw", "tiff_adobe_deflate"])
def test_libtiff_says_nothing_on_the_screen(compression: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A thousand damaged TIFFs were a thousand lines about "tempfile.tif" across the progress bar."""
    buffer = BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(buffer, "TIFF", compression=compression)
    draw = random.Random(0)
    causes = set()
    for _ in range(40):
        data = bytearray(buffer.getvalue())
        for _ in range(20):
            data[draw.randrange(8, len(data))] = draw.randrange(256)
        causes.add(outcome(bytes(data)))
    assert causes & {"corrupt", "truncated"}
    assert capfd.readouterr().err == ""


def test_a_12_bit_jpeg_is_unsupported():
    data = encoded(picture(), "JPEG")
    assert outcome(with_bytes(data, data.index(b"\xff\xc0") + 4, b"\x0c")) == "unsupported"


@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_but_image_error(data):
    assert outcome(data) == checked(data)


@given(st.sampled_from(sorted(mixed_set())), st.integers(0, 400), st.binary(min_size=1, max_size=20))
def test_a_damaged_header_raises_nothing_but_image_error(name, position, damage):
    assert outcome(with_bytes(mixed_set()[name], position, damage)) in ("decoded", *CAUSES)


@pytest.mark.parametrize("error", [MemoryError(), RecursionError(), zlib.error("x"), struct.error("x"), TypeError("x")])
def test_whatever_a_decoder_raises_becomes_an_image_error(monkeypatch, error):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(simplejpeg, "decode_jpeg", fail)
    assert outcome(encoded(picture(), "JPEG")) == ("too-large" if isinstance(error, MemoryError) else "corrupt")


def test_an_interrupt_passes(monkeypatch):
    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(simplejpeg, "decode_jpeg", interrupt)
    with pytest.raises(KeyboardInterrupt):
        decode(encoded(picture(), "JPEG"), INPUT_PX)


def test_an_image_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(ImageError("corrupt", "two\nlines")))
    assert (error.cause, error.detail, str(error)) == ("corrupt", "two lines", "corrupt: two lines")


# In a process of its own, with a program's warning filters.
QUIET_PROGRAM = """
import logging, pickle, sys
from PIL import Image, ImageFile
from fruitcnn.images import ImageError, decode
logging.basicConfig(level=logging.WARNING)
num_refused = 0
for data in pickle.load(sys.stdin.buffer):
    try:
        decode(data, (8, 8))
    except ImageError:
        num_refused += 1
print(num_refused, Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
"""


def test_nothing_is_printed_and_pillow_keeps_its_settings():
    # libtiff's own JPEG reader writes one line to stderr, below Python: the one known exception.
    whole = [data for name, data in mixed_set().items() if name != "JPEG TIFF"]
    cut = [data[: len(data) * part // 8] for data in whole for part in (1, 4, 7)]
    files = [*bombs().values(), *whole, *cut]
    done = subprocess.run(
        [sys.executable, "-c", QUIET_PROGRAM], input=pickle.dumps(files), capture_output=True, check=True
    )
    num_refused, *settings = done.stdout.decode().split()
    assert done.stderr == b""
    assert int(num_refused) >= len(bombs()) + len(cut) // 2
    assert settings == ["89478485", "False"]
