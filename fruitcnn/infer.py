"""One part of the plan -> its rows: threads read and decode while the model runs. Inside each actor of classify.

The inputs of a part are cut into batches, in plan order; each batch has one pixel array, filled by the threads, and
goes through the model whole. A rejected input keeps its place in the batch as a black picture, so what the model sees
does not depend on timing, on the number of threads, or on who runs the part. Pixels never leave the actor.
"""

import hashlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from fruitcnn import fetch, images, storage
from fruitcnn.books import PartBooks, part_path
from fruitcnn.inputs import Input
from fruitcnn.parts import Floats, PartError, Rows, encode, read_books, top
from fruitcnn.plan import Plan, PlanReader, load_plan

PART_ATTEMPTS = 3
"""How often an actor tries a part whose store fails (after the store's own retries), before the job fails."""

RETRY_SECONDS = (2.0, 10.0)
CALLS_PER_ACTOR = 2
"""Parts that one actor works on at a time: the next one is read ahead while the model ends the current one."""

_BATCHES_AHEAD = 2


class Model(Protocol):
    """What frozen.load gives."""

    @property
    def labels(self) -> Sequence[str]:
        """By index of the probabilities."""

    @property
    def input_px(self) -> tuple[int, int]:
        """(height, width)."""

    def predict(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """Uint8 (N, H, W, 3) -> float32 (N, classes) probabilities."""


class Options(BaseModel):
    """What an actor needs to know besides the plan."""

    model_config = ConfigDict(frozen=True)

    batch_size: int
    top_k: int
    probabilities: bool
    min_confidence: float
    max_pixels: int
    witness: str | None = Field(default=None, description="An object on S3 that could be read when the run started.")
    num_threads: int = Field(description="Threads that read and decode, and of the model.")


class Outcome(BaseModel):
    """What an actor reports of a part: its books, or why the store kept it from being written."""

    model_config = ConfigDict(frozen=True)

    part: int
    books: PartBooks | None = None
    error: str | None = None


class _Facts(NamedTuple):
    id: str
    sha256: str | None
    width: int | None
    height: int | None
    cause: str | None
    detail: str | None


class PartClassifier:
    """Classifies and commits parts of one plan, several at a time."""

    def __init__(self, predictions: str, plan: Plan, model: Model, options: Options) -> None:
        self.predictions = predictions
        self.plan = plan
        self.model = model
        self.options = options
        self.reader = PlanReader(predictions, plan)
        self.pool = ThreadPoolExecutor(options.num_threads, thread_name_prefix="decode")
        self.model_lock = threading.Lock()

    def run(self, part: int) -> Outcome:
        """Classify and commit one part, trying again while the store fails."""
        for attempt in range(PART_ATTEMPTS):
            try:
                return Outcome(part=part, books=self.commit(part))
            except PartError as error:
                return Outcome(part=part, error=str(error))
            except OSError as error:
                last = str(error)
            if attempt < PART_ATTEMPTS - 1:
                time.sleep(RETRY_SECONDS[attempt])
        return Outcome(part=part, error=f"part {part} failed {PART_ATTEMPTS} times, at last: {last}")

    def commit(self, part: int) -> PartBooks:
        """Classify one part and put its file; if another writer was first, the books are those of its file."""
        inputs = self.reader.read(part)
        rows = classify_part(inputs, self.model, self.pool, self.model_lock, self.options)
        if self.options.witness and "access-denied" in rows.causes and not any(rows.sha256):
            storage.read_range(self.options.witness, 0, 1)  # refused as well: then it is no fact about these pictures
        metadata = {
            "run_id": self.plan.run_id,
            "part": part,
            "model_hash": self.plan.model_hash,
            "library_version": self.plan.library_version,
        }
        data = encode(rows, self.model.labels, self.options.min_confidence, metadata)
        uri = storage.join(self.predictions, part_path(part))
        if not storage.put_if_absent(uri, data):
            data = storage.read(uri)
        return read_books(part, data, self.plan.run_id, len(inputs))


class Actor(PartClassifier):
    """What Ray Data starts on each node: opens the plan and the model, then takes part numbers."""

    def __init__(self, predictions: str, model_uri: str, runtime: str, options: Options) -> None:
        from fruitcnn import frozen

        plan = load_plan(predictions)
        assert plan is not None, f"no plan under {predictions}"
        super().__init__(predictions, plan, frozen.load(model_uri, runtime, options.num_threads), options)

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, list[str]]:
        """Ray Data's batch of part numbers -> an Outcome as JSON for each."""
        return {"outcome": [self.run(int(part)).model_dump_json() for part in batch["part"]]}


