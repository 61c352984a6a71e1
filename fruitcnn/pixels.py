"""Shards -> memory-mapped uint8 pixels, decoded once per node: after it an epoch is random access. Before train.

The unit of work is a block: one row group (up to 256 rows) of one shard, read and decoded alone. Rows come in the order
of the manifest's shards, and within a shard in the order of its file.

    <cache>/pixels/<key>/pixels.u8      (N, H, W, 3) uint8
    <cache>/pixels/<key>/rows.parquet   label, id, group, path of each row
    <cache>/pixels/<key>/done.json      written last: without it the folder is made again
The key is a hash over the shards' contents, the size in pixels and the decoder, so a cache is never out of date.
"""

import dataclasses
import errno
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
    """A block's rows: pixels (n, H, W, 3) uint8, and label, id, group, path in the columns of `rows`."""

    pixels: npt.NDArray[np.uint8]
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
        return pq.read_table(self.folder / "rows.parquet", columns=[name])[name].to_numpy()


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
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not _is_whole(folder, shape):
            try:
                _fill(folder, dataset_uri, manifest, shards, input_px, num_threads)
            except OSError as error:
                if isinstance(error, storage.StorageError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                shutil.rmtree(folder, ignore_errors=True)
                raise _no_room(folder, shape) from error
    pixels = np.memmap(folder / "pixels.u8", np.uint8, "r", shape=shape)
    labels = pq.read_table(folder / "rows.parquet", columns=["label"])["label"].to_numpy()
    return Pixels(pixels, labels, folder)


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


def decode_block(dataset_uri: str, block: Block, input_px: tuple[int, int], max_pixels: int) -> Decoded:
    """Read one block from its shard and decode its pictures; raises as load_pixels does."""
    batches = list(read_rows(dataset_uri, block.shard, row_groups=[block.row_group]))
    table = pa.Table.from_batches(batches)
    shard_uri = storage.join(dataset_uri, block.shard)
    if len(table) != block.num_rows:
        raise DatasetError(
            f"{shard_uri}: row group {block.row_group} has {len(table)} rows, the manifest promises {block.num_rows}; "
            "restore the shard"
        )
    image = table["image"].combine_chunks()
    paths = image.field("path")
    pixels = np.empty((len(table), *input_px, 3), np.uint8)
    for index, data in enumerate(image.field("bytes").to_pylist()):
        try:
            pixels[index] = images.decode(data, input_px, max_pixels).pixels
        except images.ImageError as error:
            raise DatasetError(f"{shard_uri}: {paths[index]} does not decode ({error}); restore the shard") from error
    rows = pa.table({"label": table["label"], "id": table["id"], "group": table["group"], "path": paths})
    return Decoded(pixels, rows)


def _key(split: Split, input_px: tuple[int, int]) -> str:
    decoder = [hashlib.sha256(Path(images.__file__).read_bytes()).hexdigest()]
    decoder += [importlib.metadata.version(name) for name in _DECODERS]
    said = [[shard.sha256 for shard in split.shards], input_px, decoder]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:24]


def _is_whole(folder: Path, shape: tuple[int, ...]) -> bool:
    try:
        done = json.loads((folder / "done.json").read_text())
        return bool(done["shape"] == list(shape)) and (folder / "pixels.u8").stat().st_size == int(np.prod(shape))
    except (OSError, ValueError, KeyError):
        return False


def _fill(
    folder: Path,
    dataset_uri: str,
    manifest: Manifest,
    split: Split,
    input_px: tuple[int, int],
    num_threads: int | None,
) -> None:
    """Make the cache folder anew; with pwrite, not through a map: a full disk must be an error, not a SIGBUS."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    row_bytes = int(np.prod(input_px)) * 3
    todo = blocks(split)
    with (folder / "pixels.u8").open("wb") as file, ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        file.truncate(split.num_rows * row_bytes)

        def work(block: Block) -> pa.Table:
            decoded = decode_block(dataset_uri, block, input_px, manifest.max_pixels)
            _write_at(file.fileno(), decoded.pixels, block.start * row_bytes)
            return decoded.rows

        futures = [pool.submit(work, block) for block in todo]
        try:
            tables = [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        os.fsync(file.fileno())
    pq.write_table(pa.concat_tables(tables), folder / "rows.parquet")
    (folder / "done.json").write_text(json.dumps({"shape": [split.num_rows, *input_px, 3], "source": manifest.source}))


def _write_at(file: int, pixels: npt.NDArray[np.uint8], offset: int) -> None:
    rest = pixels.data.cast("B")
    while rest:
        written = os.pwrite(file, rest, offset)
        rest, offset = rest[written:], offset + written


def _no_room(folder: Path, shape: Sequence[int]) -> UsageError:
    free_bytes = shutil.disk_usage(folder.parent).free
    return UsageError(
        f"cache folder {folder.parent}: got {free_bytes:,} free bytes, wanted {int(np.prod(shape)):,} for the decoded "
        "pixels; make room, or name a roomier folder in FRUITCNN_CACHE"
    )
