"""The whole flow: the same pictures give the same predictions in a folder and on S3, and one decode path serves all."""

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fruitcnn import images, infer, storage
from fruitcnn.familiar import NO_LIMITS, Answers
from fruitcnn.inputs import Listing
from fruitcnn.pixels import load_pixels
from fruitcnn.shard_config import ShardConfig
from fruitcnn.shards import write_dataset
from jobs.cli import progress
from jobs.pipeline import PipelineConfig, main

pytestmark = [pytest.mark.flow, pytest.mark.ray]


def predictions(work: str) -> dict[str, tuple[Any, ...]]:
    """Picture -> what was said of it, without the place it was read from."""
    rows: dict[str, tuple[Any, ...]] = {}
    for entry in storage.list_files(storage.join(work, "predictions", "parts")):
        for row in pq.read_table(io.BytesIO(storage.read(entry.uri))).to_pylist():
            said = (row["label"], row["confidence"], row["status"], row["sha256"], tuple(row["top_scores"]))
            rows[row["id"].split("!", 1)[1]] = said
    return rows


@pytest.mark.s3
@pytest.mark.timeout(600)
def test_one_command_makes_the_same_predictions_in_a_folder_and_on_s3(
    ray_session: None, tmp_path: Path, s3_prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for work in (str(tmp_path / "work"), s3_prefix):
        main(PipelineConfig(source="synthetic:4x40", work=work, images_seen=1280, runtime="openvino"))
        said = capsys.readouterr().out
        assert storage.join(work, "report.html") in said
        # So short a training leaves some pictures unsure; none may be lost.
        (books,) = re.findall(r"36 listed = (\d+) ok \+ (\d+) unsure \+ 0 rejected", said)
        assert sum(map(int, books)) == 36
        report = storage.read(storage.join(work, "report.html")).decode()
        assert "<html" in report
        found[work] = predictions(work)
    local, remote = found.values()
    assert len(local) == 36
    assert local == remote


MIXED = [
    ("RGB", "jpeg", (100, 100)),
    ("L", "jpeg", (640, 481)),
    ("CMYK", "jpeg", (90, 70)),
    ("RGBA", "png", (64, 33)),
    ("P", "gif", (50, 50)),
    ("RGB", "webp", (31, 17)),
    ("1", "bmp", (40, 40)),
    ("RGB", "jpeg", (1600, 1200)),
]


def mixed_pictures() -> dict[str, bytes]:
    """Pictures of several formats, modes and sizes: name -> bytes."""
    random = np.random.default_rng(5)
    made: dict[str, bytes] = {}
    for number, (mode, kind, size) in enumerate(MIXED):
        coarse = Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(size).convert(mode)
        buffer = io.BytesIO()
        coarse.save(buffer, kind)
        made[f"{number}.{kind}"] = buffer.getvalue()
    return made


class Witness:
    """A model that keeps what it is shown."""

    labels, input_px, limits = ("a", "b"), (32, 32), NO_LIMITS

    def __init__(self) -> None:
        self.shown: list[np.ndarray] = []

    def answer(self, pixels: np.ndarray) -> Answers:
        self.shown.append(pixels.copy())
        return Answers(np.full((len(pixels), 2), 0.5, np.float32), np.zeros(len(pixels), np.float32))


def shown_when_classifying(uri: str) -> dict[str, np.ndarray]:
    """File name -> the pixels that a model is given of it, (32, 32, 3) uint8."""
    witness = Witness()
    options = infer.Options(
        batch_size=5, top_k=1, probabilities=False, min_confidence=0, max_pixels=10**8, num_threads=1
    )
    inputs = list(Listing(uri))
    rows = infer.Workers([witness], options).rows(inputs)
    assert rows.causes == [None] * len(inputs)
    return {str(i).rsplit("/", 1)[1]: pixels for i, pixels in zip(rows.ids, np.concatenate(witness.shown), strict=True)}


def test_training_and_classifying_see_the_same_pixels_bit_for_bit(ray_session: None, tmp_path: Path) -> None:
    pictures = mixed_pictures()
    source = tmp_path / "mixed.zip"
    with zipfile.ZipFile(source, "w") as archive:
        for split in ("Training", "Test"):
            for label in ("a", "b"):
                for name, data in pictures.items():
                    archive.writestr(f"{split}/{label}/{name}", data)
    dataset = str(tmp_path / "dataset")
    manifest = write_dataset(ShardConfig(source=str(source), dataset=dataset), progress)
    assert manifest.num_rejected_by_cause == {}
    trained_on = load_pixels(dataset, "train", (32, 32), cache_dir=str(tmp_path / "cache"))
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    classified = shown_when_classifying(str(folder))
    assert classified.keys() == pictures.keys()
    for path, pixels in zip(trained_on.paths, trained_on.pixels, strict=True):
        name = path.rsplit("/", 1)[1]
        np.testing.assert_array_equal(pixels, classified[name])
        np.testing.assert_array_equal(pixels, images.decode(pictures[name], (32, 32)).pixels)
