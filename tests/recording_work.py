"""What Ray runs in each worker of test_train_faults.py: the real thing, with a note of every batch it takes."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fruitcnn import feed, worker


def work(job: dict[str, Any]) -> None:
    notes = Path(f"{job['config']['run']}.taken") / f"{os.getpid()}.jsonl"
    notes.parent.mkdir(exist_ok=True)
    batches = feed.Feed.batches

    def noted(self: feed.Feed, start: int, stop: int) -> Iterator[feed.Batch]:
        with notes.open("a") as file:
            for batch in batches(self, start, stop):
                # Slow enough to be disturbed.
                time.sleep(0.1)
                yield batch
                # After the step, and only then: what was ready ahead of use was not trained on.
                taken = [self.rank, self.world_size, batch.step, batch.rows.tolist()]
                file.write(json.dumps(taken) + "\n")
                file.flush()

    feed.Feed.batches = noted  # type: ignore[method-assign]
    worker.work(job)


def taken(run: str) -> list[tuple[int, int, int, list[int]]]:
    """(rank, world size, step, rows) of every batch that was trained on; torn last lines are left out."""
    found = []
    for notes in Path(f"{run}.taken").iterdir():
        lines = notes.read_text().split("\n")
        found += [tuple(json.loads(line)) for line in lines[:-1]]
    return found
