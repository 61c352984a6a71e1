"""Pictures of a split that does not fit the disk: fetched and decoded ahead of use, each forgotten after it. For feed.

The order of rows is known in advance, so nothing is guessed: the requests to come are taken in groups, as large as half
the budget; while one group is used, the next is read block by block (pixels.Block), of which only the rows asked for
are decoded. Two halves of one file of fixed size hold them, so the budget cannot be exceeded; the file has no name,
so a killed worker leaves nothing behind. What a small budget costs is reading: a block is read once for every group
that asks for some of its rows (see Order.window_rows).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

from fruitcnn.errors import UsageError
from fruitcnn.manifest import Manifest
from fruitcnn.pixels import Block, blocks, decode_block

_FIRST_ROWS = 512
"""The first group is small, so that the first step need not wait for half the budget."""

_FEWEST_ROWS = 256


class _Group(NamedTuple):
    """Requests that are decoded together: `sizes` rows each, decoded into `pixels` when `decoded` is done."""

    sizes: list[int]
    pixels: npt.NDArray[np.uint8]
    decoded: list[Future[None]]


class Stream:
    """One worker's window on a split; close it when done."""

    def __init__(
        self,
        dataset_uri: str,
        manifest: Manifest,
        split: str,
        input_px: int,
        folder: Path | None = None,
        budget_bytes: int = 0,
    ) -> None:
        """`budget_bytes` of disk in `folder`; without a folder, 1,024 pictures in memory.

        Raises UsageError where the budget holds too little, or the disk has no room.
        """
        self.dataset_uri, self.manifest, self.size = dataset_uri, manifest, (input_px, input_px)
        self.blocks = blocks(manifest.split(split))
        self._starts = np.array([block.start for block in self.blocks])
        row_bytes = input_px * input_px * 3
        self.rows_per_half = budget_bytes // (2 * row_bytes) if folder else _FIRST_ROWS
        if self.rows_per_half < _FEWEST_ROWS:
            raise UsageError(
                f"--cache-bytes: got {budget_bytes:,} for each worker of a node, wanted at least "
                f"{2 * _FEWEST_ROWS * row_bytes:,}, which holds {2 * _FEWEST_ROWS} pictures of {input_px}x{input_px}"
            )
        shape = (2, self.rows_per_half, *self.size, 3)
        self._file = self._allocate(folder, 2 * self.rows_per_half * row_bytes) if folder else None
        self._halves = np.memmap(self._file, np.uint8, "r+", shape=shape) if self._file else np.empty(shape, np.uint8)
        self._pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")

    def ahead(self, wanted: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the pictures, uint8 (n, H, W, 3), of each request in `wanted`, int64 (n,) rows of the split.

        Raises UsageError where one request is larger than half the budget, otherwise as load_pixels does.
        """
        groups = self._decoding(self._grouped(iter(wanted)))
        upcoming = next(groups, None)
        while upcoming:
            current, upcoming = upcoming, None
            for future in current.decoded:
                future.result()
            # Submitted now, so that it is decoded while the current one is used: they lie in different halves.
            upcoming = next(groups, None)
            start = 0
            for size in current.sizes:
                yield current.pixels[start : start + size].copy()
                start += size

    def close(self) -> None:
        """Give the disk space back."""
        self._pool.shutdown(cancel_futures=True)
        # The map holds the file open too.
        del self._halves
        if self._file:
            self._file.close()

    def _grouped(self, wanted: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
        limit, group, num_rows = min(_FIRST_ROWS, self.rows_per_half), list[np.ndarray](), 0
        for rows in wanted:
            if len(rows) > self.rows_per_half:
                raise UsageError(
                    f"--cache-bytes: half of it holds {self.rows_per_half} pictures, wanted the {len(rows)} of a step"
                )
            if group and num_rows + len(rows) > limit:
                yield group
                limit, group, num_rows = min(2 * limit, self.rows_per_half), [], 0
            group.append(rows)
            num_rows += len(rows)
        if group:
            yield group

    def _decoding(self, groups: Iterator[list[np.ndarray]]) -> Iterator[_Group]:
        for number, group in enumerate(groups):
            rows, half = np.concatenate(group), self._halves[number % 2]
            numbers = np.searchsorted(self._starts, rows, side="right") - 1
            places = ((self.blocks[each], np.flatnonzero(numbers == each)) for each in np.unique(numbers))
            decoded = [self._pool.submit(self._fill, block, rows[where], half, where) for block, where in places]
            yield _Group([len(each) for each in group], half, decoded)

    def _fill(self, block: Block, rows: np.ndarray, half: np.ndarray, where: np.ndarray) -> None:
        wanted, back = np.unique(rows - block.start, return_inverse=True)
        found = decode_block(self.dataset_uri, block, self.size, self.manifest.max_pixels, wanted.tolist())
        half[where] = found.pixels[back]

    @staticmethod
    def _allocate(folder: Path, num_bytes: int) -> IO[bytes]:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as the stream
            # Taken now: a full disk must be an error here, not a SIGBUS in the map.
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        except OSError as error:
            raise UsageError(
                f"cache folder {folder}: {error.strerror or error}; wanted {num_bytes:,} bytes; make room, or give "
                "--cache-bytes less"
            ) from error
        return file
