"""What the page does to a picture before the model sees it, against images.py: run by Node, on pixels decoded here."""

import io
import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fruitcnn import images
from fruitcnn.endpoints import PAGE

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="needs node")

SCRIPT = """
import { readFileSync, writeFileSync } from "node:fs";
const { shrink } = await import(process.argv[2]);
for (const { file, width, height, input } of JSON.parse(readFileSync(0, "utf8"))) {
  const bytes = readFileSync(file);
  const strips = [];
  for (let at = 0; at < bytes.length; at += width * 4 * 64) strips.push(bytes.subarray(at, at + width * 4 * 64));
  writeFileSync(file + ".out", shrink(strips, width, height, input[0], input[1]));
}
"""
SIZES = ((100, 100), (301, 77), (13, 9), (640, 480), (33, 32), (1999, 701), (32, 32), (64, 40), (90, 500))


def pixels_of(number: int, size: tuple[int, int]) -> np.ndarray:
    coarse = np.random.default_rng(number).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def shrunk(tmp_path: Path, pixels: list[np.ndarray], input_px: tuple[int, int]) -> list[np.ndarray]:
    """What pixels.js makes of whole uint8 (H, W, 3) pictures."""
    (tmp_path / "run.mjs").write_text(SCRIPT)
    jobs = []
    for number, each in enumerate(pixels):
        file = tmp_path / f"{number}.rgba"
        file.write_bytes(np.dstack([each, np.full(each.shape[:2], 255, np.uint8)]).tobytes())
        jobs.append({"file": str(file), "width": each.shape[1], "height": each.shape[0], "input": input_px})
    command = ["node", str(tmp_path / "run.mjs"), str(PAGE / "pixels.js")]
    subprocess.run(command, input=json.dumps(jobs), text=True, check=True, timeout=60)
    return [np.frombuffer(Path(each["file"] + ".out").read_bytes(), np.uint8).reshape(*input_px, 3) for each in jobs]


@pytest.mark.parametrize("input_px", [(32, 32), (24, 40)])
def test_pictures_without_loss_come_out_the_same(tmp_path: Path, input_px: tuple[int, int]) -> None:
    pixels = [pixels_of(number, size) for number, size in enumerate(SIZES)]
    for ours, theirs, size in zip(shrunk(tmp_path, pixels, input_px), pixels, SIZES, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(theirs).save(buffer, "PNG")
        expected = images.decode(buffer.getvalue(), input_px).pixels
        assert np.abs(ours.astype(int) - expected).max() <= 1, size


DECODE = """
import { readFileSync, writeFileSync } from "node:fs";
const { decodeJpeg, PictureError } = await import(process.argv[2]);
const { shrink } = await import(process.argv[3]);
const answers = JSON.parse(readFileSync(0, "utf8")).map(({ file, input: [height, width], maxPixels }) => {
  try {
    const found = decodeJpeg(readFileSync(file), width, height, maxPixels);
    if (found) writeFileSync(file + ".out", shrink([found.data], found.width, found.height, height, width));
    return found && [found.fullWidth, found.fullHeight];
  } catch (error) {
    if (!(error instanceof PictureError)) throw error;
    return error.cause;
  }
});
console.log(JSON.stringify(answers));
"""


def decoded(tmp_path: Path, files: list[bytes], input_px: tuple[int, int], max_pixels: int = 10**9) -> list[Any]:
    """What jpeg.js and pixels.js make of JPEG files: (width, height) of the picture, or the cause, or None."""
    (tmp_path / "decode.mjs").write_text(DECODE)
    jobs = []
    for number, data in enumerate(files):
        (tmp_path / f"{number}.jpg").write_bytes(data)
        jobs.append({"file": str(tmp_path / f"{number}.jpg"), "input": input_px, "maxPixels": max_pixels})
    command = ["node", str(tmp_path / "decode.mjs"), str(PAGE / "jpeg.js"), str(PAGE / "pixels.js")]
    done = subprocess.run(command, input=json.dumps(jobs), text=True, check=True, timeout=120, capture_output=True)
    return json.loads(done.stdout)


def out(tmp_path: Path, number: int, input_px: tuple[int, int]) -> np.ndarray:
    return np.frombuffer((tmp_path / f"{number}.jpg.out").read_bytes(), np.uint8).reshape(*input_px, 3)


def jpeg(number: int, size: tuple[int, int], **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels_of(number, size))
    (picture.convert("L") if options.pop("is_grey", False) else picture).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("input_px", [(32, 32), (24, 40), (100, 100)])
@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"is_grey": True}, {"keep_rgb": True},
        {"progressive": True}, {"progressive": True, "subsampling": 0}, {"restart_marker_blocks": 3},
        {"progressive": True, "restart_marker_rows": 1, "is_grey": True}, {"optimize": True},
    ],
    ids=str,
)  # fmt: skip
def test_jpegs_come_out_as_libjpeg_decodes_them(
    tmp_path: Path, options: dict[str, Any], input_px: tuple[int, int]
) -> None:
    """But for a rounding here and there, whichever size libjpeg decodes at."""
    files = [jpeg(number, size, **options) for number, size in enumerate(SIZES)]
    assert decoded(tmp_path, files, input_px) == [[*size] for size in SIZES]
    for number, (data, size) in enumerate(zip(files, SIZES, strict=True)):
        difference = np.abs(out(tmp_path, number, input_px).astype(int) - images.decode(data, input_px).pixels)
        assert difference.mean() < 0.06, size
        assert difference.max() <= 3, size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpegs_come_out_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(1, (301, 77), exif=exif)
    theirs = images.decode(data, (24, 40))
    assert decoded(tmp_path, [data], (24, 40)) == [[theirs.width_px, theirs.height_px]]
    assert np.abs(out(tmp_path, 0, (24, 40)).astype(int) - theirs.pixels).max() <= 4


