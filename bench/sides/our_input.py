"""The batches of one training worker, with nobody who trains on them.

python -m bench.sides.our_input PIXELS
"""

import json
import sys
import time

import numpy as np

from bench.sides.training import BATCH, INPUT_SECONDS, load


def main(folder: str) -> None:
    """Take batches for INPUT_SECONDS, after some that warm up."""
    from fruitcnn.feed import Feed, InMemory
    from fruitcnn.sampling import Order

    images, labels = load(folder)
    feed = Feed(Order(len(labels), 0), np.arange(len(labels)), InMemory(images), labels, BATCH, 0, 1)
    batches = feed.batches(0, sys.maxsize)
    for _ in range(len(labels) // BATCH):
        next(batches)
    num_images, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < INPUT_SECONDS:
        num_images += len(next(batches).images)
    print(json.dumps({"num_images": num_images, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
