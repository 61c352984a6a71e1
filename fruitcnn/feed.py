"""Order + pixels -> one worker's batches, gathered in a thread ahead of use; between pixels and replica. Pure."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from fruitcnn.sampling import Order, rank_slice, row_keys

_BATCHES_AHEAD = 8


class Pictures(Protocol):
    """Where the pixels of a split come from: InMemory here, or stream.Stream."""

    def ahead(self, wanted: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the pictures of each request, uint8 (n, H, W, 3), of int64 (n,) rows; requests are taken ahead."""


class InMemory(NamedTuple):
    """All pictures of a split, uint8 (N, H, W, 3), mapped or in memory."""

    pixels: np.ndarray

    def ahead(self, wanted: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the pictures of each request, uint8 (n, H, W, 3), of int64 (n,) rows."""
        return (self.pixels[rows] for rows in wanted)


class Batch(NamedTuple):
    """One worker's rows of one step: images uint8 (n, H, W, 3), labels int64 (n,), keys int32 (n,), rows int64 (n,)."""

    step: int
    images: np.ndarray
    labels: np.ndarray
    keys: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class Feed:
    """The batches of one worker; `train_rows` maps positions of `order` to rows of the split, validation left out."""

    order: Order
    train_rows: np.ndarray
    pictures: Pictures
    labels: np.ndarray
    global_batch_size: int
    rank: int
    world_size: int

    def rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (epochs, rows of the split) of this worker's piece of the global batch of `step`, int64 (n,)."""
        piece = rank_slice(self.global_batch_size, self.rank, self.world_size)
        epochs, positions = self.order.batch(step, self.global_batch_size)
        return epochs[piece], self.train_rows[positions[piece]]

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the batches of steps start..stop-1; up to eight are ready ahead of use."""
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(_BATCHES_AHEAD)
        abandoned = threading.Event()
        thread = threading.Thread(target=self._fill, args=(ready, start, stop, abandoned), daemon=True, name="feed")
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            abandoned.set()

    def _fill(self, ready: queue.Queue, start: int, stop: int, abandoned: threading.Event) -> None:
        try:
            plans, again = itertools.tee((step, *self.rows(step)) for step in range(start, stop))
            pictures = self.pictures.ahead(rows for _, _, rows in again)
            for (step, epochs, rows), images in zip(plans, pictures, strict=True):
                keys = row_keys(self.order.seed, epochs, rows)
                _offer(ready, Batch(step, images, self.labels[rows], keys, rows), abandoned)
                if abandoned.is_set():
                    return
            _offer(ready, None, abandoned)
        except Exception as error:  # noqa: BLE001 - handed to the step loop, which raises it
            _offer(ready, error, abandoned)


def _offer(ready: queue.Queue, item: Batch | BaseException | None, abandoned: threading.Event) -> None:
    while not abandoned.is_set():
        try:
            ready.put(item, timeout=1)
            return
        except queue.Full:
            continue
