"""One worker of test_replica.py, a process of its own: a few steps on pictures made of a seed.

Usage: python -m tests.replica_worker OUT KIND ARCHITECTURE OPTIMIZER RANK WORLD_SIZE [HOST:PORT ...]
KIND exact: ten steps, gently; everything: twenty steps, two epochs and a bit, with all that a recipe may ask for.
"""

import json
import os
import sys
from typing import Any

import numpy as np

ROWS_OF_GLOBAL_BATCH, NUM_CLASSES, NUM_ROWS = 64, 6, 600
NUM_STEPS = {"exact": 10, "everything": 20}
SETTINGS: dict[str, dict[str, Any]] = {
    "exact": {"flip": False},
    "everything": {
        "ghost_rows": 16,
        "rotate_degrees": 20,
        "zoom": 0.1,
        "brightness": 0.2,
        "clip_norm": 1.0,
        "weight_averaging": 0.5,
    },
}
LEARNING_RATES = {
    ("exact", "sgd"): 3e-4,
    ("everything", "sgd"): 5e-3,
    ("exact", "rmsprop"): 1e-3,
    ("exact", "adamw"): 1e-3,
}
CLASS_WEIGHTS = {"exact": [1.0] * NUM_CLASSES, "everything": [1.0, 2.0, 1.0, 0.5, 1.0, 1.0]}


def main(
    out: str, kind: str, architecture: str, optimizer: str, rank: int, world_size: int, addresses: list[str]
) -> None:
    if world_size > 1:
        cluster = {"worker": addresses}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})
    from fruitcnn.feed import Feed, InMemory
    from fruitcnn.group import open_group
    from fruitcnn.recipe import TrainConfig
    from fruitcnn.replica import Replica, evaluation_rows
    from fruitcnn.sampling import Order, evaluation_batches

    config = TrainConfig(
        dataset="-",
        run="-",
        architecture=architecture,
        optimizer=optimizer,
        schedule="constant",
        warmup_share=0.0,
        learning_rate=LEARNING_RATES[kind, optimizer],
        num_workers=world_size,
        global_batch_size=ROWS_OF_GLOBAL_BATCH,
        **SETTINGS[kind],
    )
    num_steps = NUM_STEPS[kind]
    replica = Replica(
        config, NUM_CLASSES, num_steps, open_group(config, world_size, max(1, 2 // world_size)), CLASS_WEIGHTS[kind]
    )
    random = np.random.default_rng(0)
    labels = random.integers(0, NUM_CLASSES, NUM_ROWS)
    base = random.integers(0, 256, (NUM_CLASSES, 32, 32, 3))
    pixels = np.clip(base[labels] * 0.5 + random.normal(64, 30, (NUM_ROWS, 32, 32, 3)), 0, 255).astype(np.uint8)
    feed = Feed(
        Order(NUM_ROWS, 0), np.arange(NUM_ROWS), InMemory(pixels), labels, ROWS_OF_GLOBAL_BATCH, rank, world_size
    )
    start = everything(replica.state(0))
    losses, rows = [], []
    for batch in feed.batches(0, num_steps):
        losses.append(float(replica.step(batch.images, batch.labels, batch.keys, batch.step)[0]))
        rows.append(batch.rows)
    totals = replica.sum_over_workers(losses) / ROWS_OF_GLOBAL_BATCH
    replica.average_statistics()
    score = replica.evaluate(
        (pixels[rows], labels[rows]) for rows in evaluation_batches(NUM_ROWS, rank, world_size, evaluation_rows(config))
    )
    ended = everything(replica.state(num_steps))
    moved = np.array([abs(after - before).max() for before, after in zip(start, ended, strict=True)])
    replica.restore(replica.state(num_steps))
    same = everything(replica.state(num_steps))
    assert all((a == b).all() for a, b in zip(ended, same, strict=True)), "what is restored is what was saved"
    weights = {f"{index:03d}": value for index, value in enumerate(ended)}
    told = {"losses": totals, "score": np.array(score), "moved": moved, "rows": rows}
    np.savez(out, is_divided=replica.is_divided, **told, **weights)


def everything(state: Any) -> list[np.ndarray]:
    """The averaged weights and those that training goes on from (the optimizer's own numbers left out)."""
    return [*state.weights, *state.optimizer[-len(state.weights) :]]


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]), int(sys.argv[6]), sys.argv[7:])
