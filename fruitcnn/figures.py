"""Answers and the truth -> what a model is worth on these pictures: accuracy, calibration, risk and coverage. Pure.

The truth of a picture may be several classes (a family: any apple will do) or none at all (a stranger: no answer is
right). Between evaluate, which makes the rows, and its report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

NUM_BINS = 15
NUM_POINTS = 101
NUM_PAIRS = 20

Bools = npt.NDArray[np.bool_]
Values = npt.NDArray[np.floating]


class Judged(NamedTuple):
    """N classified pictures whose truth is known."""

    confidence: Values
    """(N,) of the first answer, 0..1."""
    unlike: Values
    """(N,) score of familiar.py."""
    right: Bools
    """(N,): the first answer is a class of the truth."""
    stranger: Bools
    """(N,): no class is."""
    answered: Bools
    """(N,): the answer stands (status ok)."""


class Bin(NamedTuple):
    """The pictures answered with a confidence in one of NUM_BINS equal bins."""

    confidence: float
    accuracy: float
    num: int


def matching(truth: str, labels: Sequence[str]) -> list[int]:
    """Return the indices of the labels that `truth` allows: "Pear" any label "Pear" or "Pear ..."; "A|B" either.

    Empty for a stranger, which is written NONE.
    """
    names = [name.strip() for name in truth.split("|")]
    return [
        index
        for index, label in enumerate(labels)
        if any(label == name or label.startswith(f"{name} ") for name in names)
    ]


def summarise(judged: Judged) -> dict[str, Any]:
    """Return the figures of one evaluation as name -> number (None where there is nothing to count)."""
    known, answered = ~judged.stranger, judged.answered
    wrong = answered & ~judged.right
    return {
        "num_pictures": len(judged.right),
        "num_strangers": int(judged.stranger.sum()),
        "accuracy": _share(judged.right[known]),
        "share_answered": _share(answered[known]),
        "right_among_answered": _share(judged.right[known & answered]),
        "wrong_and_sure": _share(wrong),
        "strangers_answered": _share(answered[judged.stranger]),
        "calibration_error": calibration_error(calibration(judged)),
        "area_under_risk_coverage": _area(judged),
    }


def calibration(judged: Judged) -> list[Bin]:
    """Return the bins that hold pictures of known classes, by rising confidence."""
    known = ~judged.stranger
    confidence, right = judged.confidence[known], judged.right[known]
    numbers = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    inside = [numbers == each for each in range(NUM_BINS)]
    return [Bin(float(confidence[i].mean()), float(right[i].mean()), int(i.sum())) for i in inside if i.any()]


def calibration_error(bins: Sequence[Bin]) -> float | None:
    """Return the mean distance of confidence and accuracy over the pictures, 0..1 (ECE); None of none."""
    total = sum(each.num for each in bins)
    return sum(each.num * abs(each.confidence - each.accuracy) for each in bins) / total if total else None


def risk_coverage(judged: Judged, sureness: Values) -> list[tuple[float, float]]:
    """Return (coverage, risk): of the surest share `coverage` of all pictures, the share that is wrong.

    sureness (N,): which answers are given first. Strangers count as pictures, and any answer to one as wrong.
    """
    order = np.argsort(-sureness, kind="stable")
    wrong = np.cumsum(~judged.right[order])
    counts = np.unique(np.linspace(1, len(order), min(NUM_POINTS, len(order))).round().astype(int))
    return [(float(count / len(order)), float(wrong[count - 1] / count)) for count in counts]


def per_class(truth: Sequence[str], judged: Judged) -> list[dict[str, Any]]:
    """Return name, num, right and answered (counts) of every truth, the least accurate first."""
    names = np.array(truth, dtype=object)
    found = []
    for name in sorted({*truth}):
        rows = names == name
        counts = {"num": rows, "right": rows & judged.right, "answered": rows & judged.answered}
        counts |= {"wrong_and_sure": rows & judged.answered & ~judged.right}
        found.append({"name": name} | {key: int(each.sum()) for key, each in counts.items()})
    return sorted(found, key=lambda row: (row["right"] / row["num"], -row["num"], row["name"]))


def confusion(truth: Sequence[str], labels: Sequence[str], judged: Judged) -> list[dict[str, Any]]:
    """Return the most frequent wrong answers: truth, label, num, and how many of them stand (answered)."""
    wrong = np.flatnonzero(~judged.right).tolist()
    pairs = Counter((truth[row], labels[row]) for row in wrong)
    stand = Counter((truth[row], labels[row]) for row in wrong if judged.answered[row])
    ranked = sorted(pairs.items(), key=lambda entry: (-entry[1], entry[0]))
    return [
        {"truth": pair[0], "label": pair[1], "num": num, "answered": stand[pair]} for pair, num in ranked[:NUM_PAIRS]
    ]


def _share(rows: Bools) -> float | None:
    return float(rows.mean()) if len(rows) else None


def _area(judged: Judged) -> float | None:
    """The mean risk over all coverages, surest first; smaller is better."""
    if not len(judged.right):
        return None
    wrong = np.cumsum(~judged.right[np.argsort(-judged.confidence, kind="stable")])
    return float((wrong / np.arange(1, len(wrong) + 1)).mean())
