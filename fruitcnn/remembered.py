"""What became of files seen shortly before, by the hash of their bytes: a repeat costs reading and hashing. For infer.

A part must hold the same bytes whoever writes it, whatever came before in that process. So an answer may stand for
another one only if the model gives a picture the same bits at any place of a call, beside any others: `is_steady`
tries that.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fruitcnn.familiar import Answers

SHARE = 16
"""One of so many bytes of a process's budget may be taken by what is remembered."""

_INPUT_BYTES = 640
"""What an input takes besides its row of probabilities: measured, with hash, name and its place in two dictionaries."""


class Facts(NamedTuple):
    """What a row says of a file itself. cause None: it is a picture, and was classified."""

    id: str
    sha256: str | None
    width: int | None
    height: int | None
    cause: str | None
    detail: str | None


class Entry(NamedTuple):
    """A file's facts, and which row of answers is its own: any, for one that was rejected."""

    facts: Facts
    answers: Answers
    row: int


class Answered(NamedTuple):
    """Of each input of a batch its facts and the row of its answer (any, for one that was rejected); never changed.

    seen: sha256 -> which input had these bytes first.
    """

    facts: list[Facts]
    answers: Answers
    rows: list[int]
    seen: Mapping[str, int]

    def entry(self, sha256: str) -> Entry:
        """What became of the file with this hash."""
        which = self.seen[sha256]
        return Entry(self.facts[which], self.answers, self.rows[which])


class Memory:
    """What became of the last max_inputs inputs, by sha256; whole batches are forgotten. Thread-safe.

    A batch holds what was found here for it once more: what repeats often is not forgotten. Nothing is made for a
    single input, so that remembering costs little where nothing repeats.
    """

    def __init__(self, max_inputs: int) -> None:
        self.max_inputs = max_inputs
        self._newest: dict[str, Answered] = {}
        self._batches: deque[Answered] = deque()
        self._num_inputs = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of different files remembered."""
        return len(self._newest)

    def get(self, sha256: str) -> Entry | None:
        """What is remembered of a file with this hash."""
        batch = self._newest.get(sha256)
        return batch.entry(sha256) if batch else None

    def add(self, batch: Answered) -> None:
        """Remember a batch, and forget the oldest until there are at most max_inputs."""
        with self._lock:
            self._newest.update(dict.fromkeys(batch.seen, batch))
            self._batches.append(batch)
            self._num_inputs += len(batch.facts)
            while self._num_inputs > self.max_inputs:
                oldest = self._batches.popleft()
                self._num_inputs -= len(oldest.facts)
                for sha256 in oldest.seen:
                    if self._newest.get(sha256) is oldest:
                        del self._newest[sha256]


class Batch:
    """Inputs of one call: of each its facts, and in which row of the answers its own will be.

    recall: what Memory.get is, or less.
    """

    def __init__(self, recall: Callable[[str], Entry | None]) -> None:
        self.facts: list[Facts] = []
        self.pictures: list[npt.NDArray[np.uint8]] = []
        self.num_repeats = 0
        self._recall = recall
        self._recalled: list[Entry] = []
        self._places: list[int] = []  # ~k: the k-th of those recalled
        self._seen: dict[str, int] = {}  # which of the facts

    def take_repeat(self, input_id: str, sha256: str) -> bool:
        """Take an input if bytes with this hash are known, from this batch or earlier ones; else False."""
        first = self._seen.get(sha256)
        if first is not None:
            self.facts.append(self.facts[first]._replace(id=input_id))
            self._places.append(self._places[first])
        elif entry := self._recall(sha256):
            self._seen[sha256] = len(self.facts)
            self.facts.append(entry.facts._replace(id=input_id))
            self._places.append(~len(self._recalled))
            self._recalled.append(entry)
        else:
            return False
        self.num_repeats += 1
        return True

    def take(self, facts: Facts, pixels: npt.NDArray[np.uint8] | None) -> None:
        """Take an input whose bytes, if there are any, are new; pixels None: it was rejected."""
        if facts.sha256:
            self._seen[facts.sha256] = len(self.facts)
        self.facts.append(facts)
        self._places.append(0 if pixels is None else len(self.pictures))
        if pixels is not None:
            self.pictures.append(pixels)

    def answered(self, answers: Answers) -> Answered:
        """Everything together; answers: of the pictures, or of one that is none where there are no pictures."""
        num = len(answers.unlike)
        rows = [place if place >= 0 else num + ~place for place in self._places]
        if self._recalled:
            earlier = ([column[entry.row] for column in entry.answers] for entry in self._recalled)
            columns = zip(answers, zip(*earlier, strict=True), strict=True)
            answers = Answers(*(np.concatenate([here, np.array(there)]) for here, there in columns))
        return Answered(self.facts, answers, rows, self._seen)


def num_inputs(memory_bytes: int, num_labels: int) -> int:
    """How many inputs a process with this budget remembers."""
    return memory_bytes // SHARE // (_INPUT_BYTES + 4 * num_labels)


def is_steady(
    answer: Callable[[npt.NDArray[np.uint8]], Answers], input_px: tuple[int, int], rows_per_call: int
) -> bool:
    """Whether pictures get the same bits at other places, beside other pictures, and in calls of fewer rows.

    Every place and every number of rows up to rows_per_call is tried, with drawn pictures from faint to glaring.
    """
    contrasts = np.linspace(0.1, 1, rows_per_call).reshape(-1, 1, 1, 1)
    drawn = np.random.default_rng(0).random((rows_per_call, *input_px, 3))
    pixels = (255 * (0.5 + contrasts * (drawn - 0.5))).astype(np.uint8)
    first, places = answer(pixels), np.arange(rows_per_call)
    tried = [places[:num] for num in range(1, rows_per_call)]
    tried += [np.roll(places, 1), places[::-1], *(np.full(rows_per_call, place) for place in (0, rows_per_call - 1))]
    return all(_are_equal(answer(pixels[which]), first, which) for which in tried)


def _are_equal(found: Answers, first: Answers, which: npt.NDArray[np.int64]) -> bool:
    return all(np.array_equal(here, there[which]) for here, there in zip(found, first, strict=True))
