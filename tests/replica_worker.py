"""One worker of test_replica.py, a process of its own: twenty steps, two epochs and a bit, on pictures made of a seed.

Usage: python -m tests.replica_worker OUT ARCHITECTURE OPTIMIZER RANK WORLD_SIZE [PORT ...]
"""

import json
import os
import sys
from typing import Any

import numpy as np

ROWS_OF_GLOBAL_BATCH, NUM_STEPS, NUM_CLASSES, NUM_ROWS = 64, 20, 6, 600


def main(out: str, architecture: str, optimizer: str, rank: int, world_size: int, ports: list[str]) -> None:
    if world_size > 1:
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})
    from fruitcnn.feed import Feed, InMemory
    from fruitcnn.recipe import TrainConfig
    from fruitcnn.replica import Replica
    from fruitcnn.sampling import Order, evaluation_batches
    from fruitcnn.worker import make_strategy

    config = TrainConfig(
        dataset="-",
        run="-",
        architecture=architecture,
        optimizer=optimizer,
        schedule="constant",
        warmup_share=0.0,
        learning_rate=1e-3 if optimizer != "sgd" else 5e-3,
        ghost_rows=16,
        rotate_degrees=20,
        zoom=0.1,
        brightness=0.2,
        clip_norm=1.0,
        weight_averaging=0.5,
        num_workers=world_size,
        global_batch_size=ROWS_OF_GLOBAL_BATCH,
    )
    weights = [1.0, 2.0, 1.0, 0.5, 1.0, 1.0]
    replica = Replica(config, NUM_CLASSES, NUM_STEPS, make_strategy(world_size, 1), weights)
    random = np.random.default_rng(0)
    labels = random.integers(0, NUM_CLASSES, NUM_ROWS)
    base = random.integers(0, 256, (NUM_CLASSES, 32, 32, 3))
    pixels = np.clip(base[labels] * 0.5 + random.normal(64, 30, (NUM_ROWS, 32, 32, 3)), 0, 255).astype(np.uint8)
    feed = Feed(
        Order(NUM_ROWS, 0), np.arange(NUM_ROWS), InMemory(pixels), labels, ROWS_OF_GLOBAL_BATCH, rank, world_size
    )
    start = everything(replica.state(0))
    losses, rows = [], []
    for batch in feed.batches(0, NUM_STEPS):
        losses.append(float(replica.step(batch.images, batch.labels, batch.keys)[0]))
        rows.append(batch.rows)
    totals = replica.sum_over_workers(losses) / ROWS_OF_GLOBAL_BATCH
    replica.average_statistics()
    score = replica.evaluate(
        (pixels[rows], labels[rows]) for rows in evaluation_batches(NUM_ROWS, rank, world_size, 256)
    )
    ended = everything(replica.state(NUM_STEPS))
    moved = np.array([abs(after - before).max() for before, after in zip(start, ended, strict=True)])
    replica.restore(replica.state(NUM_STEPS))
    same = everything(replica.state(NUM_STEPS))
    assert all((a == b).all() for a, b in zip(ended, same, strict=True)), "what is restored is what was saved"
    weights = {f"{index:03d}": value for index, value in enumerate(ended)}
    np.savez(out, losses=totals, score=np.array(score), moved=moved, rows=rows, **weights)


def everything(state: Any) -> list[np.ndarray]:
    """The averaged weights and those that training goes on from (the optimizer's own numbers left out)."""
    return [*state.weights, *state.optimizer[-len(state.weights) :]]


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6:])
