"""A data set -> a trained run, on N Ray Train workers: the trainer on the driver and what each worker starts with.

Workers are one process each; with more than one, tf.distribute.MultiWorkerMirroredStrategy sums the gradients. A worker
or node that is lost costs the steps since the last checkpoint: the group is started again, `max_failures` times. An
error of ours or of the user (wrong argument, full disk, NaN loss) is not tried again.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import ray
import ray.train
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from fruitcnn import runs, storage, warm
from fruitcnn.errors import UsageError
from fruitcnn.manifest import Manifest, load_manifest
from fruitcnn.parquet import read_rows
from fruitcnn.pixels import load_pixels
from fruitcnn.recipe import TrainConfig
from fruitcnn.runs import Facts
from fruitcnn.sampling import Order, total_steps, validation_mask

Progress = Callable[..., AbstractContextManager[Callable[..., None]]]
Session = Callable[[], AbstractContextManager[None]]

_POLL_SECONDS = 0.5

# TensorFlow's errors in a collective whose other side is gone.
_ERRORS_OF_PEERS = ("UnavailableError", "AbortedError", "CancelledError", "DeadlineExceededError", "InternalError")


def train(config: TrainConfig, progress: Progress, session: Session = nullcontext) -> dict[str, Any]:
    """Train and return result.json; a finished run is returned as it is.

    `session` opens Ray, once it is known that there is work; by default the session at hand is used. Raises UsageError
    for a run of another config, ray.train.TrainingFailedError or the worker's own error otherwise.
    """
    config, facts = _claim(config)
    if not runs.result(config.run):
        with session():
            _train(config, facts, progress)
    found = runs.result(config.run)
    assert found is not None, "the trainer ended without an error and without a result"
    return found


def _claim(config: TrainConfig) -> tuple[TrainConfig, Facts]:
    with storage.argument("--dataset"):
        dataset = storage.normalise(config.dataset)
        manifest = load_manifest(dataset)
        facts = describe(config.model_copy(update={"dataset": dataset}), manifest)
    if config.initial_model:
        warm.require_fitting(config, facts.classes)
    with storage.argument("--run"):
        config = config.model_copy(update={"dataset": dataset, "run": storage.normalise(config.run)})
        runs.claim(config, facts)
    return config, facts


def _train(config: TrainConfig, facts: Facts, progress: Progress) -> None:
    board = ray.remote(num_cpus=0)(_Board).remote()
    total = facts.num_steps * config.global_batch_size
    with progress("train", total, "images") as update, _following(board, update):
        _fit(config, facts, board)


def describe(config: TrainConfig, manifest: Manifest) -> Facts:
    """Return what the run is applied to: the validation rows are chosen from groups and paths alone."""
    mask = _validation_mask(config, manifest)
    num_train, num_validation = int((~mask).sum()), int(mask.sum())
    if not num_validation:
        raise UsageError(
            f"--validation-fraction: got {config.validation_fraction}, which keeps none of {num_train} rows; wanted at "
            "least one row: raise it"
        )
    num_steps = total_steps(num_train, config.num_images(num_train) / num_train, config.global_batch_size)
    return Facts(list(manifest.classes), manifest.sha256, manifest.version, num_train, num_validation, num_steps)


def _validation_mask(config: TrainConfig, manifest: Manifest) -> np.ndarray:
    groups: list[str] = []
    paths: list[str] = []
    for shard in manifest.split("train").shards:
        for rows in read_rows(config.dataset, shard.path, columns=["group", "image.path"]):
            groups += rows["group"].to_pylist()
            paths += rows["image"].field("path").to_pylist()
    return validation_mask(groups, paths, config.validation_fraction, config.seed)


def _fit(config: TrainConfig, facts: Facts, board: Any) -> None:
    # Starting Python and importing Ray, twice at once on a busy or cold machine, takes longer than Ray's 60 seconds.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "180")
    cpus = config.cpus_per_worker or max(1, int(ray.cluster_resources().get("CPU", 1)) // config.num_workers)
    resources = {"CPU": cpus, **({"GPU": 1} if config.use_gpu else {})}
    scaling = ray.train.ScalingConfig(
        num_workers=config.num_workers, use_gpu=config.use_gpu, resources_per_worker=resources
    )
    job = {"config": config.model_dump(), "facts": asdict(facts), "cpus": cpus, "board": board}
    for failures_left in reversed(range(config.max_failures + 1)):
        try:
            # Ray wants a folder for its own records; what lasts is in the run folder.
            with tempfile.TemporaryDirectory(prefix="fruitcnn-train-") as folder:
                records = ray.train.RunConfig(name="fruitcnn", storage_path=folder)
                _Trainer(
                    _worker,
                    train_loop_config=job,
                    backend_config=_TensorFlow(),
                    scaling_config=scaling,
                    run_config=records,
                ).fit()
                return
        except ray.train.TrainingFailedError as error:
            if not failures_left or not _is_loss_of_workers(error):
                raise
            ray.get(board.note.remote(f"a worker was lost; going on from the last checkpoint ({failures_left} left)"))


def _is_loss_of_workers(error: BaseException) -> bool:
    """Whether processes or nodes went away, rather than that some code of ours raised."""
    failures = [_innermost(failure) for failure in getattr(error, "worker_failures", {}).values()]
    lost = (ray.exceptions.RayActorError, ray.exceptions.NodeDiedError)
    return bool(failures) and all(
        isinstance(failure, lost) or type(failure).__name__ in _ERRORS_OF_PEERS for failure in failures
    )


def _innermost(failure: Any) -> Any:
    for wrapped in ("health_check_failure", "_base_exc", "cause"):
        if isinstance(getattr(failure, wrapped, None), BaseException):
            return _innermost(getattr(failure, wrapped))
    return failure


class _Board:
    """Where rank 0 leaves word of its progress for the driver."""

    def __init__(self) -> None:
        self.done, self.text = 0, "starting"

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


class _Trainer(DataParallelTrainer):
    """Ray's trainer without its PlacementGroupCleaner and without its answer to Ctrl-C.

    On a busy machine the cleaner took an empty answer of Ray's state API for a dead controller and took the workers
    away from a healthy run (seen with Ray 2.60). Without it they go when the driver's job ends.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [each for each in callbacks if not isinstance(each, PlacementGroupCleanerCallback)]

    def _register_sigint_handler(self, controller: Any) -> None:
        # Ray's handler ends the process with exit code 1 and not a word, and stays when the run is over. Python's own
        # raises KeyboardInterrupt, and the workers go with the session or with the last reference to the controller.
        pass


