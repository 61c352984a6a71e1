"""One worker of test_replica.py, a process of its own: ten steps of a model on pictures that a seed names.

Usage: python -m tests.replica_worker OUT ARCHITECTURE OPTIMIZER RANK WORLD_SIZE [PORT ...]
"""

import json
import os
import sys
from typing import Any

import numpy as np

ROWS_OF_GLOBAL_BATCH, NUM_STEPS, NUM_CLASSES = 64, 10, 6


def main(out: str, architecture: str, optimizer: str, rank: int, world_size: int, ports: list[str]) -> None:
    if world_size > 1:
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})
    from fruitcnn.feed import Feed
    from fruitcnn.recipe import TrainConfig
    from fruitcnn.replica import Replica
    from fruitcnn.sampling import Order, evaluation_slice
    from fruitcnn.worker import make_strategy

    config = TrainConfig(
        dataset="-",
        run="-",
        architecture=architecture,
        optimizer=optimizer,
        schedule="constant",
        warmup_share=0.0,
        learning_rate=1e-3 if optimizer != "sgd" else 5e-3,
        flip=architecture == "small_cnn",
        clip_norm=1.0,
        weight_averaging=0.5,
        num_workers=world_size,
        global_batch_size=ROWS_OF_GLOBAL_BATCH,
    )
    weights = [1.0, 2.0, 1.0, 0.5, 1.0, 1.0]
    replica = Replica(config, NUM_CLASSES, NUM_STEPS, make_strategy(world_size, 1), weights)
    random = np.random.default_rng(0)
    labels = random.integers(0, NUM_CLASSES, 300)
    base = random.integers(0, 256, (NUM_CLASSES, 32, 32, 3))
    pixels = np.clip(base[labels] * 0.5 + random.normal(64, 30, (300, 32, 32, 3)), 0, 255).astype(np.uint8)
    feed = Feed(Order(300, 0), np.arange(300), pixels, labels, ROWS_OF_GLOBAL_BATCH, rank, world_size)
    start = everything(replica.state(0))
    losses = [float(replica.step(b.images, b.labels, b.keys)[0]) for b in feed.batches(0, NUM_STEPS)]
    totals = replica.sum_over_workers(losses) / ROWS_OF_GLOBAL_BATCH
    replica.average_statistics()
    piece = evaluation_slice(300, rank, world_size)
    score = replica.evaluate(pixels[piece], labels[piece])
    ended = everything(replica.state(NUM_STEPS))
    moved = np.array([abs(after - before).max() for before, after in zip(start, ended, strict=True)])
    replica.restore(replica.state(NUM_STEPS))
    same = everything(replica.state(NUM_STEPS))
    assert all((a == b).all() for a, b in zip(ended, same, strict=True)), "what is restored is what was saved"
    weights = {f"{index:03d}": value for index, value in enumerate(ended)}
    np.savez(out, losses=totals, score=np.array(score), moved=moved, **weights)


def everything(state: Any) -> list[np.ndarray]:
    """The averaged weights and those that training goes on from (the optimizer's own numbers left out)."""
    return [*state.weights, *state.optimizer[-len(state.weights) :]]


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6:])
