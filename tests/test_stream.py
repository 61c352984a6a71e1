"""stream.py: what is streamed is what decoding everything gives, within a file of the stated size."""

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from fruitcnn import pixels
from fruitcnn.errors import UsageError
from fruitcnn.feed import Feed, InMemory
from fruitcnn.manifest import Manifest
from fruitcnn.pixels import load_pixels
from fruitcnn.sampling import Order
from fruitcnn.stream import Stream
from tests.test_pixels import Jpeg, make_dataset, make_rows

ROW_BYTES = 8 * 8 * 3
BUDGET_BYTES = 2 * 256 * ROW_BYTES + 1000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, jpeg_bytes: Jpeg) -> tuple[str, Manifest]:
    uri = str(tmp_path_factory.mktemp("stream") / "dataset")
    rows = make_rows(jpeg_bytes, 2600)
    return uri, make_dataset(uri, [rows[:1300], rows[1300:]])


def open_files_bytes(folder: Path) -> int:
    """What this process holds in `folder`, files without a name included."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with suppress(FileNotFoundError):  # other threads open and close theirs
            if os.readlink(f"/proc/self/fd/{fd}").startswith(str(folder)):  # noqa: PTH115
                stat = os.stat(f"/proc/self/fd/{fd}")  # noqa: PTH116
                found[stat.st_ino] = stat.st_blocks * 512
    return sum(found.values())


@pytest.mark.parametrize("window_rows", [512, 1 << 20])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_tenth_of_the_cache_gives_the_same_batches(
    dataset: tuple[str, Manifest], tmp_path: Path, window_rows: int, world_size: int
) -> None:
    uri, manifest = dataset
    whole = load_pixels(uri, "train", (8, 8), cache_dir=str(tmp_path / "whole"))
    train_rows = np.flatnonzero(np.arange(2600) % 20)
    order = Order(len(train_rows), 3, window_rows)
    stream = Stream(uri, manifest, "train", 8, tmp_path / "stream", BUDGET_BYTES)
    assert whole.pixels.nbytes / 5 > BUDGET_BYTES
    cached, streamed = (
        Feed(order, train_rows, pictures, whole.labels, 32, world_size - 1, world_size)
        for pictures in (InMemory(whole.pixels), stream)
    )
    # Two epochs and a bit, from the middle of the first.
    for expected, batch in zip(cached.batches(7, 170), streamed.batches(7, 170), strict=True):
        np.testing.assert_array_equal(batch.rows, expected.rows)
        np.testing.assert_array_equal(batch.keys, expected.keys)
        np.testing.assert_array_equal(batch.images, expected.images)
        assert 0 < open_files_bytes(tmp_path / "stream") <= BUDGET_BYTES + 4096
    stream.close()
    assert open_files_bytes(tmp_path / "stream") == 0
    assert list((tmp_path / "stream").iterdir()) == [], "nothing is left behind"


def test_a_window_that_fits_half_the_budget_reads_a_block_at_most_three_times(
    dataset: tuple[str, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, manifest = dataset
    num_read, decode = [0], pixels.decode_block

    def counting(*arguments: object) -> pixels.Decoded:
        num_read[0] += 1
        return decode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("fruitcnn.stream.decode_block", counting)
    stream = Stream(uri, manifest, "train", 8, tmp_path, 2 * 512 * ROW_BYTES)
    rows = Order(2600, 0, window_rows=512).epoch(0)
    found = list(stream.ahead(rows[start : start + 50] for start in range(0, 2600, 50)))
    assert len(np.concatenate(found)) == 2600
    assert num_read[0] <= 3 * len(stream.blocks)


def test_evaluation_streams_through_memory_and_takes_no_disk(dataset: tuple[str, Manifest], tmp_path: Path) -> None:
    uri, manifest = dataset
    whole = load_pixels(uri, "train", (8, 8), cache_dir=str(tmp_path))
    rows = np.arange(3, 2600, 7)
    found = np.concatenate(list(Stream(uri, manifest, "train", 8).ahead(np.array_split(rows, 5))))
    np.testing.assert_array_equal(found, whole.pixels[rows])


def test_a_budget_too_small_is_refused_with_what_it_takes(dataset: tuple[str, Manifest], tmp_path: Path) -> None:
    uri, manifest = dataset
    with pytest.raises(UsageError, match=r"--cache-bytes: got 1,000 .*wanted at least 98,304"):
        Stream(uri, manifest, "train", 8, tmp_path, 1000)
    stream = Stream(uri, manifest, "train", 8, tmp_path, BUDGET_BYTES)
    with pytest.raises(UsageError, match="half of it holds 258 pictures, wanted the 300 of a step"):
        list(stream.ahead([np.arange(300)]))


@pytest.mark.fault
def test_a_bad_picture_reaches_whoever_asked(tmp_path: Path, jpeg_bytes: Jpeg) -> None:
    rows = make_rows(jpeg_bytes, 300)
    rows[7] = rows[7]._replace(data=rows[7].data[:-1] + b"0")
    manifest = make_dataset(str(tmp_path / "d"), [rows])
    stream = Stream(str(tmp_path / "d"), manifest, "train", 8, tmp_path, BUDGET_BYTES)
    with pytest.raises(pixels.DatasetError, match="are not what its id says"):
        list(stream.ahead([np.arange(20)]))