class _TensorFlow(BackendConfig):
    """Tells the workers of each other (TF_CONFIG), as Ray's TensorflowConfig does.

    Importing Ray's would import TensorFlow into the driver, which takes four seconds and is not needed there.
    """

    @property
    def backend_cls(self) -> type[Backend]:
        return _TensorFlowBackend


class _TensorFlowBackend(Backend):
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:  # noqa: ARG002 - Ray's signature
        """Give every worker the addresses of all, before the training function starts."""
        addresses = worker_group.execute(_free_address)
        ray.get(
            [
                worker_group.execute_single_async(index, _introduce, addresses=addresses, index=index)
                for index in range(len(addresses))
            ]
        )


def _free_address() -> str:
    from ray.train._internal.utils import get_address_and_port

    address, port = get_address_and_port()
    return f"{address}:{port}"


def _introduce(addresses: list[str], index: int) -> None:
    task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    os.environ["TF_CONFIG"] = json.dumps(task)


def _worker(job: dict[str, Any]) -> None:
    """Train as one worker of the group (runs in its own process)."""
    began = time.monotonic()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    config, facts, board = TrainConfig(**job["config"]), Facts(**job["facts"]), job["board"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    manifest = load_manifest(config.dataset, facts.dataset_version)
    with ThreadPoolExecutor(2) as pool:
        # Decoding needs no TensorFlow, whose import takes seconds: both at once.
        size = (config.input_px, config.input_px)
        splits = {name: pool.submit(_load, config, manifest, name, size) for name in manifest.splits}
        from fruitcnn.feed import Feed
        from fruitcnn.loop import Loop, Rows
        from fruitcnn.replica import Replica

        strategy = _strategy(world_size, job["cpus"])
        replica = Replica(config, len(facts.classes), facts.num_steps, strategy)
        if config.initial_model:
            warm.start_from(config.initial_model, replica.model, facts.classes)
        pixels = splits["train"].result()
        mask = validation_mask(list(pixels.groups), list(pixels.paths), config.validation_fraction, config.seed)
        test = Rows(splits["test"].result().pixels, splits["test"].result().labels) if "test" in splits else None
    feed = Feed(
        Order(facts.num_train_rows, config.seed),
        np.flatnonzero(~mask),
        pixels.pixels,
        pixels.labels,
        config.global_batch_size,
        rank,
        world_size,
    )
    validation = Rows(pixels.pixels[mask], pixels.labels[mask])
    loop = Loop(config, facts, feed, replica, validation, lambda done, note: board.post.remote(done, note))
    start_seconds = time.monotonic() - began
    loop.run()
    loop.finish(test, start_seconds)


def _load(config: TrainConfig, manifest: Manifest, split: str, size: tuple[int, int]) -> Any:
    return load_pixels(config.dataset, split, size, cache_dir=config.cache_dir or None, manifest=manifest)


def _strategy(world_size: int, num_threads: int) -> Any:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(num_threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    if world_size == 1:
        return tf.distribute.get_strategy()
    return tf.distribute.MultiWorkerMirroredStrategy()
