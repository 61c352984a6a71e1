"""The whole loop of one worker, records and checkpoints included, in this process, without Ray.

python -m bench.sides.our_loop PIXELS RUN --checkpoint-seconds SECONDS
"""

import argparse
import json
import os
import time

import numpy as np

from bench.sides.training import BATCH, load

NUM_IMAGES = 75_000
"""Some twenty seconds."""

_NUM_VALIDATION = 640


def main(asked: argparse.Namespace) -> None:
    """Run the loop to its end and tell what it took."""
    from fruitcnn.feed import Feed, InMemory
    from fruitcnn.group import open_group
    from fruitcnn.loop import Loop, Rows
    from fruitcnn.recipe import TrainConfig
    from fruitcnn.replica import Replica
    from fruitcnn.runs import Facts
    from fruitcnn.sampling import Order

    images, labels = load(asked.pixels)
    num_classes, num_steps = int(labels.max()) + 1, NUM_IMAGES // BATCH
    config = TrainConfig(
        dataset="-",
        run=asked.run,
        architecture="base_cnn",
        global_batch_size=BATCH,
        weight_averaging=0.999,
        num_evaluations=1,
        checkpoint_seconds=asked.checkpoint_seconds,
    )
    rows = np.arange(len(labels))
    learned, validated = rows[_NUM_VALIDATION:], rows[:_NUM_VALIDATION]
    replica = Replica(config, num_classes, num_steps, open_group(config, 1, len(os.sched_getaffinity(0))))
    feed = Feed(Order(len(learned), 0), learned, InMemory(images), labels, BATCH, 0, 1)
    facts = Facts([str(label) for label in range(num_classes)], "", 1, len(learned), len(validated), num_steps)
    validation = Rows(validated, InMemory(images), labels[validated])
    loop = Loop(config, facts, feed, replica, validation, lambda *_: None)
    started, cpu_seconds = time.perf_counter(), time.process_time()
    loop.run()
    said = {"num_images": num_steps * BATCH, "seconds": time.perf_counter() - started}
    print(json.dumps(said | {"cpu_seconds": time.process_time() - cpu_seconds, "parts": loop.seconds}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser("bench.sides.our_loop")
    parser.add_argument("pixels")
    parser.add_argument("run")
    parser.add_argument("--checkpoint-seconds", type=float, required=True)
    main(parser.parse_args())
