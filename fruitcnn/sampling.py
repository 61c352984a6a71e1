"""Which rows make up which step: pure functions of (rows, seed, step), between pixels and train.

Training reads one endless stream: the order of epoch 0, then that of epoch 1, and so on, cut into global batches. So
the last batch of an epoch is filled up from the head of the next one, and within an epoch no row is dropped and none
comes twice. A rank takes its contiguous piece of every global batch, which makes the rows of a step the same for any
number of workers.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fruitcnn.recipe import TrainConfig

_ORDER_STREAM, _WINDOW_STREAM = 0, 1


@dataclass(frozen=True, slots=True)
class Order:
    """The order of a data set's rows, epoch by epoch.

    Rows are shuffled in two levels: blocks of `block_rows` neighbouring rows are permuted, then rows are permuted
    inside windows of `window_rows` rows. A data set that fits the window is shuffled as a whole; of a larger one only
    the blocks of two neighbouring windows are ever needed at once.
    """

    num_rows: int
    seed: int
    window_rows: int = 1 << 20
    block_rows: int = 256

    def __post_init__(self) -> None:
        if self.num_rows < 1:
            raise ValueError(f"num_rows: got {self.num_rows}, wanted at least 1: the training split is empty")
        if self.block_rows < 1 or self.window_rows < self.block_rows:
            raise ValueError(
                f"window_rows: got {self.window_rows} with block_rows {self.block_rows}, wanted a window of at least "
                "one block"
            )

    def epoch(self, epoch: int) -> np.ndarray:
        """Return the rows of one epoch in order, int64 (num_rows,): each row exactly once."""
        return _epoch_order(self, epoch)

    def batch(self, step: int, global_batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (epochs, rows) of the global batch of `step`, both int64 (global_batch_size,)."""
        position = step * global_batch_size + np.arange(global_batch_size, dtype=np.int64)
        epochs, offsets = np.divmod(position, self.num_rows)
        rows = np.empty(global_batch_size, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self.epoch(int(epoch))[offsets[here]]
        return epochs, rows


@lru_cache(maxsize=3)
def _epoch_order(order: Order, epoch: int) -> np.ndarray:
    if order.num_rows <= order.window_rows:
        rows = _generator(order.seed, epoch, _ORDER_STREAM).permutation(order.num_rows)
    else:
        rows = np.concatenate(list(_windows(order, epoch)))
    rows.flags.writeable = False
    return rows


def _windows(order: Order, epoch: int) -> Iterator[np.ndarray]:
    num_blocks = math.ceil(order.num_rows / order.block_rows)
    blocks = _generator(order.seed, epoch, _ORDER_STREAM).permutation(num_blocks)
    blocks_per_window = order.window_rows // order.block_rows
    for start in range(0, num_blocks, blocks_per_window):
        chosen = blocks[start : start + blocks_per_window]
        rows = (chosen[:, None] * order.block_rows + np.arange(order.block_rows)).reshape(-1)
        rows = rows[rows < order.num_rows]
        yield _generator(order.seed, epoch, _WINDOW_STREAM + start).permutation(rows)


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """Philox is counter-based: its stream for a key is the same on every platform and in every NumPy since 1.17."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, stream])))


def total_steps(num_rows: int, epochs: float, global_batch_size: int) -> int:
    """Return the number of steps after which every row was seen `epochs` times (the last step rounds up)."""
    return max(1, math.ceil(num_rows * epochs / global_batch_size))


def rank_slice(global_batch_size: int, rank: int, world_size: int) -> slice:
    """Return the piece of each global batch that `rank` of `world_size` takes.

    Raises ValueError where the batch cannot be divided evenly.
    """
    if global_batch_size % world_size:
        below = global_batch_size - global_batch_size % world_size
        raise ValueError(
            f"global_batch_size: got {global_batch_size} with {world_size} workers, wanted a multiple of the number of "
            f"workers: try --global-batch-size {max(below, world_size)} or {below + world_size}"
        )
    per_rank = global_batch_size // world_size
    return slice(rank * per_rank, (rank + 1) * per_rank)


def evaluation_slice(num_rows: int, rank: int, world_size: int) -> slice:
    """Return the rows of an evaluation split that `rank` scores: contiguous, sizes differ by one at most."""
    return slice(num_rows * rank // world_size, num_rows * (rank + 1) // world_size)


def evaluation_batches(num_rows: int, rank: int, world_size: int, batch_rows: int) -> Iterator[np.ndarray]:
    """Yield the rows of evaluation_slice in batches of `batch_rows`, int64; the last one may be smaller."""
    rows = np.arange(num_rows)[evaluation_slice(num_rows, rank, world_size)]
    yield from (rows[start : start + batch_rows] for start in range(0, len(rows), batch_rows))


def validation_mask(groups: Sequence[str], paths: Sequence[str], fraction: float, seed: int) -> np.ndarray:
    """Choose validation rows of a training split, bool (num_rows,): one run of neighbouring frames per group.

    Frames of one group show the same object a few degrees apart, so rows picked singly would only test memory. Out of
    every group one run of consecutive frames is taken (frames of a turning object close a circle), about `fraction` of
    it; of groups too small for that, single pictures among them, some give one row. Of two rows or more at least one is
    taken. The choice depends on (groups, paths, seed) alone, never on the order of rows.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"validation_fraction: got {fraction}, wanted at least 0 and less than 1")
    mask = np.zeros(len(groups), bool)
    if fraction == 0:
        return mask
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    for group, rows in members.items():
        rows.sort(key=lambda row: _natural_key(paths[row]))
        length = min(round(len(rows) * fraction), len(rows) - 1)
        draw = _generator(seed, 0, _hash(group))
        start = int(draw.integers(len(rows)))
        length = length or int(draw.random() < len(rows) * fraction)
        mask[[rows[(start + offset) % len(rows)] for offset in range(length)]] = True
    if not mask.any() and len(paths) > 1:
        mask[min(range(len(paths)), key=lambda row: _hash(paths[row]))] = True
    return mask


