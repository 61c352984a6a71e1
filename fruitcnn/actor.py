"""A part of the plan -> its file and its books: classified, committed, tried again. Between infer and execute.

What Ray Data starts on each node, and what this machine's own processes do.
"""

import gc
import io
import time
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from fruitcnn import storage, telemetry
from fruitcnn.books import PartBooks, part_path
from fruitcnn.infer import Model, Workers, open_models
from fruitcnn.inputs import Input
from fruitcnn.orders import Options, Outcome
from fruitcnn.parts import PartError, read_books, rejected_rows, replace_rows, to_bytes, to_table
from fruitcnn.plan import Plan, PlanReader, load_plan

PART_ATTEMPTS = 3
"""How often a part whose store fails (after the store's own retries) is tried, before the job fails."""

RETRY_SECONDS = (2.0, 10.0)


class PartClassifier:
    """Classifies and commits parts of one plan, several at a time.

    models: one for every thread that shall run one; each is used by one thread at a time.
    """

    def __init__(self, predictions: str, plan: Plan, models: Sequence[Model], options: Options) -> None:
        self.predictions = predictions
        self.plan = plan
        self.labels, self.limits = models[0].labels, models[0].limits
        self.options = options
        self.reader = PlanReader(predictions, plan)
        self.workers = Workers(models, options)

    def run(self, part: int) -> Outcome:
        """Classify and commit one part, trying again while the store fails."""
        for attempt in range(PART_ATTEMPTS):
            began = time.monotonic()
            try:
                books = self.retry(part) if self.options.retry else self.commit(part)
                rows, rejected, seconds = books.num_rows, books.num_rejected, time.monotonic() - began
                telemetry.part_done(self.plan.run_id, part, attempt + 1, rows, rejected, seconds)
                return Outcome(
                    part=part, books=books, effort=self.workers.meter.take(), num_cpus=self.options.num_threads
                )
            except PartError as error:
                return Outcome(part=part, error=str(error))
            except OSError as error:
                last = str(error)
                telemetry.part_failed(self.plan.run_id, part, attempt + 1, last)
            if attempt < PART_ATTEMPTS - 1:
                time.sleep(RETRY_SECONDS[attempt])
        return Outcome(part=part, error=f"part {part} failed {PART_ATTEMPTS} times, at last: {last}")

    def commit(self, part: int) -> PartBooks:
        """Classify one part and put its file; if another writer was first, the books are those of its file."""
        inputs = self.reader.read(part)
        data = to_bytes(self._table(part, inputs))
        uri = storage.join(self.predictions, part_path(part))
        if not storage.put_if_absent(uri, data):
            data = storage.read(uri)
        return read_books(part, data, self.plan.run_id, len(inputs))

    def retry(self, part: int) -> PartBooks:
        """Classify the rejected rows of a part again and replace its file, in one step; other rows stay as they are."""
        inputs = self.reader.read(part)
        uri = storage.join(self.predictions, part_path(part))
        data = storage.read(uri)
        books = read_books(part, data, self.plan.run_id, len(inputs))
        table = pq.read_table(io.BytesIO(data))
        numbers = rejected_rows(table, self.options.retry_causes)
        if not numbers:
            return books
        rows = self._table(part, [inputs[number] for number in numbers])
        data = to_bytes(replace_rows(table, numbers, rows))
        storage.write(uri, data)
        return read_books(part, data, self.plan.run_id, len(inputs))

    def _table(self, part: int, inputs: Sequence[Input]) -> pa.Table:
        rows = self.workers.rows(inputs)
        if self.options.witness and "access-denied" in rows.causes and not any(rows.sha256):
            storage.read_range(self.options.witness, 0, 1)  # refused as well: then it is no fact about these pictures
        metadata = {
            "run_id": self.plan.run_id,
            "part": part,
            "model_hash": self.plan.model_hash,
            "library_version": self.plan.library_version,
        }
        return to_table(rows, self.labels, self.options.min_confidence, metadata, self.limits)


def opened(predictions: str, models: Sequence[Model], options: Options) -> PartClassifier:
    """What classifies parts of the plan under `predictions`, in a process that does nothing else."""
    plan = load_plan(predictions)
    assert plan is not None, f"no plan under {predictions}"
    classifier = PartClassifier(predictions, plan, models, options)
    gc.freeze()  # what is there by now stays: Python's collector need not walk it with every part
    return classifier


class ClassifyActor:
    """What Ray Data starts on each node: opens the plan and the model, then takes part numbers."""

    def __init__(self, predictions: str, model_uri: str, runtime: str, options: Options) -> None:
        self._classifier = opened(predictions, open_models(model_uri, runtime, options.num_threads), options)

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, list[str]]:
        """Ray Data's batch of part numbers -> an Outcome as JSON for each."""
        return {"outcome": [self._classifier.run(int(part)).model_dump_json() for part in batch["part"]]}
