"""What Ray runs in each worker of tests that disturb training: the real thing, with a note of every batch it takes.

On a cluster it goes along inside the submitted code: see code_that_notes.
"""

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fruitcnn import feed, worker
from fruitcnn.sampling import Order, rank_slice

FOLDER = "FRUITCNN_NOTES"
"""Names the folder of the notes where the run's own is in a bucket; all hosts of a test see the same disk."""


def work(job: dict[str, Any]) -> None:
    # On hosts of their own, two workers may have one process id.
    notes = _notes(job["config"]["run"]) / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
    notes.parent.mkdir(parents=True, exist_ok=True)
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
    for notes in _notes(run).iterdir():
        lines = notes.read_text().split("\n")
        found += [tuple(json.loads(line)) for line in lines[:-1]]
    return found


def _notes(run: str) -> Path:
    folder = os.environ.get(FOLDER)
    return Path(folder) / run.rpartition("/")[2] if folder else Path(f"{run}.taken")


def rows_by_step(run: str, order: Order, batch: int, num_steps: int) -> dict[int, list[int]]:
    """Step -> rows of the split that the run trained on, of all ranks in order: those of the plan, or it fails.

    Every note is held against the plan, those of steps that were lost again too; every step was taken by a whole group.
    """
    notes = taken(run)
    train_rows = np.array(sorted({row for *_, rows in notes for row in rows}))
    assert len(train_rows) == order.num_rows, "rows of validation, or rows never trained on"
    found, ranks = dict[int, list[int]](), dict[tuple[int, int], set[int]]()
    for rank, world_size, step, rows in notes:
        planned = train_rows[order.batch(step, batch)[1]]
        expected = planned[rank_slice(batch, rank, world_size)].tolist()
        assert rows == expected, f"incorrect ids at step {step} of rank {rank} of {world_size}"
        ranks.setdefault((step, world_size), set()).add(rank)
        found[step] = planned.tolist()
    whole = {step for (step, world_size), present in ranks.items() if len(present) == world_size}
    assert whole == set(range(num_steps)), "missing steps"
    return found


def code_that_notes(root: Path, folder: Path) -> Path:
    """A copy in `folder` of what jobs.submit sends of the checkout at `root`, in which training notes what it takes."""
    from fruitcnn import submission

    for name in submission.FOLDERS:
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    for name in submission.FILES:
        shutil.copy(root / name, folder / name)
    shutil.copy(__file__, folder / "fruitcnn" / "recording_work.py")
    train = folder / "fruitcnn" / "train.py"
    line = "from fruitcnn.worker import work\n"
    assert train.read_text().count(line) == 1
    train.write_text(train.read_text().replace(line, "from fruitcnn.recording_work import work\n"))
    return folder
