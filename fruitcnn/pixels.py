"""Shards -> memory-mapped uint8 pixels, decoded once per node: after it an epoch is random access. Before train.

The unit of work is a block: one row group (up to 256 rows) of one shard, read and decoded alone. Rows come in the order
of the manifest's shards, and within a shard in the order of its file.

    <cache>/pixels/<key>/pixels.u8      (N, H, W, 3) uint8
    <cache>/pixels/<key>/labels.npy     (N,) int64
    <cache>/pixels/<key>/rows.parquet   id, group, path of each row
    <cache>/pixels/<key>/done.json      written last: without it the folder is made again
The key is a hash over the shards' contents, the size in pixels and the decoder, so a cache is never out of date.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from fruitcnn import cache, images, storage
from fruitcnn.errors import UsageError
from fruitcnn.manifest import DatasetError, Manifest, Split, load_manifest
from fruitcnn.parquet import ROW_GROUP_ROWS, read_rows

_DECODERS = ("simplejpeg", "pillow", "opencv-python-headless", "numpy")


class Block(NamedTuple):
    """One row group of a split: `num_rows` rows from row `start` of the split."""

    shard: str
    row_group: int
    start: int
    num_rows: int


class Decoded(NamedTuple):
    """A block's rows: pixels (n, H, W, 3) uint8, labels (n,) int64; id, group and path in the columns of `rows`."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    rows: pa.Table


@dataclasses.dataclass(frozen=True)
class Pixels:
    """All rows of one split, N of them, in the order of the data set."""

    pixels: npt.NDArray[np.uint8]
    """(N, H, W, 3) uint8 RGB, memory-mapped, read-only."""
    labels: npt.NDArray[np.int64]
    """(N,) indices into the manifest's classes."""
    folder: Path
    """Where the cache of these rows lies on this node."""

    @cached_property
    def ids(self) -> npt.NDArray[np.object_]:
        """(N,) str: sha256 of the pictures' bytes."""
        return self._column("id")

    @cached_property
    def groups(self) -> npt.NDArray[np.object_]:
        """(N,) str: frame sequences; rows of one group are near-duplicates."""
        return self._column("group")

    @cached_property
    def paths(self) -> npt.NDArray[np.object_]:
        """(N,) str: paths in the source."""
        return self._column("path")

    def _column(self, name: str) -> npt.NDArray[Any]:
        column = pq.read_table(self.folder / "rows.parquet", columns=[name])[name]
        return np.array(column.to_pylist(), dtype=object)


def load_pixels(
    dataset_uri: str,
    split: str,
    input_px: tuple[int, int],
    *,
    cache_dir: str | None = None,
    num_threads: int | None = None,
    manifest: Manifest | None = None,
) -> Pixels:
    """Decode a split to input_px = (height, width), or take it from this node's cache; workers of a node wait for one.

    cache_dir: default FRUITCNN_CACHE or ~/.cache/fruitcnn. num_threads: default one a core. manifest: the version to
    read, default the newest. UsageError without such a split or without room on the disk; DatasetError for a picture
    that does not decode; StorageError for a shard that cannot be read.
    """
    dataset_uri = storage.normalise(dataset_uri)
    manifest = manifest or load_manifest(dataset_uri)
    shards = manifest.split(split)
    folder = cache.folder(cache_dir) / "pixels" / _key(shards, input_px)
    shape = (shards.num_rows, *input_px, 3)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _is_whole(folder):
                _fill(folder, dataset_uri, shards, input_px, manifest.max_pixels, num_threads)
    except OSError as error:
        if isinstance(error, storage.StorageError):
            raise
        raise _unusable(folder, error, int(np.prod(shape))) from error
    pixels = np.memmap(folder / "pixels.u8", np.uint8, "r", shape=shape)
    return Pixels(pixels, np.load(folder / "labels.npy"), folder)


def blocks(split: Split) -> list[Block]:
    """The blocks of a split in the order of its rows."""
    found = []
    start = 0
    for shard in split.shards:
        for row_group, first in enumerate(range(0, shard.num_rows, ROW_GROUP_ROWS)):
            num_rows = min(ROW_GROUP_ROWS, shard.num_rows - first)
            found.append(Block(shard.path, row_group, start, num_rows))
            start += num_rows
    return found


