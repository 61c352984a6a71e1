"""The inputs of a part -> its rows: some threads read and decode while others run the model. Inside each actor.

The inputs of a part are cut into batches, in plan order. A batch is the work of one thread from the first byte to the
probabilities, with a model of its own that uses one core: nothing to wait for, and nothing that depends on timing, on
the number of threads, or on who runs the part. Of equal files the model sees one, while they are remembered; a
rejected input has no place in a batch. Objects on S3 are fetched ahead, many at a time. Pixels never leave the actor.
"""

import hashlib
import queue
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fruitcnn import familiar, fetch, images, remembered, storage
from fruitcnn.budget import Budget, left_for_pictures, return_large_blocks
from fruitcnn.effort import Effort, Meter
from fruitcnn.familiar import Answers, Limits
from fruitcnn.inputs import Input
from fruitcnn.orders import Options
from fruitcnn.parts import Rows, top
from fruitcnn.remembered import Answered, Batch, Entry, Facts, Memory

REQUESTS_IN_FLIGHT = 32
"""Ranged and whole reads of S3 that one actor has under way at a time."""


class Model(Protocol):
    """What frozen.load gives."""

    @property
    def labels(self) -> Sequence[str]:
        """By index of the probabilities."""

    @property
    def input_px(self) -> tuple[int, int]:
        """(height, width)."""

    @property
    def limits(self) -> Limits:
        """From where on an answer is unsure."""

    @property
    def rows_per_call(self) -> int | None:
        """Pictures that its runtime takes at once, at most; None: as many as it is given."""

    def answer(self, pixels: npt.NDArray[np.uint8]) -> Answers:
        """Uint8 (N, H, W, 3) -> probabilities and scores."""


def open_models(model_uri: str, runtime: str, num_threads: int) -> list[Model]:
    """A model for every thread, with one core; of TensorFlow, which is one per process, one with all of them."""
    from fruitcnn import frozen

    if runtime in ("tensorflow", "keras"):
        return [frozen.load(model_uri, runtime, num_threads)]
    return [frozen.load(model_uri, runtime, 1) for _ in range(num_threads)]


class Workers:
    """The threads of an actor, its models, and its requests to S3; shared by the parts that it works on.

    remembers: whether a file is classified once only, if it repeats soon.
    """

    def __init__(self, models: Sequence[Model], options: Options, *, remembers: bool = True) -> None:
        self.options = options
        self.input_px, self.num_labels = models[0].input_px, len(models[0].labels)
        self._models: queue.SimpleQueue[Model] = queue.SimpleQueue()
        for model in models:
            self._models.put(model)
        self.meter = Meter()
        return_large_blocks()
        self._memory = Memory(remembered.num_inputs(options.memory_bytes, self.num_labels) if remembers else 0)
        self._steady: bool | None = None
        self._budget = Budget(left_for_pictures(options.memory_bytes - options.memory_bytes // remembered.SHARE))
        self._pool = ThreadPoolExecutor(options.num_threads, thread_name_prefix="batch")
        self._requests = ThreadPoolExecutor(REQUESTS_IN_FLIGHT, thread_name_prefix="request")

    def rows(self, inputs: Sequence[Input]) -> Rows:
        """Read, decode and classify the inputs of a part; StorageError if the store fails as a whole."""
        waiting: deque[Future[Answered]] = deque()
        batches: list[Answered] = []
        try:
            for start, stop in fetch.cut_batches(inputs, self.options.batch_size):
                waiting.append(self._pool.submit(self._classify, self._fetched(inputs, start, stop)))
                if len(waiting) > 2 * self.options.num_threads:  # what is fetched ahead lies in memory
                    batches.append(waiting.popleft().result())
            batches += [future.result() for future in waiting]
        finally:
            for future in waiting:
                future.cancel()
        return _join(batches, self.options)

    def _fetched(self, inputs: Sequence[Input], start: int, stop: int) -> Iterable[fetch.Fetched]:
        """The files of inputs[start:stop]: read when they are asked for; on S3 asked for at once, many at a time."""
        chunks = [inputs[first:last] for first, last in fetch.chunks(inputs, start, stop)]
        first = inputs[start]
        if not storage.is_s3(first.container or first.name):
            return (found for chunk in chunks for found in fetch.fetch(chunk))
        asked = [self._requests.submit(_fetch_all, chunk) for chunk in chunks]
        return (found for future in asked for found in future.result())

    def _classify(self, fetched: Iterable[fetch.Fetched]) -> Answered:
        batch, began = Batch(self._recall), time.thread_time()
        for found in fetched:
            digest = hashlib.sha256(found.data).hexdigest() if found.data is not None else None
            if not (digest and batch.take_repeat(found.id, digest)):
                batch.take(*self._decode(found, digest))
        prepare_seconds, began = time.thread_time() - began, time.perf_counter()
        answered = batch.answered(self._answer(batch.pictures))
        model_seconds = time.perf_counter() - began
        self._memory.add(answered)
        self.meter.add(
            Effort(
                num_inputs=len(batch.facts),
                num_repeats=batch.num_repeats,
                prepare_seconds=prepare_seconds,
                model_seconds=model_seconds,
            )
        )
        return answered

    def _recall(self, digest: str) -> Entry | None:
        """What is remembered of a file, if that is what would come out again."""
        entry = self._memory.get(digest)
        return entry if entry and (entry.facts.cause or self._is_steady()) else None

    def _is_steady(self) -> bool:
        """Whether this model's answers do not depend on what else is asked; tried with the first file that repeats."""
        if self._steady is None:
            with self._model() as model:
                rows = model.rows_per_call
                self._steady = rows is not None and remembered.is_steady(model.answer, model.input_px, rows)
        return self._steady

    def _answer(self, pictures: list[images.Pixels]) -> Answers:
        if not pictures:
            return Answers(np.zeros((1, self.num_labels), np.float32), np.zeros(1, np.float32))
        with self._model() as model:
            return model.answer(np.stack(pictures))

    def _decode(self, found: fetch.Fetched, digest: str | None) -> tuple[Facts, images.Pixels | None]:
        if found.data is None:
            return Facts(found.id, None, None, None, found.cause, found.detail), None
        try:
            decoded = images.decode(found.data, self.input_px, self.options.max_pixels, self._budget.hold)
        except images.ImageError as error:
            return Facts(found.id, digest, None, None, error.cause, error.detail), None
        return Facts(found.id, digest, decoded.width_px, decoded.height_px, None, None), decoded.pixels

    @contextmanager
    def _model(self) -> Iterator[Model]:
        model = self._models.get()
        try:
            yield model
        finally:
            self._models.put(model)


def _join(batches: Sequence[Answered], options: Options) -> Rows:
    facts = [fact for batch in batches for fact in batch.facts]
    ids, digests, widths, heights, causes, details = (list(column) for column in zip(*facts, strict=True))
    probabilities = np.concatenate([batch.answers.probabilities[batch.rows] for batch in batches])
    top_indices, top_scores = top(probabilities, options.top_k)
    return Rows(
        ids, digests, widths, heights, causes, details,
        top_indices=top_indices,
        top_scores=top_scores,
        margins=familiar.margins(probabilities),
        unlike=np.concatenate([batch.answers.unlike[batch.rows] for batch in batches]),
        probabilities=probabilities if options.probabilities else None,
    )  # fmt: skip


def _fetch_all(inputs: Sequence[Input]) -> list[fetch.Fetched]:
    return list(fetch.fetch(inputs))
