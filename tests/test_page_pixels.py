"""What the page does to a picture before the model sees it, against images.py: run by Node, on pixels decoded here."""

import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from fruitcnn import images
from fruitcnn.endpoints import PAGE

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="needs node")

SCRIPT = """
import { readFileSync, writeFileSync } from "node:fs";
const { shrink } = await import("data:text/javascript," + encodeURIComponent(readFileSync(process.argv[2], "utf8")));
for (const { file, width, height, input, isJpeg } of JSON.parse(readFileSync(0, "utf8"))) {
  const bytes = readFileSync(file);
  const strips = [];
  for (let at = 0; at < bytes.length; at += width * 4 * 64) strips.push(bytes.subarray(at, at + width * 4 * 64));
  writeFileSync(file + ".out", shrink(strips, width, height, input[0], input[1], isJpeg));
}
"""
SIZES = ((100, 100), (301, 77), (13, 9), (640, 480), (33, 32), (1999, 701), (32, 32), (64, 40), (90, 500))


def pixels_of(number: int, size: tuple[int, int]) -> np.ndarray:
    coarse = np.random.default_rng(number).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def shrunk(tmp_path: Path, pixels: list[np.ndarray], input_px: tuple[int, int], is_jpeg: bool) -> list[np.ndarray]:
    """What pixels.js makes of whole uint8 (H, W, 3) pictures."""
    (tmp_path / "run.mjs").write_text(SCRIPT)
    jobs = []
    for number, each in enumerate(pixels):
        file = tmp_path / f"{number}.rgba"
        file.write_bytes(np.dstack([each, np.full(each.shape[:2], 255, np.uint8)]).tobytes())
        jobs.append({"file": str(file), "width": each.shape[1], "height": each.shape[0], "input": input_px})
    command = ["node", str(tmp_path / "run.mjs"), str(PAGE / "pixels.js")]
    given = json.dumps([each | {"isJpeg": is_jpeg} for each in jobs])
    subprocess.run(command, input=given, text=True, check=True, timeout=60)
    return [np.frombuffer(Path(each["file"] + ".out").read_bytes(), np.uint8).reshape(*input_px, 3) for each in jobs]


@pytest.mark.parametrize("input_px", [(32, 32), (24, 40)])
def test_pictures_without_loss_come_out_the_same(tmp_path: Path, input_px: tuple[int, int]) -> None:
    pixels = [pixels_of(number, size) for number, size in enumerate(SIZES)]
    for ours, theirs, size in zip(shrunk(tmp_path, pixels, input_px, False), pixels, SIZES, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(theirs).save(buffer, "PNG")
        expected = images.decode(buffer.getvalue(), input_px).pixels
        assert np.abs(ours.astype(int) - expected).max() <= 1, size


@pytest.mark.parametrize(("subsampling", "limit"), [(0, 1.0), (2, 3.5)])
def test_jpegs_come_out_nearly_the_same(tmp_path: Path, subsampling: int, limit: float) -> None:
    """Mean of 255: pictures of random colours are the worst case of colour stored at half the size."""
    files = []
    for number, size in enumerate(SIZES):
        buffer = io.BytesIO()
        Image.fromarray(pixels_of(number, size)).save(buffer, "JPEG", quality=90, subsampling=subsampling)
        files.append(buffer.getvalue())
    whole = [simplejpeg.decode_jpeg(data) for data in files]
    for ours, data, size in zip(shrunk(tmp_path, whole, (32, 32), True), files, SIZES, strict=True):
        difference = np.abs(ours.astype(int) - images.decode(data, (32, 32)).pixels)
        assert difference.mean() < limit, size
