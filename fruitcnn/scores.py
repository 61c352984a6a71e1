"""The counts of a tally -> figures of a report: accuracy, a score per class, confused pairs. Pure; before report."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from fruitcnn.tally import Kind


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
