"""A data set -> a trained run, on N Ray Train workers: the trainer on the driver and what each worker starts with.

Workers are one process each, and sum their gradients: group.py. A worker or node that is lost costs the steps since the
last checkpoint: the group is started again, `max_failures` times. An error of ours or of the user (wrong argument, full
disk, NaN loss) is not tried again.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import ray
import ray.train
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fruitcnn import runs, storage, transfer, warm
from fruitcnn.errors import UsageError
from fruitcnn.manifest import Manifest, load_manifest
from fruitcnn.parquet import read_rows
from fruitcnn.recipe import TrainConfig
from fruitcnn.runs import Facts
from fruitcnn.sampling import held_and_validation, total_steps
from fruitcnn.trainer import TensorFlow, Trainer, is_loss_of_workers
from fruitcnn.worker import work

Progress = Callable[..., AbstractContextManager[Callable[..., None]]]
Session = Callable[[], AbstractContextManager[None]]

_POLL_SECONDS = 0.5
# A worker that says nothing for so long is frozen: Ray's own limit is ten minutes.
_FROZEN_SECONDS = 35
# Starting Python and importing Ray, twice at once on a busy or cold machine, takes longer than Ray's 60 seconds.
_START_SECONDS = 110
# How often an elastic run looks for room for more workers.
_RESIZE_SECONDS = 30


def train(config: TrainConfig, progress: Progress, session: Session = nullcontext) -> dict[str, Any]:
    """Train and return result.json; a finished run is returned as it is.

    `session` opens Ray, once it is known that there is work; by default the session at hand is used. Raises UsageError
    for a run of another config, ray.train.TrainingFailedError or the worker's own error otherwise.
    """
    called_at = time.time()
    config, facts = _claim(config)
    if not runs.result(config.run):
        with session():
            _train(config, facts, progress, called_at)
    found = runs.result(config.run)
    assert found is not None, "the trainer ended without an error and without a result"
    return found


def _claim(config: TrainConfig) -> tuple[TrainConfig, Facts]:
    with storage.argument("--dataset"):
        dataset = storage.normalise(config.dataset)
        manifest = load_manifest(dataset)
        facts = describe(config.model_copy(update={"dataset": dataset}), manifest)
    transfer.require(config.weights)
    if config.initial_model:
        warm.require_fitting(config, facts.classes)
    with storage.argument("--run"):
        config = config.model_copy(update={"dataset": dataset, "run": storage.normalise(config.run)})
        runs.claim(config, facts)
    return config, facts


def _train(config: TrainConfig, facts: Facts, progress: Progress, called_at: float) -> None:
    # On the driver's own node: on any other it would be lost with that node, and the run with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(num_cpus=0, scheduling_strategy=here)(_Board).remote()
    total = facts.num_steps * config.global_batch_size
    with progress("train", total, "images") as update, _following(board, update):
        _fit(config, facts, board, called_at)


def describe(config: TrainConfig, manifest: Manifest) -> Facts:
    """Return what the run is applied to: the validation rows are chosen from groups and paths alone."""
    held, mask = _held_and_validation(config, manifest)
    num_train, num_validation = int((~mask & ~held).sum()), int(mask.sum())
    if config.hold_out_groups and not held.any():
        raise UsageError(
            f"--hold-out-groups: got --dataset {config.dataset}, none of whose classes has two groups of frames; leave "
            "it out"
        )
    if not num_validation:
        raise UsageError(
            f"--validation-fraction: got {config.validation_fraction}, which keeps none of {num_train} rows; wanted at "
            "least one row: raise it"
        )
    num_steps = total_steps(num_train, config.num_images(num_train) / num_train, config.global_batch_size)
    return Facts(list(manifest.classes), manifest.sha256, manifest.version, num_train, num_validation, num_steps)


def _held_and_validation(config: TrainConfig, manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    groups: list[str] = []
    labels: list[int] = []
    paths: list[str] = []
    for shard in manifest.split("train").shards:
        for rows in read_rows(config.dataset, shard.path, columns=["label", "group", "image.path"]):
            labels += rows["label"].to_pylist()
            groups += rows["group"].to_pylist()
            paths += rows["image"].field("path").to_pylist()
    return held_and_validation(groups, paths, labels, config)


def _fit(config: TrainConfig, facts: Facts, board: Any, called_at: float) -> None:
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_START_SECONDS))
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(_FROZEN_SECONDS))
    # A process of its own that asks for nodes about to be taken away: checkpoints are frequent enough without it.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    cpus = config.cpus_per_worker or _cpus_per_worker(config)
    if not os.environ.get("RAY_ADDRESS") and not _has_room(config, cpus):
        raise _too_large(config, cpus)  # a cluster may get nodes yet, a machine gets none
    scaling = ray.train.ScalingConfig(
        num_workers=(config.min_workers, config.num_workers) if config.min_workers else config.num_workers,
        use_gpu=config.use_gpu,
        resources_per_worker={"CPU": cpus, **({"GPU": 1} if config.use_gpu else {})},
        elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
    )
    job = {"config": config.model_dump(), "facts": asdict(facts), "cpus": cpus, "board": board, "called_at": called_at}
    job["group_sizes"] = config.group_sizes()
    for failures_left in reversed(range(config.max_failures + 1)):
        try:
            # Ray wants a folder for its own records; what lasts is in the run folder.
            with tempfile.TemporaryDirectory(prefix="fruitcnn-train-") as folder:
                ray.get(board.begin.remote())
                Trainer(
                    work,
                    train_loop_config=job | {"fit_at": time.time(), "attempt": config.max_failures + 1 - failures_left},
                    backend_config=TensorFlow(),
                    scaling_config=scaling,
                    run_config=ray.train.RunConfig(name=_dashboard_name(config.run), storage_path=folder),
                    has_started=lambda: ray.get(board.has_started.remote()),
                    start_seconds=_START_SECONDS,
                ).fit()
                return
        except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
            # Ray's controller ends like this only where Trainer gave up waiting for the start.
            if isinstance(error, ray.exceptions.RayActorError) and not (failures_left and _has_room(config, cpus)):
                raise _never_started(config, cpus) from error
            if not failures_left or not is_loss_of_workers(error):
                raise
            ray.get(board.note.remote(f"a worker was lost; going on from the last checkpoint ({failures_left} left)"))


def _dashboard_name(run: str) -> str:
    """What Ray's dashboard calls the run: train, and its last two folders."""
    return "-".join(["train", *re.sub(r"[^\w./-]+", "_", run).strip("/").split("/")[-2:]])


