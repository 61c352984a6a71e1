"""The step loop of one worker: feed -> replica -> records, validations, checkpoints; between replica and train. No Ray.

All workers run the same code, come to the same decisions (when to validate, to lower the rate, to end) and meet in the
same collective calls; only rank 0 writes.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fruitcnn import checkpoints, event_files, installed, runs, telemetry
from fruitcnn.feed import Batch, Feed, Pictures
from fruitcnn.recipe import TrainConfig
from fruitcnn.replica import Replica, Score, evaluation_rows
from fruitcnn.runs import Facts
from fruitcnn.sampling import evaluation_batches
from fruitcnn.schedule import is_over, rate_scale

_NUM_RECORDS = 100
_AGREE_EVERY_STEPS = 16
_PARTS = ("training", "evaluation", "checkpoint", "input_wait", "compute", "all_reduce")

Report = Callable[[int, str], None]


class Rows(NamedTuple):
    """Rows of a split to be scored: int64 (n,) numbers of rows, where their pictures are, and int64 (n,) labels."""

    rows: np.ndarray
    pictures: Pictures
    labels: np.ndarray


@dataclass
class _Window:
    """Sums since the last record; seconds of this worker's own."""

    losses: list[Any] = field(default_factory=list)
    rights: list[Any] = field(default_factory=list)
    all_reduces: list[Any] = field(default_factory=list)
    num_rows: int = 0
    input_seconds: float = 0.0
    step_seconds: float = 0.0


