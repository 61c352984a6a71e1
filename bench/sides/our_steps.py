"""The step loop of one fruitcnn worker, in this process, without Ray: feed -> replica.

python -m bench.sides.our_steps PIXELS
"""

import json
import os
import sys
import time
from typing import Any

import numpy as np

from bench.sides.training import BATCH, WARM_UP_STEPS, load, num_epochs


def main(folder: str) -> None:
    """Time the steps after the warm-up."""
    from fruitcnn.feed import Feed
    from fruitcnn.recipe import TrainConfig
    from fruitcnn.replica import Replica
    from fruitcnn.sampling import Order
    from fruitcnn.train import _strategy

    images, labels = load(folder)
    num_steps = num_epochs(len(labels)) * len(labels) // BATCH
    config = TrainConfig(
        dataset="-", run="-", architecture="small_cnn", flip=False, schedule="constant", global_batch_size=BATCH
    )
    strategy = _strategy(1, len(os.sched_getaffinity(0)))
    replica = Replica(config, int(labels.max()) + 1, num_steps, strategy)
    feed = Feed(Order(len(labels), 0), np.arange(len(labels)), images, labels, BATCH, 0, 1)
    _steps(replica, feed, 0, WARM_UP_STEPS)
    started = time.perf_counter()
    _steps(replica, feed, WARM_UP_STEPS, WARM_UP_STEPS + num_steps)
    print(json.dumps({"num_images": num_steps * BATCH, "seconds": time.perf_counter() - started}))


def _steps(replica: Any, feed: Any, start: int, stop: int) -> None:
    results = [replica.step(batch.images, batch.labels, batch.keys) for batch in feed.batches(start, stop)]
    loss = float(results[-1][0])  # Waits until the last step is done.
    assert np.isfinite(loss), loss


if __name__ == "__main__":
    main(*sys.argv[1:])