def classify_part(
    inputs: Sequence[Input], model: Model, pool: ThreadPoolExecutor, model_lock: threading.Lock, options: Options
) -> Rows:
    """Read, decode and classify inputs; StorageError if the store fails as a whole.

    model_lock: one model call at a time, each with all cores.
    """
    facts: list[_Facts] = []
    indices, scores, all_probabilities = [], [], []
    for pixels, batch_facts in _decoded_batches(inputs, model.input_px, pool, options):
        with model_lock:
            probabilities = model.predict(pixels)
        batch_indices, batch_scores = top(probabilities, options.top_k)
        indices.append(batch_indices)
        scores.append(batch_scores)
        if options.probabilities:
            all_probabilities.append(probabilities)
        facts += batch_facts
    ids, digests, widths, heights, causes, details = (list(column) for column in zip(*facts, strict=True))
    return Rows(
        ids, digests, widths, heights, causes, details,
        top_indices=np.concatenate(indices),
        top_scores=np.concatenate(scores),
        probabilities=np.concatenate(all_probabilities) if options.probabilities else None,
    )  # fmt: skip


def _decoded_batches(
    inputs: Sequence[Input], input_px: tuple[int, int], pool: ThreadPoolExecutor, options: Options
) -> Iterator[tuple[npt.NDArray[np.uint8], list[_Facts]]]:
    """The batches in order, each whole; the pool works up to _BATCHES_AHEAD batches ahead."""
    waiting: deque[tuple[npt.NDArray[np.uint8], list[Future[list[_Facts]]]]] = deque()
    try:
        for first in range(0, len(inputs), options.batch_size):
            stop = min(first + options.batch_size, len(inputs))
            pixels = np.zeros((stop - first, *input_px, 3), np.uint8)
            waiting.append((pixels, [
                pool.submit(_decode_chunk, inputs[start:end], pixels[start - first : end - first], options.max_pixels)
                for start, end in fetch.chunks(inputs, first, stop)
            ]))  # fmt: skip
            if len(waiting) > _BATCHES_AHEAD:
                yield _join(*waiting.popleft())
        while waiting:
            yield _join(*waiting.popleft())
    finally:
        for _, futures in waiting:
            for future in futures:
                future.cancel()


def _join(
    pixels: npt.NDArray[np.uint8], futures: Sequence[Future[list[_Facts]]]
) -> tuple[npt.NDArray[np.uint8], list[_Facts]]:
    return pixels, [facts for future in futures for facts in future.result()]


def _decode_chunk(inputs: Sequence[Input], pixels: npt.NDArray[np.uint8], max_pixels: int) -> list[_Facts]:
    """Fetch inputs and decode them into pixels (N, H, W, 3), which starts black."""
    input_px = pixels.shape[1], pixels.shape[2]
    return [_decode(found, pixels[i], input_px, max_pixels) for i, found in enumerate(fetch.fetch(inputs))]


def _decode(found: fetch.Fetched, pixels: npt.NDArray[np.uint8], input_px: tuple[int, int], max_pixels: int) -> _Facts:
    if found.data is None:
        return _Facts(found.id, None, None, None, found.cause, found.detail)
    digest = hashlib.sha256(found.data).hexdigest()
    try:
        decoded = images.decode(found.data, input_px, max_pixels)
    except images.ImageError as error:
        return _Facts(found.id, digest, None, None, error.cause, error.detail)
    pixels[:] = decoded.pixels
    return _Facts(found.id, digest, decoded.width_px, decoded.height_px, None, None)