def held_out_groups(groups: Sequence[str], labels: Sequence[int] | np.ndarray) -> frozenset[str]:
    """Return the last group, by name, of every class that has two or more: what a leak-aware score holds from training.

    groups, labels: of all training rows, in any order.
    """
    by_class: dict[int, set[str]] = {}
    for group, label in zip(groups, labels, strict=True):
        by_class.setdefault(int(label), set()).add(group)
    return frozenset(max(names, key=_natural_key) for names in by_class.values() if len(names) > 1)


def held_and_validation(
    groups: Sequence[str], paths: Sequence[str], labels: Sequence[int] | np.ndarray, config: TrainConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Return (held out, validation) rows of the training split, both bool (num_rows,), none in both; the others train.

    The same for every job that knows the run's config: what freezing calibrates on is what training did not see.
    """
    held_groups = held_out_groups(groups, labels) if config.hold_out_groups else frozenset()
    held = np.array([group in held_groups for group in groups], bool)
    return held, validation_mask(groups, paths, config.validation_fraction, config.seed) & ~held


def _natural_key(path: str) -> list[tuple[int, int | str]]:
    """Sort key under which frame 9 comes before frame 10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", path)]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def row_keys(seed: int, epochs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return one random key per row, int32 (n,), a pure function of (seed, epoch, row).

    Everything drawn for a row in training (augmentation, dropout) comes from its key, never from the worker. The mixer
    is splitmix64 (https://prng.di.unimi.it/splitmix64.c).
    """
    with np.errstate(over="ignore"):
        key = _splitmix(np.asarray(epochs, np.uint64) + _splitmix(np.full(1, seed % (1 << 64), np.uint64)))
        key = _splitmix(key + np.asarray(rows, np.uint64))
    return (key >> np.uint64(32)).astype(np.uint32).view(np.int32)


def _splitmix(state: np.ndarray) -> np.ndarray:
    mixed = state + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