def decode_block(
    dataset_uri: str,
    block: Block,
    input_px: tuple[int, int],
    max_pixels: int,
    wanted: Sequence[int] | None = None,
) -> Decoded:
    """Read one block from its shard, check and decode its pictures; raises as load_pixels does.

    wanted: positions in the block to decode, in this order; None for all.
    """
    batches = list(read_rows(dataset_uri, block.shard, row_groups=[block.row_group]))
    table = pa.Table.from_batches(batches)
    shard_uri = storage.join(dataset_uri, block.shard)
    if len(table) != block.num_rows:
        raise DatasetError(
            f"{shard_uri}: row group {block.row_group} has {len(table)} rows, the manifest promises {block.num_rows}; "
            "restore the shard"
        )
    if wanted is not None:
        table = table.take(list(wanted))
    image, ids = table["image"].combine_chunks(), table["id"].to_pylist()
    paths = image.field("path")
    pixels = np.empty((len(table), *input_px, 3), np.uint8)
    for index, data in enumerate(image.field("bytes").to_pylist()):
        if hashlib.sha256(data).hexdigest() != ids[index]:
            raise DatasetError(f"{shard_uri}: the bytes of {paths[index]} are not what its id says; restore the shard")
        try:
            pixels[index] = images.decode(data, input_px, max_pixels).pixels
        except images.ImageError as error:
            raise DatasetError(f"{shard_uri}: {paths[index]} does not decode ({error}); restore the shard") from error
    rows = pa.Table.from_arrays([table["id"], table["group"], paths], ["id", "group", "path"])
    return Decoded(pixels, np.array(table["label"].to_pylist(), np.int64), rows)


def _key(split: Split, input_px: tuple[int, int]) -> str:
    decoder = [hashlib.sha256(Path(images.__file__).read_bytes()).hexdigest()]
    decoder += [importlib.metadata.version(name) for name in _DECODERS]
    said = [[shard.sha256 for shard in split.shards], input_px, decoder]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:24]


def _is_whole(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / "done.json").read_text())
        return all((folder / name).stat().st_size == num_bytes for name, num_bytes in sizes.items())
    except (OSError, ValueError):
        return False


def _fill(
    folder: Path,
    dataset_uri: str,
    split: Split,
    input_px: tuple[int, int],
    max_pixels: int,
    num_threads: int | None,
) -> None:
    """Make the cache folder anew; with pwrite, not through a map: a full disk must be an error, not a SIGBUS."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    row_bytes = int(np.prod(input_px)) * 3
    with (folder / "pixels.u8").open("wb") as file, ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:

        def work(block: Block) -> tuple[npt.NDArray[np.int64], pa.Table]:
            pixels, labels, rows = decode_block(dataset_uri, block, input_px, max_pixels)
            _write_at(file.fileno(), pixels, block.start * row_bytes)
            return labels, rows

        futures = [pool.submit(work, block) for block in blocks(split)]
        try:
            labels, tables = zip(*(future.result() for future in futures), strict=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        os.fsync(file.fileno())
    np.save(folder / "labels.npy", np.concatenate(labels))
    pq.write_table(pa.concat_tables(tables), folder / "rows.parquet")
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    (folder / "done.json").write_text(json.dumps(sizes))


def _write_at(file: int, pixels: npt.NDArray[np.uint8], offset: int) -> None:
    rest = pixels.data.cast("B")
    while rest:
        written = os.pwrite(file, rest, offset)
        rest, offset = rest[written:], offset + written


def _unusable(folder: Path, error: OSError, wanted_bytes: int) -> UsageError:
    shutil.rmtree(folder, ignore_errors=True)
    there = next(parent for parent in folder.parents if parent.exists())
    return UsageError(
        f"cache folder {folder.parent}: {error.strerror or error}; got {shutil.disk_usage(there).free:,} free bytes, "
        f"wanted {wanted_bytes:,} for the decoded pixels; make room, or name another folder in FRUITCNN_CACHE"
    )
