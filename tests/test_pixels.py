"""What pixels promise: the one preprocessing bit for bit, decoded once a node, whole or made again."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from fruitcnn import images, pixels, storage
from fruitcnn.errors import UsageError
from fruitcnn.manifest import DatasetError, Manifest, Split, StoredFile, publish
from fruitcnn.parquet import Row, encode
from fruitcnn.pixels import blocks, decode_block, load_pixels

Jpeg = Callable[..., bytes]
INPUT_PX = (24, 32)  # height is not width, so that a mix-up shows


def make_rows(jpeg: Jpeg, num_rows: int) -> list[Row]:
    """Pictures smaller, equal and larger than INPUT_PX."""
    data = [jpeg(n, 16 + 7 * (n % 5), 12 + 9 * (n % 4)) for n in range(num_rows)]
    return [
        Row(d, f"Training/Pear/r_{n}.jpg", n % 2, hashlib.sha256(d).hexdigest(), f"Pear/{n // 9}")
        for n, d in enumerate(data)
    ]


def make_dataset(dataset: str, shards: list[list[Row]], max_pixels: int = images.DEFAULT_MAX_PIXELS) -> Manifest:
    """A data set with one train split, written without shards.py."""
    files = []
    for number, rows in enumerate(shards):
        data, path = encode(rows, ["Apple", "Pear"]), f"shards/train-{number:05d}.parquet"
        storage.write(storage.join(dataset, path), data)
        digest = hashlib.sha256(data).hexdigest()
        files.append(StoredFile(path=path, num_rows=len(rows), num_bytes=len(data), sha256=digest))
    manifest = Manifest(
        version=1, classes=("Apple", "Pear"), splits={"train": Split(shards=tuple(files))}, num_rejected_by_cause={},
        source="memory", source_fingerprint="", listings=(), config={"max_pixels": max_pixels}, library_version="0",
        created_at=datetime.now(UTC),
    )  # fmt: skip
    return publish(dataset, manifest)


@pytest.fixture
def cache_dir(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def test_pixels_are_what_images_decode_gives_in_the_order_of_the_data_set(
    any_prefix: str, cache_dir: str, jpeg_bytes: Jpeg
) -> None:
    rows = make_rows(jpeg_bytes, 600)
    make_dataset(any_prefix, [rows[:300], rows[300:301], rows[301:]])
    found = load_pixels(any_prefix, "train", INPUT_PX, cache_dir=cache_dir)
    assert found.pixels.shape == (600, 24, 32, 3)
    assert found.pixels.dtype == np.uint8
    for row, pixels_of_row in zip(rows, found.pixels, strict=True):
        assert np.array_equal(pixels_of_row, images.decode(row.data, INPUT_PX).pixels)
    assert found.labels.tolist() == [row.label for row in rows]
    assert found.labels.dtype == np.int64
    assert found.ids.tolist() == [row.id for row in rows]
    assert found.groups.tolist() == [row.group for row in rows]
    assert found.paths.tolist() == [row.path for row in rows]


def test_a_block_is_a_row_group_and_decodes_alone(tmp_path: Path, jpeg_bytes: Jpeg) -> None:
    rows = make_rows(jpeg_bytes, 600)
    manifest = make_dataset(str(tmp_path), [rows[:300], rows[300:]])
    found = blocks(manifest.split("train"))
    assert [(block.start, block.num_rows, block.row_group) for block in found] == [
        (0, 256, 0), (256, 44, 1), (300, 256, 0), (556, 44, 1)
    ]  # fmt: skip
    decoded = decode_block(str(tmp_path), found[3], INPUT_PX, manifest.max_pixels)
    assert decoded.rows["id"].to_pylist() == [row.id for row in rows[556:]]
    assert np.array_equal(decoded.pixels[-1], images.decode(rows[-1].data, INPUT_PX).pixels)


def test_any_number_of_threads_gives_the_same(tmp_path: Path, jpeg_bytes: Jpeg) -> None:
    make_dataset(str(tmp_path / "d"), [make_rows(jpeg_bytes, 520)])
    one, seven = (
        load_pixels(str(tmp_path / "d"), "train", INPUT_PX, cache_dir=str(tmp_path / str(n)), num_threads=n)
        for n in (1, 7)
    )
    assert np.array_equal(one.pixels, seven.pixels)
    assert np.array_equal(one.labels, seven.labels)


def test_pixels_are_read_only(tmp_path: Path, cache_dir: str, jpeg_bytes: Jpeg) -> None:
    make_dataset(str(tmp_path / "d"), [make_rows(jpeg_bytes, 3)])
    found = load_pixels(str(tmp_path / "d"), "train", INPUT_PX, cache_dir=cache_dir)
    with pytest.raises(ValueError, match="read-only"):
        found.pixels[0] = 0


def test_the_second_time_nothing_is_decoded(
    tmp_path: Path, cache_dir: str, jpeg_bytes: Jpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_dataset(str(tmp_path / "d"), [make_rows(jpeg_bytes, 5)])
    first = load_pixels(str(tmp_path / "d"), "train", INPUT_PX, cache_dir=cache_dir)
    monkeypatch.setattr(pixels, "decode_block", lambda *_: pytest.fail("decoded again"))
    (tmp_path / "d").rename(tmp_path / "moved")
    again = load_pixels(str(tmp_path / "moved"), "train", INPUT_PX, cache_dir=cache_dir, manifest=manifest)
    assert np.array_equal(first.pixels, again.pixels)


def test_another_size_or_other_shards_have_another_cache(tmp_path: Path, cache_dir: str, jpeg_bytes: Jpeg) -> None:
    rows = make_rows(jpeg_bytes, 4)
    make_dataset(str(tmp_path / "a"), [rows])
    make_dataset(str(tmp_path / "b"), [rows[::-1]])
    folders = {
        load_pixels(str(tmp_path / name), "train", size, cache_dir=cache_dir).folder
        for name in "ab"
        for size in ((8, 8), (8, 9))
    }
    assert len(folders) == 4


@pytest.mark.parametrize("damage", ["no marker", "torn marker", "short pixels", "no labels"])
def test_a_torn_cache_is_made_again(damage: str, tmp_path: Path, cache_dir: str, jpeg_bytes: Jpeg) -> None:
    make_dataset(str(tmp_path / "d"), [make_rows(jpeg_bytes, 5)])
    first = load_pixels(str(tmp_path / "d"), "train", INPUT_PX, cache_dir=cache_dir)
    wanted = np.array(first.pixels)
    {
        "no marker": lambda: (first.folder / "done.json").unlink(),
        "torn marker": lambda: (first.folder / "done.json").write_text('{"pixels.u8": 1'),
        "short pixels": lambda: os.truncate(first.folder / "pixels.u8", 100),
        "no labels": lambda: (first.folder / "labels.npy").unlink(),
    }[damage]()
    again = load_pixels(str(tmp_path / "d"), "train", INPUT_PX, cache_dir=cache_dir)
    assert np.array_equal(again.pixels, wanted)


@pytest.mark.fault
def test_two_workers_of_a_node_decode_once(tmp_path: Path, jpeg_bytes: Jpeg) -> None:
    make_dataset(str(tmp_path / "d"), [make_rows(jpeg_bytes, 900)])
    script = f"""if True:
        import hashlib, json
        from fruitcnn import pixels
        count, decode = [], pixels.decode_block
        pixels.decode_block = lambda *a: (count.append(1), decode(*a))[1]
        found = pixels.load_pixels({str(tmp_path / "d")!r}, "train", {INPUT_PX}, cache_dir={str(tmp_path / "c")!r})
        print(json.dumps([len(count), hashlib.sha256(found.pixels.tobytes()).hexdigest()]))
    """
    workers = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) for _ in range(2)]
    said = [json.loads(worker.communicate(timeout=120)[0]) for worker in workers]
    assert sorted(num_decoded for num_decoded, _ in said) == [0, 4]
    assert len({digest for _, digest in said}) == 1


def test_a_data_set_of_larger_pictures_than_the_default_decodes(
    tmp_path: Path, cache_dir: str, jpeg_bytes: Jpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = make_rows(jpeg_bytes, 1)[0]
    make_dataset(str(tmp_path / "small"), [[row]], max_pixels=100)
    with pytest.raises(DatasetError, match=r"train-00000.parquet: Training/Pear/r_0.jpg does not decode \(too-large"):
        load_pixels(str(tmp_path / "small"), "train", INPUT_PX, cache_dir=cache_dir)
    make_dataset(str(tmp_path / "large"), [[row]], max_pixels=1_000)
    assert len(load_pixels(str(tmp_path / "large"), "train", INPUT_PX, cache_dir=cache_dir).labels) == 1


def test_a_lost_or_damaged_shard_is_named(tmp_path: Path, cache_dir: str, jpeg_bytes: Jpeg) -> None:
    dataset = str(tmp_path / "d")
    make_dataset(dataset, [make_rows(jpeg_bytes, 5)])
    shard = tmp_path / "d" / "shards" / "train-00000.parquet"
    data = shard.read_bytes()
    shard.write_bytes(data[:-20])
    with pytest.raises(storage.StorageError, match=r"train-00000.parquet.*not readable as Parquet"):
        load_pixels(dataset, "train", INPUT_PX, cache_dir=cache_dir)
    shard.write_bytes(encode(make_rows(jpeg_bytes, 4), ["Apple", "Pear"]))
    with pytest.raises(DatasetError, match="row group 0 has 4 rows, the manifest promises 5"):
        load_pixels(dataset, "train", INPUT_PX, cache_dir=cache_dir)
    shard.unlink()
    with pytest.raises(storage.NotFoundError, match=r"train-00000\.parquet"):
        load_pixels(dataset, "train", INPUT_PX, cache_dir=cache_dir)


def test_a_flipped_bit_in_a_picture_is_noticed(tmp_path: Path, cache_dir: str, jpeg_bytes: Jpeg) -> None:
    row = make_rows(jpeg_bytes, 1)[0]
    make_dataset(str(tmp_path / "d"), [[row._replace(data=row.data[:-1] + b"0")]])
    with pytest.raises(DatasetError, match=r"the bytes of Training/Pear/r_0\.jpg are not what its id says"):
        load_pixels(str(tmp_path / "d"), "train", INPUT_PX, cache_dir=cache_dir)


def test_a_split_that_is_not_there_is_named(tmp_path: Path, cache_dir: str, jpeg_bytes: Jpeg) -> None:
    make_dataset(str(tmp_path / "d"), [make_rows(jpeg_bytes, 2)])
    with pytest.raises(UsageError, match=r"split: got 'test', wanted train"):
        load_pixels(str(tmp_path / "d"), "test", INPUT_PX, cache_dir=cache_dir)


@pytest.mark.fault
def test_a_full_disk_is_an_error_that_says_so(
    tmp_path: Path, cache_dir: str, jpeg_bytes: Jpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(str(tmp_path / "d"), [make_rows(jpeg_bytes, 5)])
    full = os.open("/dev/full", os.O_WRONLY)  # every write to it fails as on a full disk
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: os.write(full, data))
    with pytest.raises(UsageError, match=r"cache folder .*No space left.*wanted 11,520 .*FRUITCNN_CACHE"):
        load_pixels(str(tmp_path / "d"), "train", INPUT_PX, cache_dir=cache_dir)
    os.close(full)
    monkeypatch.setattr(os, "pwrite", pwrite)
    assert len(load_pixels(str(tmp_path / "d"), "train", INPUT_PX, cache_dir=cache_dir).labels) == 5
