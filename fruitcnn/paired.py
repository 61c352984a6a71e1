"""Two predictions of the same pictures -> who said what on each, and which labels flip. Between classify and gate.

    rows = paired.rows("work/held-out-champion", "work/held-out-challenger", truth)

Both runs were planned from the same listing with the same settings, so part n of one holds the pictures of part n of
the other, in the same order; where it does not, that is an error and not a flip. Parts are streamed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fruitcnn import evidence
from fruitcnn.columns import Example
from fruitcnn.evidence import Truth
from fruitcnn.predictions import load_manifest
from fruitcnn.tally import NUM_BINS

NUM_EXAMPLES = 4
NUM_PAIRS = 12


class PairedError(ValueError):
    """Two predictions that are not of the same pictures."""


class Part(NamedTuple):
    """The pictures of one part: `rows` as columns.COLUMNS of the challenger, and as text columns `truth`, and what the
    champion said: `champion` (label), `champion_status`.
    """

    number: int
    rows: pa.Table


def rows(champion: str, challenger: str, truth: Truth | None) -> Iterator[Part]:
    """Stream both predictions side by side. PairedError if they are not of the same pictures."""
    parts = (evidence.parts(uri, load_manifest(uri)) for uri in (champion, challenger))
    for (number, old), (other, new) in zip(*parts, strict=True):
        if number != other or not old["id"].equals(new["id"]):
            raise PairedError(f"part {number} of {champion} and of {challenger} are not of the same pictures")
        known = truth.of(new["id"]) if truth else pa.nulls(len(new), pa.string())
        both = new.append_column("truth", known).append_column("champion", old["label"])
        yield Part(number, both.append_column("champion_status", old["status"]))


class Flip(NamedTuple):
    """The pictures that the champion calls `old` and the challenger `new`; None: not named, rejected."""

    old: str | None
    new: str | None
    num: int
    num_better: int
    """Of them, those where the challenger is right."""
    num_worse: int
    """Of them, those where the champion is right."""
    num_unknown: int
    """Of them, those whose truth is not known."""
    examples: list[Example]


class Flips:
    """All label changes of the rows added so far, by pair of classes."""

    def __init__(self, predictions: str) -> None:
        """`predictions`: those of the challenger, through which the pictures are found again."""
        self.predictions, self.num_rows = predictions, 0
        self.num_unsure = 0
        """Flips where neither answer stands: both models are unsure."""
        self._num: Counter[tuple[str | None, str | None, str]] = Counter()
        self._examples: dict[tuple[str | None, str | None], list[Example]] = {}

    def add(self, part: Part) -> None:
        """Count the flips of one part."""
        table = part.rows
        self.num_rows += len(table)
        old, new, truth = (table[name].to_numpy() for name in ("champion", "label", "truth"))
        unsure = (part.rows["status"].to_numpy() == "unsure") & (part.rows["champion_status"].to_numpy() == "unsure")
        self.num_unsure += int(((old != new) & unsure).sum())
        for row in np.flatnonzero(old != new).tolist():
            pair = old[row], new[row]
            self._num[(*pair, _verdict(truth[row], *pair))] += 1
            kept = self._examples.setdefault(pair, [])
            if len(kept) < NUM_EXAMPLES:
                kept.append(_example(part.number, row, table))

    @property
    def num(self) -> int:
        """How many pictures change their label."""
        return self._num.total()

    def pairs(self, limit: int = NUM_PAIRS) -> list[Flip]:
        """Pairs of classes: first those where most was right before, up to half of them, then those with most changes.

        New classes change the most labels, and for the better: by number alone they would hide what is lost.
        """
        found = []
        for (old, new), examples in self._examples.items():
            better, worse, neither, unknown = (self._num[(old, new, verdict)] for verdict in _VERDICTS)
            found.append(Flip(old, new, better + worse + neither + unknown, better, worse, unknown, examples))
        found.sort(key=lambda flip: (-flip.num, str(flip.old), str(flip.new)))
        worst = sorted((flip for flip in found if flip.num_worse), key=lambda flip: -flip.num_worse)[: limit // 2]
        return (worst + [flip for flip in found if flip not in worst])[:limit]

    def counts(self) -> dict[str, int]:
        """Flips by who is right: better, worse (the champion was right), neither, unknown."""
        return {verdict: sum(n for key, n in self._num.items() if key[2] == verdict) for verdict in _VERDICTS}


_VERDICTS = ("better", "worse", "neither", "unknown")


def _verdict(truth: str | None, old: str | None, new: str | None) -> str:
    if truth is None:
        return "unknown"
    return "better" if new == truth else "worse" if old == truth else "neither"


def _example(part: int, row: int, table: pa.Table) -> Example:
    values = table.slice(row, 1).to_pylist()[0]
    said = {name: values[name] for name in ("id", "sha256", "truth", "label", "cause", "detail")}
    return Example(
        part=part, row=row, width_px=values["width"], height_px=values["height"],
        confidence=float(values["confidence"] or 0.0), **said,
    )  # fmt: skip


def names(columns: Iterable[pa.ChunkedArray]) -> npt.NDArray[np.str_]:
    """Text columns one after the other as one array of text, "" where there is none."""
    found = [np.array([value or "" for value in column.to_pylist()], dtype=str) for column in columns]
    return np.concatenate(found) if found else np.array([], dtype=str)


def confidence_histogram(predictions: str) -> list[int]:
    """Rows of a predictions folder in NUM_BINS equal bins of confidence 0..1."""
    histograms = evidence.read_predictions(predictions, None).tally.histograms.values()
    return [int(each) for each in sum(histograms, np.zeros(NUM_BINS, np.int64))]


def drift(before: list[int], now: list[int]) -> float:
    """Population stability index of two histograms; 0: alike, beyond 0.25 they are commonly taken to differ."""
    # Half a row more in each bin, so that an empty one is no infinite surprise.
    old, new = ((np.array(each) + 0.5) / (sum(each) + 0.5 * len(each)) for each in (before, now))
    return float(((new - old) * np.log(new / old)).sum())


def drift_by_luck(before: list[int], now: list[int]) -> float:
    """The drift that one of a hundred pairs of samples of this size from the same distribution exceeds."""
    degrees = len(before) - 1
    # The index is about chi-squared times this factor; its 99 % point by Wilson and Hilferty.
    chi_squared = degrees * (1 - 2 / (9 * degrees) + 2.326 * (2 / (9 * degrees)) ** 0.5) ** 3
    return chi_squared * (1 / max(1, sum(before)) + 1 / max(1, sum(now)))