class Loop:
    """One worker's way through a run."""

    def __init__(
        self,
        config: TrainConfig,
        facts: Facts,
        feed: Feed,
        replica: Replica,
        validation: Rows,
        report: Report,
        attempt: int = 1,
    ) -> None:
        """`report(step, note)` is called on rank 0 after every record; `attempt` is the start of the group, from 1."""
        self.config, self.facts, self.feed, self.replica = config, facts, feed, replica
        self.validation, self.report, self.is_chief = validation, report, feed.rank == 0
        self.attempt = attempt
        self.window, self.lines = _Window(), list[dict[str, Any]]()
        self.seconds = dict.fromkeys(_PARTS, 0.0)
        self.writer: checkpoints.Writer | None = None
        self.checkpoint_at = self.started = self.first_step_at = 0.0
        self.start = self.done = 0
        self.num_lines_logged = 0

    def run(self) -> None:
        """Train from the newest checkpoint to the last step. Raises StorageError if a checkpoint cannot be written."""
        self.start = self.done = self._resume()
        self.started = self.checkpoint_at = time.monotonic()
        record_every = max(1, self.facts.num_steps // _NUM_RECORDS)
        evaluate_at = evaluation_steps(self.facts.num_steps, self.config.num_evaluations)
        last = self.start if self._is_over() else self.facts.num_steps
        for batch in self._timed(self.feed.batches(self.start, last)):
            self._step(batch)
            if self.done % record_every == 0 or self.done == last:
                self._record()
            if self.done in evaluate_at:
                self._validate()
                if self._is_over():
                    break
            elif self.done % _AGREE_EVERY_STEPS == 0 and self._checkpoint_is_due():
                self.replica.average_statistics()
                self._checkpoint(None)
        if self.writer:
            self._checkpointing(self.writer.wait)
        elapsed = time.monotonic() - self.started
        self.seconds["training"] = elapsed - self.seconds["evaluation"] - self.seconds["checkpoint"]

    def _step(self, batch: Batch) -> None:
        asked = time.monotonic()
        loss, right, all_reduce = self.replica.step(batch.images, batch.labels, batch.keys, batch.step)
        if not self.first_step_at:
            float(loss)  # Waits until the step is done, on a GPU too.
            self.first_step_at = time.time()
        window = self.window
        window.losses.append(loss)
        window.rights.append(right)
        window.all_reduces.append(all_reduce)
        window.num_rows += len(batch.labels)
        window.step_seconds += time.monotonic() - asked
        self.done = batch.step + 1

    def finish(self, tests: dict[str, Rows], start_seconds: dict[str, float]) -> None:
        """Score the best checkpoint on each of `tests`, write result.json; `start_seconds`: the parts of the start."""
        self.replica.sum_over_workers([0.0])  # All wait here until rank 0 has written its last checkpoint.
        best = best_checkpoint(self.config.run)
        assert best is not None, "a run ends with a validated checkpoint"
        self.replica.restore(checkpoints.load(self.config.run, best))
        scores = {name: self._score(rows)._asdict() for name, rows in tests.items()}
        if not self.is_chief:
            return
        facts = checkpoints.facts(self.config.run, best)
        validation = {key: facts[key] for key in ("loss", "accuracy", "num_rows")}
        images = (self.done - self.start) * self.config.global_batch_size
        runs.write_result(
            self.config.run,
            {
                "best_checkpoint": best,
                "num_steps": self.done,
                "images_seen": self.done * self.config.global_batch_size,
                "ended_early": self.done < self.facts.num_steps,
                "num_workers": self.feed.world_size,
                "validation": validation,
                "test": None,
                **scores,
                "seconds": {"start": sum(start_seconds.values()), **self.seconds},
                "start_seconds": start_seconds,
                "images_per_second": images / max(1e-9, self.seconds["training"]),
                "versions": installed.versions(runs.DECIDING_PACKAGES),
                "finished_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            },
        )

    def _resume(self) -> int:
        state = checkpoints.latest(self.config.run)
        start = state.step if state else 0
        if state:
            self.replica.restore(state)
        self.lines = runs.read_metrics(self.config.run, start)
        self.num_lines_logged = len(self.lines)
        self._set_rate()
        if self.is_chief:
            event_files.cut(self.config.run, start)
            best = best_checkpoint(self.config.run)
            score = checkpoints.facts(self.config.run, best)["accuracy"] if best else -1.0
            self.writer = checkpoints.Writer(self.config.run, self.config.keep_checkpoints, best, score)
        return start

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            waited = time.monotonic() - asked
            self.seconds["input_wait"] += waited
            self.window.input_seconds += waited
            if batch is None:
                return
            yield batch

    def _record(self) -> None:
        asked = time.monotonic()
        window, self.window = self.window, _Window()
        sums = [float(np.sum(window.losses)), float(np.sum(window.rights)), window.num_rows]
        loss, right, num_rows = self.replica.sum_over_workers(sums)
        if not (np.isfinite(loss) and self.replica.is_finite()):
            what = "the weights grew without bound" if np.isfinite(loss) else f"the loss became {loss}"
            raise runs.TrainError(
                f"--learning-rate: got {self.config.learning_rate}, with which {what} by step {self.done}; "
                f"wanted finite loss and weights: try a tenth of the learning rate"
            )
        all_reduce = float(np.sum(window.all_reduces))
        compute = window.step_seconds + time.monotonic() - asked - all_reduce
        self.seconds["all_reduce"] += all_reduce
        self.seconds["compute"] += compute
        seconds = {"input": window.input_seconds, "compute": compute, "all_reduce": all_reduce}
        split = {f"{name}_seconds": round(value, 4) for name, value in seconds.items()}
        rate = {"learning_rate": float(self.replica.rate(self.done - 1))}
        steps, total, wait = len(window.losses), sum(seconds.values()), seconds["input"]
        place = (self.config.run, self.attempt, self.feed.rank, self.done)
        telemetry.window_done(*place, steps, window.num_rows, total, wait)
        rate["images_per_second"] = round(num_rows / max(1e-9, sum(seconds.values())), 1)
        self._note("train", loss / num_rows, right / num_rows, **rate, **split, memory_bytes=runs.own_memory_bytes())
        if self.is_chief:
            note = f"loss {loss / num_rows:.3f}, accuracy {right / num_rows:.1%}, " + _shares(seconds)
            self.report(self.done * self.config.global_batch_size, note)

    def _note(self, kind: str, loss: float, accuracy: float, **more: float) -> None:
        line = {"kind": kind, "step": self.done, "images_seen": self.done * self.config.global_batch_size}
        line |= {"loss": float(loss), "accuracy": float(accuracy)}
        seconds = round(time.monotonic() - self.started, 3)
        self.lines.append(line | {"seconds": seconds, "time": round(time.time(), 3)} | more)

    def _score(self, rows: Rows) -> Score:
        rank, world_size = self.feed.rank, self.feed.world_size
        at_once = evaluation_rows(self.config)
        batches = list(evaluation_batches(len(rows.rows), rank, world_size, at_once))
        pictures = rows.pictures.ahead(rows.rows[batch] for batch in batches)
        return self.replica.evaluate(zip(pictures, (rows.labels[batch] for batch in batches), strict=True))

    def _validate(self) -> None:
        asked = time.monotonic()
        self.replica.average_statistics()
        score = self._score(self.validation)
        self.seconds["evaluation"] += time.monotonic() - asked
        self._note("validation", score.loss, score.accuracy)
        self._set_rate()
        self._checkpoint(score)

    def _validation_losses(self) -> list[float]:
        return [line["loss"] for line in self.lines if line["kind"] == "validation"]

    def _set_rate(self) -> None:
        self.replica.rate.scale.assign(rate_scale(self._validation_losses(), self.config))

    def _is_over(self) -> bool:
        return is_over(self._validation_losses(), self.config)

    def _checkpoint_is_due(self) -> bool:
        due = self.is_chief and time.monotonic() - self.checkpoint_at > self.config.checkpoint_seconds
        return bool(self.replica.sum_over_workers([float(due)])[0])

    def _checkpoint(self, score: Score | None) -> None:
        self.checkpoint_at = time.monotonic()
        if self.writer:
            self._checkpointing(self._write, self.writer, score)

    def _write(self, writer: checkpoints.Writer, score: Score | None) -> None:
        lines, news = list(self.lines), self.lines[self.num_lines_logged :]
        self.num_lines_logged = len(lines)

        def write_curves() -> None:
            runs.write_metrics(self.config.run, lines)
            event_files.write(self.config.run, news)

        state = self.replica.state(self.done)
        writer.submit(state, score.accuracy if score else None, score._asdict() if score else {}, write_curves)

    def _checkpointing(self, function: Callable[..., None], *arguments: Any) -> None:
        asked = time.monotonic()
        function(*arguments)
        self.seconds["checkpoint"] += time.monotonic() - asked


def _shares(seconds: dict[str, float]) -> str:
    """Return where the time of the steps went, for the progress bar."""
    total = max(1e-9, sum(seconds.values()))
    return f"input wait {seconds['input'] / total:.1%}, all-reduce {seconds['all_reduce'] / total:.1%}"


def evaluation_steps(num_steps: int, num_evaluations: int) -> set[int]:
    """Return the steps after which to validate: evenly spaced, the last step always among them."""
    return {round(num_steps * number / num_evaluations) for number in range(1, num_evaluations + 1)} - {0}


def best_checkpoint(run: str) -> str | None:
    """Return the name of the validated checkpoint with the highest accuracy, the newest of equals."""
    scored = [(checkpoints.facts(run, name).get("accuracy"), name) for name in checkpoints.complete(run)]
    known = [pair for pair in scored if pair[0] is not None]
    return max(known)[1] if known else None
