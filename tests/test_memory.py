"""Training takes no more memory in its tenth epoch than in its first: loop, replica and checkpoints together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

# A process of its own, as other tests leave memory behind that would be used again.
SCRIPT = """
import sys

import numpy as np

from fruitcnn.feed import Feed, InMemory
from fruitcnn.group import open_group
from fruitcnn.loop import Loop, Rows
from fruitcnn.recipe import TrainConfig
from fruitcnn.replica import Replica
from fruitcnn.runs import Facts
from fruitcnn.sampling import Order

NUM_ROWS, NUM_CLASSES, NUM_EPOCHS = 960, 120, 10
config = TrainConfig(dataset="-", run=sys.argv[1], preset=sys.argv[2], epochs=10, num_evaluations=NUM_EPOCHS)
size, batch = config.input_px, config.global_batch_size
random, rows = np.random.default_rng(0), np.arange(NUM_ROWS)
pictures = InMemory(random.integers(0, 256, (NUM_ROWS, size, size, 3), dtype=np.uint8))
labels = random.integers(0, NUM_CLASSES, NUM_ROWS)
num_steps = NUM_EPOCHS * NUM_ROWS // batch
facts = Facts([str(number) for number in range(NUM_CLASSES)], "", 1, NUM_ROWS, NUM_ROWS, num_steps)
replica = Replica(config, NUM_CLASSES, num_steps, open_group(config, 1, 2))
feed = Feed(Order(NUM_ROWS, 0), rows, pictures, labels, batch, 0, 1)
Loop(config, facts, feed, replica, Rows(rows, pictures, labels), lambda *_: None).run()
"""


# `seed` has the largest weights and pictures of the presets, `best` averages its weights as well.
@pytest.mark.parametrize("preset", ["seed", "best"])
def test_from_before_the_first_checkpoint_to_the_tenth_epoch_memory_grows_by_less_than_5_percent(
    tmp_path: Path, preset: str
) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run"), preset]
    subprocess.run(command, check=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first_checkpoint = next(line["step"] for line in lines if line["kind"] == "validation")
    records = [(line["step"], line["memory_bytes"]) for line in lines if line["kind"] == "train"]
    # The last record of each epoch, when the checkpoint of the one before it has long been written.
    before, *later = [memory for step, memory in records if step % first_checkpoint == 0]
    after = max(later)
    print(f"\n{preset}: {before / 2**20:.0f} MiB before the first checkpoint, then at most {after / 2**20:.0f} MiB")
    print(f"while checkpoints were written: at most {max(memory for _, memory in records) / 2**20:.0f} MiB")
    assert len(later) == 9
    assert after < 1.05 * before
