"""Rows of predictions, with the truth where it is known -> the figures of a report. Pure; between evidence and report.

Rows are added part by part; what is kept grows with the number of classes and of pairs confused, not of rows.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

NUM_BINS = 20
SAMPLE_SIZE = 16
NUM_WORST = 12
NUM_EXAMPLES = 3
COLUMNS = ("id", "sha256", "width", "height", "label", "confidence", "status", "cause", "detail")
"""Columns of a part that the figures need; `truth` (string, null where unknown) comes beside them."""


class Kind(NamedTuple):
    """What rows are counted by; truth None: unknown; label None: rejected, for `cause`."""

    truth: str | None
    label: str | None
    status: str
    cause: str | None


class Example(NamedTuple):
    """One row, and where it lies: row number `row` of part number `part`. confidence 0 and label None: rejected."""

    part: int
    row: int
    id: str
    sha256: str | None
    width_px: int | None
    height_px: int | None
    truth: str | None
    label: str | None
    confidence: float
    cause: str | None
    detail: str | None

    @property
    def is_right(self) -> bool:
        """Whether the truth is known and was named."""
        return self.truth is not None and self.truth == self.label


class ClassScore(NamedTuple):
    """How the pictures of one class fared; taken_for is the wrong class they were given most often, None if none."""

    name: str
    num_rows: int
    num_right: int
    taken_for: str | None
    num_taken: int


class Pair(NamedTuple):
    """`num` of the `num_rows` pictures of class `truth` were taken for class `label`."""

    truth: str
    label: str
    num: int
    num_rows: int


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
        self._worst: list[tuple[float, int, int, Example]] = []
        self._sample: list[tuple[float, int, int, Example]] = []

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
        for kind in _grouped(rows):
            self.kinds[Kind(*kind[:-1])] += kind[-1]
        columns = _Columns(part, rows)
        for group, is_in in columns.groups().items():
            counts = np.histogram(columns.confidence[is_in], NUM_BINS, (0, 1))[0]
            self.histograms[group] = self.histograms.get(group, np.zeros(NUM_BINS, np.int64)) + counts
        self._add_worst(columns)
        self._add_sample(columns)
        self._add_specimens(columns)
        self._add_slips(columns)
        self._add_rejected(columns)
        self._add_extremes(columns)

    def _add_worst(self, columns: "_Columns") -> None:
        wrong = columns.by_confidence(columns.wrong)[:NUM_WORST]
        entries = [(-columns.confidence[row], columns.part, row, columns.example(row)) for row in wrong]
        self._worst = heapq.nsmallest(NUM_WORST, [*self._worst, *entries])

    def _add_sample(self, columns: "_Columns") -> None:
        # A key drawn for each row of each part makes the choice the same in any order, and even over all rows.
        keys = np.random.default_rng(columns.part).random(len(columns.confidence)) + ~columns.known
        candidates = np.flatnonzero(columns.classified)
        chosen = candidates[np.argsort(keys[candidates], kind="stable")[:SAMPLE_SIZE]].tolist()
        entries = [(float(keys[row]), columns.part, row, columns.example(row)) for row in chosen]
        self._sample = heapq.nsmallest(SAMPLE_SIZE, [*self._sample, *entries])
        if any(key < 1 for key, *_ in self._sample):
            self._sample = [entry for entry in self._sample if entry[0] < 1]

    def _add_specimens(self, columns: "_Columns") -> None:
        for is_in in (columns.right, columns.wrong):
            seen: set[str] = set()
            for row in columns.by_confidence(is_in):
                name = columns.truth[row]
                if name in seen:
                    continue
                seen.add(name)
                best, example = self.specimens.get(name), columns.example(row)
                if best is None or _rank(example) > _rank(best):
                    self.specimens[name] = example

    def _add_slips(self, columns: "_Columns") -> None:
        seen: set[tuple[str, str]] = set()
        for row in columns.by_confidence(columns.wrong):
            pair = columns.truth[row], columns.label[row]
            if pair in seen:
                continue
            seen.add(pair)
            best = self.slips.get(pair)
            if best is None or columns.confidence[row] > best.confidence:
                self.slips[pair] = columns.example(row)

    def _add_rejected(self, columns: "_Columns") -> None:
        for row in np.flatnonzero(~columns.classified).tolist():
            found = self.rejected.setdefault(columns.cause[row], [])
            if len(found) < NUM_EXAMPLES:
                found.append(columns.example(row))

    def _add_extremes(self, columns: "_Columns") -> None:
        rows = np.array(columns.by_confidence(columns.classified), np.int64)
        for kept, chosen, sign in ((self.surest, rows, 1), (self.least_sure, rows[::-1], -1)):
            names, first = np.unique(columns.label[chosen].astype(str), return_index=True)
            for name, row in zip(names.tolist(), chosen[first].tolist(), strict=True):
                best = kept.get(name)
                if best is None or sign * columns.confidence[row] > sign * best.confidence:
                    kept[name] = columns.example(row)


class _Columns:
    """The columns of one part as arrays of N entries."""

    def __init__(self, part: int, rows: pa.Table) -> None:
        self.part = part
        self._rows = rows
        self.truth, self.label, self.status, self.cause = (
            rows[name].to_numpy() for name in ("truth", "label", "status", "cause")
        )
        self.confidence = np.nan_to_num(rows["confidence"].to_numpy().astype(np.float64))
        self.classified = self.status != "rejected"
        self.known = rows["truth"].is_valid().to_numpy()
        self.right = self.known & self.classified & (self.truth == self.label)
        self.wrong = self.known & self.classified & ~self.right

    def groups(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Group of the histograms -> (N,) bool, groups without rows left out."""
        unknown = self.classified & ~self.known
        is_in = {"right": self.right, "wrong": self.wrong}
        is_in |= {status: unknown & (self.status == status) for status in ("ok", "unsure")}
        return {name: rows for name, rows in is_in.items() if rows.any()}

    def by_confidence(self, is_in: npt.NDArray[np.bool_]) -> list[int]:
        """Numbers of the rows where is_in (N,) holds, surest first."""
        rows = np.flatnonzero(is_in)
        return rows[np.argsort(-self.confidence[rows], kind="stable")].tolist()

    def example(self, row: int) -> Example:
        """Row number `row`."""
        values: dict[str, Any] = self._rows.slice(row, 1).to_pylist()[0]
        return Example(
            part=self.part,
            row=row,
            confidence=float(self.confidence[row]),
            width_px=values["width"],
            height_px=values["height"],
            **{name: values[name] for name in ("id", "sha256", "truth", "label", "cause", "detail")},
        )


