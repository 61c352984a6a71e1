"""Rows of predictions, part by part -> what a report counts and shows. Pure; between evidence and scores.

What is kept grows with the number of classes and of pairs confused, not of rows.
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fruitcnn.columns import Columns, Example

NUM_BINS = 20
SAMPLE_SIZE = 16
NUM_WORST = 12
NUM_EXAMPLES = 3

_Entry = tuple[float, int, int, Example]
"""(key, part, row, the row): the key decides, then the place."""


class Kind(NamedTuple):
    """What rows are counted by; truth None: unknown; label None: rejected, for `cause`."""

    truth: str | None
    label: str | None
    status: str
    cause: str | None


class Tally:
    """The figures of all rows added so far."""

    def __init__(self) -> None:
        self.kinds: Counter[Kind] = Counter()
        self.histograms: dict[str, npt.NDArray[np.int64]] = {}
        """Group -> rows in NUM_BINS equal bins of confidence 0..1. Groups: right, wrong; truth unknown: ok, unsure."""
        self.specimens: dict[str, Example] = {}
        """Class -> its picture that was named right with most confidence; of none was, one of its wrong ones."""
        self.slips: dict[tuple[str, str], Example] = {}
        """(truth, label) -> the surest of the pictures so confused."""
        self.rejected: dict[str, list[Example]] = {}
        """Cause -> its first NUM_EXAMPLES rows."""
        self.surest: dict[str, Example] = {}
        """Label -> the row that was given it with most confidence."""
        self.least_sure: dict[str, Example] = {}
        """Label -> the row that was given it with least confidence."""
        self._worst: list[_Entry] = []
        self._sample: list[_Entry] = []

    @property
    def worst(self) -> list[Example]:
        """The surest of the wrong rows, surest first."""
        return [entry[-1] for entry in self._worst]

    @property
    def sample(self) -> list[Example]:
        """Up to SAMPLE_SIZE rows drawn evenly from those with a label (and the truth, if any row has it)."""
        return [entry[-1] for entry in self._sample]

    def add(self, part: int, rows: pa.Table) -> None:
        """Count the rows of part number `part`: a table with COLUMNS and `truth`. The order of parts does not matter
        for figures; the first rejected rows are those of the parts added first.
        """
        columns = Columns(part, rows)
        for *kind, num in columns.kinds():
            self.kinds[Kind(*kind)] += num
        for group, is_in in columns.groups().items():
            counts = np.histogram(columns.confidence[is_in], NUM_BINS, (0, 1))[0]
            self.histograms[group] = self.histograms.get(group, np.zeros(NUM_BINS, np.int64)) + counts
        self._add_worst(columns)
        self._add_sample(columns)
        self._add_specimens(columns)
        self._add_slips(columns)
        self._add_rejected(columns)
        self._add_extremes(columns)

    def _add_worst(self, columns: Columns) -> None:
        wrong = columns.by_confidence(columns.wrong)[:NUM_WORST].tolist()
        self._worst = _least(NUM_WORST, self._worst, columns, -columns.confidence, wrong)

    def _add_sample(self, columns: Columns) -> None:
        # A key drawn for each row of each part makes the choice the same in any order, and even over all rows.
        keys = np.random.default_rng(columns.part).random(len(columns.confidence)) + ~columns.known
        candidates = np.flatnonzero(columns.classified)
        chosen = candidates[np.argsort(keys[candidates], kind="stable")[:SAMPLE_SIZE]].tolist()
        self._sample = _least(SAMPLE_SIZE, self._sample, columns, keys, chosen)
        if any(key < 1 for key, *_ in self._sample):
            self._sample = [entry for entry in self._sample if entry[0] < 1]

    def _add_specimens(self, columns: Columns) -> None:
        for is_right, is_in in ((True, columns.right), (False, columns.wrong)):
            for row in columns.firsts(columns.truth.codes, columns.by_confidence(is_in)):
                name = columns.truth.names[columns.truth.codes[row]]
                best = self.specimens.get(name)
                if best is None or (is_right, columns.confidence[row]) > (best.is_right, best.confidence):
                    self.specimens[name] = columns.example(row)

    def _add_slips(self, columns: Columns) -> None:
        truth, label = columns.truth, columns.label
        pairs = truth.codes * len(label.names) + label.codes
        for row in columns.firsts(pairs, columns.by_confidence(columns.wrong)):
            pair = truth.names[truth.codes[row]], label.names[label.codes[row]]
            best = self.slips.get(pair)
            if best is None or columns.confidence[row] > best.confidence:
                self.slips[pair] = columns.example(row)

    def _add_rejected(self, columns: Columns) -> None:
        for code, cause in enumerate(columns.cause.names):
            found = self.rejected.get(cause, [])
            rows = np.flatnonzero(~columns.classified & (columns.cause.codes == code))[: NUM_EXAMPLES - len(found)]
            if len(rows):
                self.rejected[cause] = [*found, *map(columns.example, rows.tolist())]

    def _add_extremes(self, columns: Columns) -> None:
        rows = columns.by_confidence(columns.classified)
        for kept, chosen, sign in ((self.surest, rows, 1), (self.least_sure, rows[::-1], -1)):
            for row in columns.firsts(columns.label.codes, chosen):
                name = columns.label.names[columns.label.codes[row]]
                best = kept.get(name)
                if best is None or sign * columns.confidence[row] > sign * best.confidence:
                    kept[name] = columns.example(row)


def _least(
    num: int, kept: list[_Entry], columns: Columns, keys: npt.NDArray[np.float64], rows: Sequence[int]
) -> list[_Entry]:
    """The `num` entries of the least keys, of those kept and of some rows of a part; rows too late are not read."""
    limit = kept[-1][0] if len(kept) == num else np.inf
    entries = [(float(keys[row]), columns.part, row, columns.example(row)) for row in rows if keys[row] <= limit]
    return heapq.nsmallest(num, [*kept, *entries])
