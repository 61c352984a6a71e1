"""A few steps, tried in this process -> what a training run would take on N nodes. For `jobs.train --dry-run`.

Measured here: a step at two sizes (what a row costs, and what a step costs beside its rows), scoring, and decoding.
Taken from elsewhere: the start (START_SECONDS), and the network (scaling.Link). A node is a machine like this one.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fruitcnn import images, scaling
from fruitcnn.manifest import Manifest, load_manifest
from fruitcnn.parquet import read_rows
from fruitcnn.recipe import TrainConfig
from fruitcnn.runs import Facts

if TYPE_CHECKING:
    from fruitcnn.replica import Replica

SECONDS = 15.0
START_SECONDS = 12.0
"""From the command to the first step, without decoding: Ray, TensorFlow, the network. bench/scaling.py prints it."""

NODES = (1, 2, 4, 8, 16, 32, 64, 100)
_DECODED_ROWS = 512


class Tried(NamedTuple):
    """Seconds on this machine, all cores: a step by its rows, scoring a row, decoding a row."""

    step_seconds: dict[int, float]
    scoring_seconds: float
    decoding_seconds: float
    gradient_bytes: int
    memory_bytes: int

    def costs(self, facts: Facts, config: TrainConfig, num_rows: int, cores: int) -> scaling.TrainCosts:
        """What the arithmetic of N nodes is fed with; each node decodes all `num_rows` of the data set."""
        per_row, step_seconds = scaling.row_and_step(self.step_seconds)
        scored = config.num_evaluations * facts.num_validation_rows
        return scaling.TrainCosts(
            start_seconds=START_SECONDS + num_rows * self.decoding_seconds,
            core_seconds_per_image=per_row * cores,
            step_seconds=step_seconds,
            scoring_core_seconds=scored * self.scoring_seconds * cores,
            gradient_bytes=self.gradient_bytes,
        )


def dry_run(config: TrainConfig) -> dict[str, Any]:
    """What the run would be and take, name -> value; nothing is written. UsageError as training would raise it."""
    from fruitcnn.train import describe

    manifest = load_manifest(config.dataset)
    facts = describe(config, manifest)
    tried, cores = _try(config, facts, manifest), len(os.sched_getaffinity(0))
    num_rows = sum(split.num_rows for split in manifest.splits.values())
    costs = tried.costs(facts, config, num_rows, cores)
    steps = ", ".join(f"{rows} rows {seconds * 1e3:.1f} ms" for rows, seconds in sorted(tried.step_seconds.items()))
    return {
        "pictures": f"{facts.num_train_rows:,} to train on, {facts.num_validation_rows:,} to validate",
        "steps": f"{facts.num_steps:,} of {config.global_batch_size} pictures",
        "tried": f"a step of {steps}, with {cores} cores",
        "decoding": f"{num_rows:,} pictures on every node, {num_rows * tried.decoding_seconds:.1f} s the first time",
        "predicted memory": f"{tried.memory_bytes / 2**20:,.0f} MiB a worker",
        **by_nodes(config, facts, costs, cores),
    }


def by_nodes(config: TrainConfig, facts: Facts, costs: scaling.TrainCosts, cores: int) -> dict[str, str]:
    """ "2 nodes" -> what they would take: a worker on each, all its cores; only numbers that divide the batch."""
    sizes = config.model_copy(update={"min_workers": 1, "num_workers": max(NODES)}).group_sizes()
    seen = facts.num_steps * config.global_batch_size
    rows = {}
    for nodes in sorted({*NODES, sizes[-1]}.intersection(sizes)):
        found = scaling.forecast_train(costs, scaling.Cluster(nodes, cores), seen, config.global_batch_size)
        rows[f"{nodes} nodes" if nodes > 1 else "1 node"] = found.words
    return rows | {"at most": f"{sizes[-1]} nodes: the batch of {config.global_batch_size} divides into no more"}


def _try(config: TrainConfig, facts: Facts, manifest: Manifest) -> Tried:
    from fruitcnn.runtimes import import_tensorflow

    import_tensorflow()
    from fruitcnn.group import open_group
    from fruitcnn.replica import Replica, evaluation_rows

    pixels, decoding_seconds = _decode(config, manifest)
    group = open_group(config, 1, len(os.sched_getaffinity(0)))
    piece, batch = config.rows_of_a_piece, config.global_batch_size
    step_seconds = {}
    # A compiled step is for one number of rows, as in a worker: hence a replica for each.
    for rows in {batch, max(1, batch // piece // 4) * piece}:
        replica = Replica(config, len(facts.classes), max(1, facts.num_steps), group)
        step_seconds[rows] = _median_seconds(_step(replica, pixels, rows), SECONDS / 3)
    at_once = evaluation_rows(config)
    batches = [(_repeat(pixels, at_once), np.zeros(at_once, np.int64))]
    scoring_seconds = _median_seconds(lambda: replica.evaluate(batches), SECONDS / 6) / at_once
    gradient_bytes = sum(4 * int(np.prod(variable.shape)) for variable in replica.model.trainable_variables)
    memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Tried(step_seconds, scoring_seconds, decoding_seconds, gradient_bytes, memory_bytes)


def _decode(config: TrainConfig, manifest: Manifest) -> tuple[np.ndarray, float]:
    """Some pictures of the first shard, uint8 (n, H, W, 3), and the seconds that one took, of all cores."""
    split = manifest.split("train")
    rows = next(iter(read_rows(config.dataset, split.shards[0].path, columns=["image.bytes"])))
    files = rows["image"].field("bytes").to_pylist()[:_DECODED_ROWS]
    size = (config.input_px, config.input_px)
    began = time.perf_counter()
    pixels = np.stack([images.decode(data, size).pixels for data in files])
    return pixels, (time.perf_counter() - began) / len(files) / len(os.sched_getaffinity(0))


def _step(replica: Replica, pixels: np.ndarray, rows: int) -> Callable[[], float]:
    pictures, labels, keys = _repeat(pixels, rows), np.zeros(rows, np.int64), np.arange(rows, dtype=np.int32)
    return lambda: float(replica.step(pictures, labels, keys, replica.num_frozen_steps)[0])  # waits for the end


def _repeat(pixels: np.ndarray, rows: int) -> np.ndarray:
    return pixels[np.arange(rows) % len(pixels)]


def _median_seconds(work: Callable[[], Any], at_most_seconds: float) -> float:
    work()  # compiles
    work()
    taken, ends_at = list[float](), time.perf_counter() + at_most_seconds
    while len(taken) < 3 or (time.perf_counter() < ends_at and len(taken) < 200):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)