def _grouped(rows: pa.Table) -> Iterable[tuple[Any, ...]]:
    counted = rows.group_by(["truth", "label", "status", "cause"]).aggregate([([], "count_all")])
    names = ("truth", "label", "status", "cause", "count_all")
    return zip(*(counted[name].to_pylist() for name in names), strict=True)


def _rank(example: Example) -> tuple[bool, float]:
    return example.is_right, example.confidence


def count_by(kinds: Counter[Kind], field: str) -> Counter[Any]:
    """Rows by one field of Kind, or by several joined by a comma (the key is then a tuple)."""
    names = field.split(",")
    counts: Counter[Any] = Counter()
    for kind, num in kinds.items():
        key = tuple(getattr(kind, name) for name in names)
        counts[key if len(names) > 1 else key[0]] += num
    return counts


def accuracy(kinds: Counter[Kind]) -> tuple[int, int]:
    """(right, rows) of the rows whose truth is known; rejected ones are rows that are not right."""
    right = sum(num for kind, num in kinds.items() if kind.truth is not None and kind.truth == kind.label)
    return right, sum(num for kind, num in kinds.items() if kind.truth is not None)


def class_scores(kinds: Counter[Kind], classes: Sequence[str] = ()) -> list[ClassScore]:
    """A score per class that has rows or is named in `classes`; the least accurate first, classes without rows last."""
    confusion = _confusion(kinds)
    for name in classes:
        confusion.setdefault(name, Counter())
    scores = []
    for truth, row in confusion.items():
        wrong = sorted((-num, label) for label, num in row.items() if label not in (truth, None))
        num, taken_for = wrong[0] if wrong else (0, None)
        scores.append(ClassScore(truth, row.total(), row[truth], taken_for, -num))
    return sorted(scores, key=lambda s: (not s.num_rows, s.num_right / max(1, s.num_rows), -s.num_rows, s.name))


def confused_pairs(kinds: Counter[Kind], limit: int) -> list[Pair]:
    """The `limit` pairs (truth, wrong label) with the most rows; of equals the larger share of the class first."""
    pairs = [
        Pair(truth, label, num, row.total())
        for truth, row in _confusion(kinds).items()
        for label, num in row.items()
        if label not in (truth, None)
    ]
    return sorted(pairs, key=lambda p: (-p.num, p.num_rows, p.truth, p.label))[:limit]


def _confusion(kinds: Counter[Kind]) -> dict[str, Counter[Any]]:
    confusion: dict[str, Counter[Any]] = {}
    for (truth, label), num in count_by(kinds, "truth,label").items():
        if truth is not None:
            confusion.setdefault(truth, Counter())[label] += num
    return confusion