def _has_room(config: TrainConfig, cpus: int) -> bool:
    """Whether the cluster could hold the workers at all."""
    num_workers, have = config.min_workers or config.num_workers, ray.cluster_resources()
    return num_workers * cpus <= have.get("CPU", 0) and (not config.use_gpu or num_workers <= have.get("GPU", 0))


def _too_large(config: TrainConfig, cpus: int) -> UsageError:
    return UsageError(f"{_asked(config, cpus)}; {_at_hand()}: give fewer workers, or smaller ones")


def _never_started(config: TrainConfig, cpus: int) -> runs.TrainError:
    asked = f"{_asked(config, cpus)}, which did not start within {_START_SECONDS} s"
    return runs.TrainError(f"{asked}; {_at_hand()}: give fewer workers, or add nodes")


def _asked(config: TrainConfig, cpus: int) -> str:
    each = f"{cpus} CPUs" + (" and a GPU (--use-gpu)" if config.use_gpu else "")
    return f"--num-workers: got {config.min_workers or config.num_workers}, each with {each}"


def _at_hand() -> str:
    have = ray.cluster_resources()
    return f"there are {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs"


def _cpus_per_worker(config: TrainConfig) -> int:
    if config.min_workers:
        # Nodes come and go: one worker on each.
        nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        return max(1, int(min(filter(None, nodes), default=1)))
    return max(1, int(ray.cluster_resources().get("CPU", 1)) // config.num_workers)


class _Board:
    """Where workers leave word for the driver: that they have started, and rank 0 how far it is."""

    def __init__(self) -> None:
        self.done, self.text = 0, ""
        self.num_started, self.num_expected = 0, 1

    def begin(self) -> None:
        self.num_started, self.num_expected = 0, 1
        self.text = f"{self.text}; " * bool(self.text) + "starting: Ray starts the workers"

    def start(self, world_size: int) -> None:
        self.num_started, self.num_expected = self.num_started + 1, world_size

    def has_started(self) -> bool:
        return self.num_started >= self.num_expected

    def post(self, done: int, text: str) -> None:
        self.done, self.text = done, text

    def note(self, text: str) -> None:
        self.text = text

    def read(self) -> tuple[int, str]:
        return self.done, self.text


@contextmanager
def _following(board: Any, update: Callable[..., None]) -> Iterator[None]:
    """Carry what the board says to the progress bar while the trainer blocks the driver."""
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(_POLL_SECONDS):
            update(*ray.get(board.read.remote()))

    thread = threading.Thread(target=follow, daemon=True, name="progress")
    thread.start()
    try:
        yield
        update(*ray.get(board.read.remote()))
    finally:
        ended.set()
        thread.join()
