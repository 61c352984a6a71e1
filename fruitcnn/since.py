"""After a promotion: of the pictures that were named before it, those whose label could change. Used by classify.

Re-scoring an archive costs as much as the first time, and most labels stay. Chosen are the rows whose two best scores
lay close together, the unsure ones, and a random sample of all others. The sample is the audit: its rows would have
been passed over, so the share of them that changed says what passing over costs. The full re-run stays the default.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fruitcnn import storage
from fruitcnn.books import RunManifest
from fruitcnn.errors import UsageError
from fruitcnn.inputs import Input
from fruitcnn.plan import PlanReader, load_plan
from fruitcnn.predictions import load_manifest

_COLUMNS = ("id", "label", "status", "top_scores")


class Choice:
    """The chosen inputs of a finished run: what inputs.Listing is for a folder. Iterate once for the counts."""

    kind = "predictions"
    num_hidden = num_repeated = 0

    def __init__(self, earlier: str, images: str, max_margin: float, audit_share: float) -> None:
        """`earlier`: finished predictions of the former champion for `images`; UsageError if they are not that."""
        self.earlier, self.max_margin, self.audit_share = storage.normalise(earlier), max_margin, audit_share
        self.images = storage.normalise(images)
        self.manifest = _finished(self.earlier)
        there = self.manifest.settings["images"]
        if there != self.images:
            raise UsageError(f"--images: got {self.images}, wanted {there}, which {earlier} was made of")
        if self.manifest.settings["top_k"] < 2:
            raise UsageError(
                f"--since-promotion: {earlier} was made with --top-k 1, which does not say how close the second label "
                f"was; classify all again, without --since-promotion"
            )

    def __iter__(self) -> Iterator[Input]:
        plan = load_plan(self.earlier)
        assert plan is not None, "a finished run has a plan"
        reader = PlanReader(self.earlier, plan)
        for number, rows in _parts(self.earlier, self.manifest):
            likely, audited = self.pick(rows)
            inputs = reader.read(number)
            yield from (inputs[row] for row in np.flatnonzero(likely | audited))

    def pick(self, rows: pa.Table) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """(rows that could change, rows of the audit) of one part: bool (N,) each, no row in both."""
        status = rows["status"].to_numpy()
        first, second = (_score(rows["top_scores"], place) for place in (0, 1))
        named = status != "rejected"
        likely = named & ((status == "unsure") | (first - second < self.max_margin))
        drawn = np.array([_draw(each) < self.audit_share for each in rows["id"].to_pylist()], bool)
        return likely, named & ~likely & drawn


class Audit(NamedTuple):
    """What a re-scoring of the chosen rows found."""

    num_earlier: int
    """Rows of the earlier run that have a label."""
    num_likely: int
    num_likely_changed: int
    num_audited: int
    num_audited_changed: int

    @property
    def miss_rate(self) -> float:
        """Share of the rows passed over whose label would have changed, as the audit estimates it."""
        return self.num_audited_changed / self.num_audited if self.num_audited else math.nan

    @property
    def largest_miss_rate(self) -> float:
        """Upper end of its one-sided 95 % interval (Wilson)."""
        if not self.num_audited:
            return 1.0
        num, z = self.num_audited, 1.645
        centre = self.miss_rate + z * z / (2 * num)
        spread = z * math.sqrt(self.miss_rate * (1 - self.miss_rate) / num + z * z / (4 * num * num))
        return (centre + spread) / (1 + z * z / num)


def audit(choice: Choice, predictions: str) -> Audit:
    """Compare the finished re-scoring at `predictions` with the earlier run it was chosen from."""
    predictions = storage.normalise(predictions)
    now: dict[str, str | None] = {}
    for _, rows in _parts(predictions, _finished(predictions)):
        now.update(zip(rows["id"].to_pylist(), rows["label"].to_pylist(), strict=True))
    counts = np.zeros(5, np.int64)
    for _, rows in _parts(choice.earlier, choice.manifest):
        likely, audited = choice.pick(rows)
        said = zip(rows["id"].to_pylist(), rows["label"].to_pylist(), strict=True)
        changed = np.array([name in now and now[name] != label for name, label in said], bool)
        num_named = pc.sum(pc.not_equal(rows["status"], "rejected")).as_py() or 0
        counts += (num_named, likely.sum(), (likely & changed).sum(), audited.sum(), (audited & changed).sum())
    return Audit(*counts.tolist())


def _finished(predictions: str) -> RunManifest:
    manifest = load_manifest(predictions)
    if manifest is None:
        raise UsageError(f"--since-promotion: {predictions} holds no finished predictions (no manifest.json)")
    return manifest


def _parts(predictions: str, manifest: RunManifest) -> Iterator[tuple[int, pa.Table]]:
    for number, part in enumerate(manifest.parts):
        data = storage.read(storage.join(predictions, part.path))
        yield number, pq.read_table(io.BytesIO(data), columns=list(_COLUMNS))


def _score(scores: pa.ChunkedArray, place: int) -> npt.NDArray[np.float64]:
    """The score at `place` of each row, 0 where there is none: float64 (N,)."""
    lists = scores.to_pylist()
    return np.array([float(each[place]) if each and len(each) > place else 0.0 for each in lists])


def _draw(name: str) -> float:
    """A number in [0, 1) that depends on the id alone: another run audits the same rows."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big") / 2**56
