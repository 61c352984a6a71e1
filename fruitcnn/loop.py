"""The step loop of one worker: feed -> replica -> records, validations, checkpoints; between replica and train. No Ray.

All workers run the same code and meet in the same collective calls; only rank 0 writes.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fruitcnn import checkpoints, runs
from fruitcnn.feed import Batch, Feed
from fruitcnn.recipe import TrainConfig
from fruitcnn.replica import Replica, Score
from fruitcnn.runs import Facts
from fruitcnn.sampling import evaluation_slice

_NUM_RECORDS = 100
_AGREE_EVERY_STEPS = 16

Report = Callable[[int, str], None]


@dataclass
class Rows:
    """Pictures and labels of a split to be scored: uint8 (N, H, W, 3) and int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray


@dataclass
class _Window:
    """Sums since the last record; seconds of this worker's own."""

    losses: list[Any] = field(default_factory=list)
    rights: list[Any] = field(default_factory=list)
    num_rows: int = 0
    wait_seconds: float = 0.0


class Loop:
    """One worker's way through a run."""

    def __init__(
        self, config: TrainConfig, facts: Facts, feed: Feed, replica: Replica, validation: Rows, report: Report
    ) -> None:
        """`report(step, note)` is called on rank 0 after every record."""
        self.config, self.facts, self.feed, self.replica = config, facts, feed, replica
        self.validation, self.report, self.is_chief = validation, report, feed.rank == 0
        self.window, self.lines = _Window(), list[dict[str, Any]]()
        self.seconds = {"training": 0.0, "evaluation": 0.0, "input_wait": 0.0}
        self.writer: checkpoints.Writer | None = None
        self.checkpoint_at = self.started = self.resumed_at = 0.0
        self.num_steps_here = 0

    def run(self) -> None:
        """Train from the newest checkpoint to the last step. Raises StorageError if a checkpoint cannot be written."""
        start = self._resume()
        self.started = self.checkpoint_at = time.monotonic()
        record_every = max(1, self.facts.num_steps // _NUM_RECORDS)
        evaluate_at = evaluation_steps(self.facts.num_steps, self.config.num_evaluations)
        for batch in self._timed(self.feed.batches(start, self.facts.num_steps)):
            loss, right = self.replica.step(batch.images, batch.labels, batch.keys)
            self.window.losses.append(loss)
            self.window.rights.append(right)
            self.window.num_rows += len(batch.labels)
            done = batch.step + 1
            if done % record_every == 0 or done == self.facts.num_steps:
                self._record(done)
            if done in evaluate_at:
                self._checkpoint(done, self._validate(done).accuracy)
            elif done % _AGREE_EVERY_STEPS == 0 and self._checkpoint_is_due():
                self._checkpoint(done, None)
        self.num_steps_here = self.facts.num_steps - start
        self.seconds["training"] = time.monotonic() - self.started - self.seconds["evaluation"]
        if self.writer:
            self.writer.wait()

    def finish(self, test: Rows | None, start_seconds: float) -> None:
        """Score the best checkpoint on `test` and write result.json; `start_seconds` passed until the first step."""
        self.replica.sum_over_workers([0.0])  # All wait here until rank 0 has written its last checkpoint.
        best = best_checkpoint(self.config.run)
        assert best is not None, "a run ends with a validated checkpoint"
        self.replica.restore(checkpoints.load(self.config.run, best))
        score = self._score(test) if test else None
        if not self.is_chief:
            return
        facts = checkpoints.facts(self.config.run, best)
        validation = {key: facts[key] for key in ("loss", "accuracy", "num_rows")}
        images = self.num_steps_here * self.config.global_batch_size
        runs.write_result(
            self.config.run,
            {
                "best_checkpoint": best,
                "num_steps": self.facts.num_steps,
                "images_seen": self.facts.num_steps * self.config.global_batch_size,
                "num_workers": self.feed.world_size,
                "validation": validation,
                "test": score._asdict() if score else None,
                "seconds": {"start": start_seconds, **self.seconds},
                "images_per_second": images / max(1e-9, self.seconds["training"]),
                "versions": runs.versions(),
                "finished_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            },
        )

    def _resume(self) -> int:
        state = checkpoints.latest(self.config.run)
        if state:
            self.replica.restore(state)
        if self.is_chief:
            start = state.step if state else 0
            self.lines = runs.read_metrics(self.config.run, start)
            best = best_checkpoint(self.config.run)
            score = checkpoints.facts(self.config.run, best)["accuracy"] if best else -1.0
            self.writer = checkpoints.Writer(self.config.run, self.config.keep_checkpoints, best, score)
        return state.step if state else 0

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self.seconds["input_wait"] += time.monotonic() - asked
            if batch is None:
                return
            yield batch

    def _record(self, done: int) -> None:
        window, self.window = self.window, _Window()
        sums = [float(np.sum(window.losses)), float(np.sum(window.rights)), window.num_rows]
        loss, right, num_rows = self.replica.sum_over_workers(sums)
        if not np.isfinite(loss):
            raise runs.TrainError(
                f"--learning-rate: got {self.config.learning_rate}, with which the loss became {loss} by step {done}; "
                "wanted a finite loss: try a tenth of the learning rate"
            )
        if self.is_chief:
            self._note("train", done, loss / num_rows, right / num_rows)
            elapsed = time.monotonic() - self.started - self.seconds["evaluation"]
            waited = self.seconds["input_wait"] / max(1e-9, elapsed)
            note = f"loss {loss / num_rows:.3f}, accuracy {right / num_rows:.1%}, input wait {waited:.1%}"
            self.report(done * self.config.global_batch_size, note)

    def _note(self, kind: str, done: int, loss: float, accuracy: float) -> None:
        line = {"kind": kind, "step": done, "images_seen": done * self.config.global_batch_size}
        seconds = round(time.monotonic() - self.started, 3)
        self.lines.append(line | {"loss": float(loss), "accuracy": float(accuracy), "seconds": seconds})

    def _score(self, rows: Rows) -> Score:
        piece = evaluation_slice(len(rows.labels), self.feed.rank, self.feed.world_size)
        return self.replica.evaluate(rows.images[piece], rows.labels[piece])

    def _validate(self, done: int) -> Score:
        asked = time.monotonic()
        self.replica.average_statistics()
        score = self._score(self.validation)
        self.seconds["evaluation"] += time.monotonic() - asked
        if self.is_chief:
            self._note("validation", done, score.loss, score.accuracy)
        self._validation = score
        return score

    def _checkpoint_is_due(self) -> bool:
        due = self.is_chief and time.monotonic() - self.checkpoint_at > self.config.checkpoint_seconds
        return bool(self.replica.sum_over_workers([float(due)])[0])

    def _checkpoint(self, done: int, accuracy: float | None) -> None:
        if accuracy is None:
            self.replica.average_statistics()
        state = self.replica.state(done)
        self.checkpoint_at = time.monotonic()
        if self.writer:
            facts = self._validation._asdict() if accuracy is not None else {}
            runs.write_metrics(self.config.run, self.lines)
            self.writer.submit(state, accuracy, facts)


def evaluation_steps(num_steps: int, num_evaluations: int) -> set[int]:
    """Return the steps after which to validate: evenly spaced, the last step always among them."""
    return {round(num_steps * number / num_evaluations) for number in range(1, num_evaluations + 1)} - {0}


def best_checkpoint(run: str) -> str | None:
    """Return the name of the validated checkpoint with the highest accuracy, the newest of equals."""
    scored = [(checkpoints.facts(run, name).get("accuracy"), name) for name in checkpoints.complete(run)]
    known = [pair for pair in scored if pair[0] is not None]
    return max(known)[1] if known else None
