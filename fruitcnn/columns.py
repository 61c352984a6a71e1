"""One part's rows of predictions as arrays to count in: text as numbers, rows as Examples. Pure; used by tally.py."""

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

COLUMNS = ("id", "sha256", "width", "height", "label", "confidence", "status", "cause", "detail")
"""Columns of a part that the figures need; `truth` (string, null where unknown) comes beside them."""

Codes = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


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


class Text(NamedTuple):
    """A text column: codes (N,), the row's place in names; -1: null."""

    codes: Codes
    names: list[str]

    def at(self, row: int) -> str | None:
        """The text of one row."""
        code = self.codes[row]
        return self.names[code] if code >= 0 else None

    def equals(self, name: str) -> Bools:
        """(N,): where the column says `name`."""
        return self.codes == self.names.index(name) if name in self.names else np.zeros(len(self.codes), bool)

    def same_as(self, other: "Text") -> Bools:
        """(N,): where both say the same, and not null."""
        places = {name: place for place, name in enumerate(other.names)}
        # Null, and what the other never says, is equal to nothing: -1 is the last of these and no code of the other.
        translated = np.array([places.get(name, -2) for name in self.names] + [-2])
        return translated[self.codes] == other.codes


class Columns:
    """The rows of part number `part`: a table with COLUMNS and `truth`, as arrays of N entries."""

    def __init__(self, part: int, rows: pa.Table) -> None:
        self.part = part
        self._rows = rows.combine_chunks()
        self.truth, self.label, self.status, self.cause = (
            _text(rows[name]) for name in ("truth", "label", "status", "cause")
        )
        self.confidence = np.nan_to_num(rows["confidence"].to_numpy().astype(np.float64))
        self.classified = ~self.status.equals("rejected")
        self.known = self.truth.codes >= 0
        self.right = self.known & self.classified & self.truth.same_as(self.label)
        self.wrong = self.known & self.classified & ~self.right

    @cached_property
    def _cells(self) -> dict[str, pa.Array]:
        return {name: self._rows[name].combine_chunks() for name in ("id", "sha256", "width", "height", "detail")}

    def kinds(self) -> list[tuple[Any, ...]]:
        """(truth, label, status, cause, rows) of each combination that there is."""
        columns = (self.truth, self.label, self.status, self.cause)
        combined = np.zeros(len(self.confidence), np.int64)
        for column in columns:
            combined = combined * (len(column.names) + 1) + column.codes + 1
        _, first, counts = np.unique(combined, return_index=True, return_counts=True)
        return [(*(column.at(row) for column in columns), num) for row, num in zip(first, counts.tolist(), strict=True)]

    def groups(self) -> dict[str, Bools]:
        """Group of the histograms -> (N,) bool, groups without rows left out."""
        unknown = self.classified & ~self.known
        is_in = {"right": self.right, "wrong": self.wrong}
        is_in |= {status: unknown & self.status.equals(status) for status in ("ok", "unsure")}
        return {name: rows for name, rows in is_in.items() if rows.any()}

    def by_confidence(self, is_in: Bools) -> Codes:
        """Numbers of the rows where is_in (N,) holds, surest first."""
        rows = np.flatnonzero(is_in)
        return rows[np.argsort(-self.confidence[rows], kind="stable")]

    def firsts(self, keys: Codes, rows: Codes) -> list[int]:
        """Of `rows`, the first with each of the keys (N,), by rising key."""
        return rows[np.unique(keys[rows], return_index=True)[1]].tolist()

    def example(self, row: int) -> Example:
        """Row number `row`."""
        cells = {name: cell[row].as_py() for name, cell in self._cells.items()}
        return Example(
            part=self.part,
            row=row,
            id=cells["id"],
            sha256=cells["sha256"],
            width_px=cells["width"],
            height_px=cells["height"],
            truth=self.truth.at(row),
            label=self.label.at(row),
            confidence=float(self.confidence[row]),
            cause=self.cause.at(row),
            detail=cells["detail"],
        )


def _text(column: pa.ChunkedArray) -> Text:
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    return Text(encoded.indices.fill_null(-1).to_numpy().astype(np.int64), encoded.dictionary.to_pylist())
