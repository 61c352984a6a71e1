"""Order + pixels -> one worker's batches, gathered in a thread ahead of use; between pixels and replica. Pure."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fruitcnn.sampling import Order, rank_slice, row_keys

_BATCHES_AHEAD = 8


class Batch(NamedTuple):
    """One worker's rows of one step: images uint8 (n, H, W, 3), labels int64 (n,), keys int32 (n,), rows int64 (n,)."""

    step: int
    images: np.ndarray
    labels: np.ndarray
    keys: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class Feed:
    """The batches of one worker; `train_rows` maps positions of `order` to rows of `pixels`, validation left out."""

    order: Order
    train_rows: np.ndarray
    pixels: np.ndarray
    labels: np.ndarray
    global_batch_size: int
    rank: int
    world_size: int

    def batch(self, step: int) -> Batch:
        """Return this worker's piece of the global batch of `step`."""
        piece = rank_slice(self.global_batch_size, self.rank, self.world_size)
        epochs, positions = self.order.batch(step, self.global_batch_size)
        rows = self.train_rows[positions[piece]]
        keys = row_keys(self.order.seed, epochs[piece], rows)
        return Batch(step, self.pixels[rows], self.labels[rows], keys, rows)

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
            for step in range(start, stop):
                _offer(ready, self.batch(step), abandoned)
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
