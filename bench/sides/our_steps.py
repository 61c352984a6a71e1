"""The step loop of fruitcnn workers that share this machine's cores, without Ray: feed -> replica.

python -m bench.sides.our_steps PIXELS [--architecture NAME] [--batch ROWS] [--workers N]
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

import numpy as np

from bench.sides.training import BATCH, PROBE_STEPS, load, num_epochs


def main(asked: argparse.Namespace) -> None:
    """Time the steps of one worker of the group; rank 0 starts the others and prints what was measured."""
    if asked.workers == 1 or "TF_CONFIG" in os.environ:
        said = _measure(asked)
        if _rank() == 0:
            print(json.dumps(said))
        return
    cluster, group = {"worker": _free_addresses(asked.workers)}, []
    command = [sys.executable, "-m", "bench.sides.our_steps", *sys.argv[1:]]
    try:
        for rank in range(asked.workers):
            task = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})
            group.append(subprocess.Popen(command, env=os.environ | {"TF_CONFIG": task}))
        codes = [each.wait() for each in group]
    finally:
        for each in group:
            each.kill()
    sys.exit(max(map(abs, codes)))


def _measure(asked: argparse.Namespace) -> dict[str, float]:
    """Time the steps after some that warm up and tell how long to measure."""
    from fruitcnn.feed import Feed, InMemory
    from fruitcnn.group import open_group
    from fruitcnn.recipe import TrainConfig
    from fruitcnn.replica import Replica
    from fruitcnn.sampling import Order

    images, labels = load(asked.pixels)
    config = TrainConfig(
        dataset="-",
        run="-",
        architecture=asked.architecture,
        input_px=images.shape[1],
        num_workers=asked.workers,
        flip=False,
        schedule="constant",
        global_batch_size=asked.batch,
    )
    group = open_group(config, asked.workers, len(os.sched_getaffinity(0)) // asked.workers)
    replica = Replica(config, int(labels.max()) + 1, 1, group)
    order, rows = Order(len(labels), 0), np.arange(len(labels))
    feed = Feed(order, rows, InMemory(images), labels, asked.batch, _rank(), asked.workers)
    probe_steps = PROBE_STEPS * BATCH // asked.batch
    _timed_steps(replica, feed, 0, probe_steps)
    probe_seconds = _timed_steps(replica, feed, probe_steps, 2 * probe_steps)
    # All of a group have to take the same steps.
    probe_seconds = float(replica.sum_over_workers([probe_seconds])[0]) / asked.workers
    num_steps = num_epochs(len(labels), probe_seconds) * len(labels) // asked.batch
    cpu_seconds = time.process_time()
    seconds = _timed_steps(replica, feed, 2 * probe_steps, 2 * probe_steps + num_steps)
    cpu_seconds = time.process_time() - cpu_seconds
    return {"num_images": num_steps * asked.batch, "seconds": seconds, "cpu_seconds": cpu_seconds}


def _timed_steps(replica: Any, feed: Any, start: int, stop: int) -> float:
    started = time.perf_counter()
    results = [replica.step(batch.images, batch.labels, batch.keys, batch.step) for batch in feed.batches(start, stop)]
    loss = float(results[-1][0])  # Waits until the last step is done.
    assert np.isfinite(loss), loss
    return time.perf_counter() - started


def _rank() -> int:
    return int(json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))["task"]["index"])


def _free_addresses(number: int) -> list[str]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


if __name__ == "__main__":
    parser = argparse.ArgumentParser("bench.sides.our_steps")
    parser.add_argument("pixels")
    parser.add_argument("--architecture", default="small_cnn")
    parser.add_argument("--batch", type=int, default=BATCH, help="rows of one step over all workers together")
    parser.add_argument("--workers", type=int, default=1)
    main(parser.parse_args())
