"""A split as training sees it: labels and names of all rows in memory, pictures cached or streamed. Before feed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from fruitcnn import cache
from fruitcnn.feed import InMemory, Pictures
from fruitcnn.manifest import Manifest
from fruitcnn.parquet import read_rows
from fruitcnn.pixels import load_pixels
from fruitcnn.recipe import TrainConfig
from fruitcnn.sampling import held_and_validation
from fruitcnn.stream import Stream


@dataclass(frozen=True)
class SplitRows:
    """The rows of a split: `pictures` for training, `scored` for being evaluated in order; labels int64 (N,)."""

    labels: np.ndarray
    groups: list[str]
    paths: list[str]
    pictures: Pictures
    scored: Pictures

    @cached_property
    def all_rows(self) -> np.ndarray:
        """Return the numbers of all rows, int64 (N,)."""
        return np.arange(len(self.labels))

    def held_and_validation(self, config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
        """Return which rows of the training split are held out, and which validate, both bool (N,)."""
        return held_and_validation(self.groups, self.paths, self.labels, config)


def is_streamed(config: TrainConfig, manifest: Manifest) -> bool:
    """Whether the decoded pictures of all splits need more than --cache-bytes."""
    num_bytes = sum(split.num_rows for split in manifest.splits.values()) * config.input_px**2 * 3
    return bool(config.cache_bytes) and num_bytes > config.cache_bytes


def open_split(config: TrainConfig, manifest: Manifest, name: str, num_workers_here: int) -> SplitRows:
    """Decode the split into this node's cache, or make ready to stream it within this worker's share of the budget.

    Raises UsageError without room on the disk or with too small a budget, DatasetError or StorageError for bad shards.
    """
    if not is_streamed(config, manifest):
        size = (config.input_px, config.input_px)
        pixels = load_pixels(config.dataset, name, size, cache_dir=config.cache_dir or None, manifest=manifest)
        whole = InMemory(pixels.pixels)
        return SplitRows(pixels.labels, list(pixels.groups), list(pixels.paths), whole, whole)
    columns = ["label", "group", "image.path"]
    found = pa.Table.from_batches(
        batch for shard in manifest.split(name).shards for batch in read_rows(config.dataset, shard.path, columns)
    )
    paths = found["image"].combine_chunks().field("path").to_pylist()
    labels = np.array(found["label"].to_pylist(), np.int64)
    scored = Stream(config.dataset, manifest, name, config.input_px)
    pictures = scored
    if name == "train":
        folder = cache.folder(config.cache_dir or None) / "stream"
        budget = config.cache_bytes // num_workers_here
        pictures = Stream(config.dataset, manifest, name, config.input_px, Path(folder), budget)
    return SplitRows(labels, found["group"].to_pylist(), paths, pictures, scored)
