"""Labels and answers -> how each class fared, and what was taken for what; for the model card. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Confusion(NamedTuple):
    """counts[i, j]: how many pictures of class i were taken for class j, int64 (C, C)."""

    counts: npt.NDArray[np.int64]

    @property
    def num_rows(self) -> npt.NDArray[np.int64]:
        """Pictures of each class, (C,)."""
        return self.counts.sum(axis=1)

    @property
    def accuracies(self) -> npt.NDArray[np.float64]:
        """Share of each class's pictures that were named right, (C,); no number where there are none."""
        return self.shares.diagonal()

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """Of the pictures of each class, the share taken for each, (C, C)."""
        with np.errstate(invalid="ignore"):
            return self.counts / self.num_rows[:, np.newaxis]

    def worst_first(self) -> list[int]:
        """The classes that have pictures, by accuracy, then by number of pictures."""
        known = np.flatnonzero(self.num_rows)
        return known[np.lexsort((-self.num_rows[known], self.accuracies[known]))].tolist()

    def mistakes(self) -> Iterator[tuple[int, int, int]]:
        """(is, taken for, how many), the most frequent first."""
        wrong = self.counts.copy()
        np.fill_diagonal(wrong, 0)
        truths, taken = np.nonzero(wrong)
        for place in np.argsort(-wrong[truths, taken], kind="stable"):
            yield int(truths[place]), int(taken[place]), int(wrong[truths[place], taken[place]])


def confusion(labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32]) -> Confusion:
    """Count labels (N,) against the most probable class of probabilities (N, C)."""
    counts = np.zeros((probabilities.shape[1],) * 2, np.int64)
    np.add.at(counts, (labels, probabilities.argmax(axis=1)), 1)
    return Confusion(counts)
