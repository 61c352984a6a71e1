"""What one worker of the group does: pixels and TensorFlow side by side, then the loop. Between trainer and loop.

Heavy imports happen inside: Ray has started the process, and decoding needs no TensorFlow.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.train

from fruitcnn import telemetry, warm
from fruitcnn.manifest import load_manifest
from fruitcnn.recipe import TrainConfig
from fruitcnn.runs import Facts
from fruitcnn.sampling import Order
from fruitcnn.schedule import balanced_weights
from fruitcnn.splits import SplitRows, open_split

if TYPE_CHECKING:
    import numpy.typing as npt

    from fruitcnn.group import Group
    from fruitcnn.loop import Rows
    from fruitcnn.replica import Replica


def work(job: dict[str, Any]) -> None:
    """Train as one worker of the group (runs in its own process)."""
    clock = _Clock({"ray": job["called_at"], "workers": job["fit_at"]})
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    config, facts, board = TrainConfig(**job["config"]), Facts(**job["facts"]), job["board"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()

    board.start.remote(world_size)

    def say(text: str) -> None:
        if rank == 0:
            board.note.remote(text)

    say("starting: TensorFlow loads, pictures are decoded")
    manifest = load_manifest(config.dataset, facts.dataset_version)
    with ThreadPoolExecutor(2) as pool:
        # Decoding needs no TensorFlow, whose import takes seconds: both at once.
        num_here = context.get_local_world_size()
        splits = {name: pool.submit(open_split, config, manifest, name, num_here) for name in manifest.splits}
        from fruitcnn.feed import Feed
        from fruitcnn.group import open_group
        from fruitcnn.loop import Loop, Rows

        group = open_group(config, world_size, job["cpus"])
        clock.lap("imports")
        say("starting: pictures are decoded")
        split = splits["train"].result()
        held, mask = split.held_and_validation(config)
        learned = ~mask & ~held
        tested = splits["test"].result() if "test" in splits else None
    clock.lap("pixels")
    say("starting: the network is built and compiled")
    replica = _replica(config, facts, group, split.labels[learned])
    feed = Feed(
        Order(facts.num_train_rows, config.seed, config.window_rows),
        np.flatnonzero(learned),
        split.pictures,
        split.labels,
        config.global_batch_size,
        rank,
        world_size,
    )
    validation = Rows(np.flatnonzero(mask), split.scored, split.labels[mask])
    if job["attempt"] > 1 and rank == 0:
        telemetry.group_restarted(config.run, job["attempt"])
    loop = Loop(
        config, facts, feed, replica, validation, lambda done, note: board.post.remote(done, note), job["attempt"]
    )
    clock.lap("model")
    loop.run()
    clock.lap("first_step", loop.first_step_at or time.time())
    unseen = {split.groups[row] for row in np.flatnonzero(held)}
    loop.finish(_tests(tested, unseen) if tested else {}, clock.seconds)


def _replica(config: TrainConfig, facts: Facts, group: Group, labels: npt.NDArray[np.int64]) -> Replica:
    """The network, with the weights it starts with; `labels` are those of the rows it learns from."""
    from fruitcnn.replica import Replica

    num_by_class = np.bincount(labels, minlength=len(facts.classes)).tolist()
    weights = balanced_weights(num_by_class) if config.class_weights == "balanced" else None
    replica = Replica(config, len(facts.classes), facts.num_steps, group, weights)
    if config.initial_model:
        warm.start_from(config.initial_model, replica.model, facts.classes)
        replica.restart_averages()
    elif config.weights:
        from fruitcnn import transfer

        transfer.start_from(config.weights, replica.model, config.architecture)
        replica.restart_averages()
    return replica


def _tests(tested: SplitRows, unseen: set[str]) -> dict[str, Rows]:
    """What is scored at the end: the whole test split, and of it the groups of which training held out every frame."""
    from fruitcnn.loop import Rows

    found = {"test": Rows(tested.all_rows, tested.scored, tested.labels)}
    if unseen:
        rows = np.array([row for row, group in enumerate(tested.groups) if group in unseen], np.int64)
        found["leak_aware"] = Rows(rows, tested.scored, tested.labels[rows])
    return found


class _Clock:
    """The parts of the time from the call to the first step; the clocks of driver and worker are taken to agree."""

    def __init__(self, began: dict[str, float]) -> None:
        """`began` names the parts before this process, in order, and when each began (Unix time)."""
        ends = [*list(began.values())[1:], time.time()]
        self.seconds = {name: round(end - start, 2) for (name, start), end in zip(began.items(), ends, strict=True)}
        self.last = ends[-1]

    def lap(self, part: str, now: float = 0.0) -> None:
        """`part` ends now."""
        now = now or time.time()
        self.seconds[part], self.last = round(now - self.last, 2), now
