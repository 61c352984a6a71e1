"""Whether a night has a reason to train: new pictures, age, drift of recent predictions. Pure; asked by retrain."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import NamedTuple

from fruitcnn import paired, registry, storage
from fruitcnn.manifest import Manifest
from fruitcnn.predictions import load_manifest
from fruitcnn.registry import Record
from fruitcnn.retrain_config import RetrainConfig


class Drift(NamedTuple):
    """How far the confidences of recent predictions are from those of the champion's held-out pictures."""

    value: float | None
    """Population stability index; None: the predictions say nothing about the champion of now."""
    words: str
    is_large: bool = False


def judged(log: Sequence[Record], dataset: str) -> Record | None:
    """The newest decision about a challenger that was trained on this data set."""
    found = [record for record in log if record.evidence.get("dataset") == dataset]
    return found[-1] if found else None


def reason(
    config: RetrainConfig, log: Sequence[Record], dataset: str, manifest: Manifest, drift: Drift | None
) -> str | None:
    """Why a challenger is to be trained now, in words; None: it is not."""
    last = judged(log, dataset)
    if registry.champion(log) is None:
        return "there is no champion yet"
    if config.force:
        return "asked for with --force"
    num_new = manifest.split("train").num_rows - (last.evidence["num_train_rows"] if last else 0)
    if num_new >= config.min_new_images:
        return f"{num_new:,} new training pictures"
    age = datetime.datetime.now(datetime.UTC) - _decisions(log)[-1].created_at
    if config.max_age_days and age > datetime.timedelta(days=config.max_age_days):
        return f"the last decision is {age.total_seconds() / 86_400:.1f} days old"
    return drift.words if drift and drift.is_large else None


def promotion(log: Sequence[Record]) -> Record | None:
    """The record of a night that made the present champion; None if a person chose it, or there is none."""
    champion = registry.champion(log)
    found = [
        record
        for record in log
        if record.kind == "promoted" and record.version == champion and "confidences" in record.evidence
    ]
    return found[-1] if found and champion else None


def measure_drift(config: RetrainConfig, log: Sequence[Record], model_hash: str) -> Drift:
    """How far the predictions at config.recent drifted; `model_hash` is the champion's.

    UsageError or StorageError for what are no predictions.
    """
    assert config.recent, "asked for"
    with storage.argument("--recent"):
        uri = storage.normalise(config.recent)
        found = load_manifest(uri)
    chosen = promotion(log)
    if chosen is None:
        return Drift(None, "--recent: no night chose the champion, so there is nothing to compare with")
    if found is None:
        return Drift(None, f"--recent: {uri} holds no finished predictions yet")
    if found.model_hash != model_hash:
        return Drift(None, f"--recent: {uri} was made by another model than the champion, version {chosen.version}")
    decided = _decisions(log)[-1]
    if found.timing.finished_at < decided.created_at:
        # Otherwise the same pictures would ask for another challenger every night.
        return Drift(None, f"--recent: {uri} is older than the last decision, record {decided.number}")
    return _compared(config.max_drift, chosen.evidence["confidences"], paired.confidence_histogram(uri))


def _compared(max_drift: float, before: list[int], now: list[int]) -> Drift:
    value, by_luck = paired.drift(before, now), paired.drift_by_luck(before, now)
    found = f"recent predictions drifted by {value:.2f} ({sum(now):,} pictures"
    if value <= max_drift:
        return Drift(value, f"{found}; at most {max_drift:g} is allowed)")
    if value <= by_luck:
        return Drift(value, f"{found}, so few that luck alone may give {by_luck:.2f})")
    return Drift(value, f"{found}; at most {max_drift:g} is allowed)", is_large=True)


def _decisions(log: Sequence[Record]) -> list[Record]:
    return [record for record in log if record.kind in ("promoted", "rejected")]
