"""The step loop of one fruitcnn worker, in this process, without Ray: feed -> replica.

python -m bench.sides.our_steps PIXELS
"""

import json
import os
import sys
import time
from typing import Any

import numpy as np

from bench.sides.training import BATCH, PROBE_STEPS, load, num_epochs


def main(folder: str) -> None:
    """Time the steps after some that warm up and tell how long to measure."""
    from fruitcnn.feed import Feed, InMemory
    from fruitcnn.recipe import TrainConfig
    from fruitcnn.replica import Replica
    from fruitcnn.sampling import Order
    from fruitcnn.worker import make_strategy

    images, labels = load(folder)
    config = TrainConfig(
        dataset="-", run="-", architecture="small_cnn", flip=False, schedule="constant", global_batch_size=BATCH
    )
    strategy = make_strategy(1, len(os.sched_getaffinity(0)))
    replica = Replica(config, int(labels.max()) + 1, 1, strategy)
    feed = Feed(Order(len(labels), 0), np.arange(len(labels)), InMemory(images), labels, BATCH, 0, 1)
    _timed_steps(replica, feed, 0, PROBE_STEPS)
    probe_seconds = _timed_steps(replica, feed, PROBE_STEPS, 2 * PROBE_STEPS)
    num_images = num_epochs(len(labels), probe_seconds) * len(labels)
    cpu_seconds = time.process_time()
    seconds = _timed_steps(replica, feed, 2 * PROBE_STEPS, 2 * PROBE_STEPS + num_images // BATCH)
    said = {"num_images": num_images, "seconds": seconds, "cpu_seconds": time.process_time() - cpu_seconds}
    print(json.dumps(said))


def _timed_steps(replica: Any, feed: Any, start: int, stop: int) -> float:
    started = time.perf_counter()
    results = [replica.step(batch.images, batch.labels, batch.keys) for batch in feed.batches(start, stop)]
    loss = float(results[-1][0])  # Waits until the last step is done.
    assert np.isfinite(loss), loss
    return time.perf_counter() - started


if __name__ == "__main__":
    main(*sys.argv[1:])