def test_damaged_jpegs_have_the_cause_that_the_server_says(tmp_path: Path) -> None:
    whole = jpeg(0, (640, 480))
    middle = whole.index(b"\xff\xda") + 4000
    files = [whole[:-200], whole[:-2], whole[:300], whole[:middle] + b"\xff\xd9", whole]
    expected = ["truncated", "truncated", "truncated", "corrupt", [640, 480]]
    assert decoded(tmp_path, files, (32, 32)) == expected
    assert decoded(tmp_path, files[-1:], (32, 32), 640 * 480 - 1) == ["too-large"]


def test_bytes_changed_anywhere_do_no_harm(tmp_path: Path) -> None:
    """Decoded, left to the browser, or rejected with a cause: no other error, and no loop without end."""
    random, files = np.random.default_rng(0), []
    for options in ({"subsampling": 2}, {"progressive": True, "restart_marker_blocks": 2}):
        whole = np.frombuffer(jpeg(0, (100, 100), **options), np.uint8)
        for number in range(200):
            damaged = whole.copy()
            where = random.integers(2, 600 if number % 2 else len(whole), 3)
            damaged[where] = random.integers(0, 256, 3)
            files.append(damaged.tobytes())
    found = {each if isinstance(each, str | None) else "decoded" for each in decoded(tmp_path, files, (32, 32), 10**6)}
    assert {"decoded", "corrupt"} <= found <= {"decoded", "corrupt", "truncated", "too-large", None}


def test_what_it_does_not_read_is_left_to_the_browser(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels_of(0, (60, 40))).convert("CMYK").save(buffer, "JPEG")
    assert decoded(tmp_path, [buffer.getvalue()], (32, 32)) == [None]


@pytest.mark.fruits
def test_pictures_of_fruit_come_out_the_same(tmp_path: Path, fruits_zip: Path) -> None:
    with zipfile.ZipFile(fruits_zip) as archive:
        names = [name for name in archive.namelist() if "/Test/" in name and name.endswith(".jpg")][::26]
        files = [archive.read(name) for name in names]
    decoded(tmp_path, files, (32, 32))
    ours = np.stack([out(tmp_path, number, (32, 32)) for number in range(len(files))]).astype(int)
    difference = np.abs(ours - np.stack([images.decode(data, (32, 32)).pixels for data in files]))
    assert difference.mean() < 0.002
    assert difference.max() <= 2
