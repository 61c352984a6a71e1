"""due.py: recent predictions ask for a challenger only where they say something about the champion of now."""

import datetime
from pathlib import Path
from typing import Any

import pytest

from fruitcnn import due, paired
from fruitcnn.books import Books, RunManifest, Timing
from fruitcnn.predictions import publish
from fruitcnn.registry import Kind, Record
from fruitcnn.retrain_config import RetrainConfig

CHAMPION = "hash of the champion"
NIGHT = datetime.datetime(2026, 11, 24, 3, tzinfo=datetime.UTC)
SURE, UNSURE = [0] * 19 + [5_000], [5_000] + [0] * 19


def record(number: int, kind: Kind, confidences: list[int] | None) -> Record:
    evidence = {"dataset": "d", "num_train_rows": 100} | ({"confidences": confidences} if confidences else {})
    return Record(number=number, kind=kind, version=1, reason="", by="test", created_at=NIGHT, evidence=evidence)


def predicted(folder: Path, model_hash: str = CHAMPION, hours_after: float = 1.0) -> str:
    """Finished predictions; what they say is made up by `measured`."""
    timing = Timing(
        attempt=1, finished_at=NIGHT + datetime.timedelta(hours=hours_after), total_seconds=1, classify_seconds=1,
        num_inputs=0,
    )  # fmt: skip
    books = Books(num_listed=0, num_ok=0, num_unsure=0, num_rejected=0, rejected_by_cause={}, ok_by_label={})
    manifest = RunManifest(
        run_id="r", model="m", model_hash=model_hash, settings={}, config={}, books=books, num_hidden=0,
        num_repeated=0, parts=(), versions={}, timing=timing,
    )  # fmt: skip
    publish(str(folder), manifest)
    return str(folder)


def measured(monkeypatch: pytest.MonkeyPatch, recent: str, log: list[Record], now: list[int]) -> due.Drift:
    monkeypatch.setattr(paired, "confidence_histogram", lambda _: now)
    config = RetrainConfig(source="s", dataset="d", registry="r", recent=recent)
    return due.measure_drift(config, log, CHAMPION)


def test_other_confidences_ask_for_a_challenger_and_the_same_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recent, log = predicted(tmp_path), [record(1, "promoted", SURE)]
    assert measured(monkeypatch, recent, log, UNSURE).is_large
    same = measured(monkeypatch, recent, log, SURE)
    assert (same.value, same.is_large) == (pytest.approx(0), False)
    assert "drifted by 0.00 (5,000 pictures; at most 0.25 is allowed)" in same.words


def test_a_rejected_challengers_confidences_are_not_the_champions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = [record(1, "promoted", SURE), record(2, "rejected", UNSURE)]
    assert not measured(monkeypatch, predicted(tmp_path), log, SURE).is_large


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model_hash": "another"}, "was made by another model than the champion, version 1"),
        ({"hours_after": -1.0}, "is older than the last decision, record 1"),
    ],
)
def test_predictions_that_say_nothing_about_now_are_named_and_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], words: str
) -> None:
    drift = measured(monkeypatch, predicted(tmp_path, **given), [record(1, "promoted", SURE)], UNSURE)
    assert (drift.value, drift.is_large) == (None, False)
    assert words in drift.words


def test_a_champion_that_no_night_chose_has_nothing_to_drift_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drift = measured(monkeypatch, predicted(tmp_path), [record(1, "promoted", None)], UNSURE)
    assert "no night chose the champion" in drift.words
    unfinished = measured(monkeypatch, str(tmp_path / "none"), [record(1, "promoted", SURE)], UNSURE)
    assert "no finished predictions yet" in unfinished.words


def test_a_handful_of_pictures_is_no_drift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [0] * 16 + [1, 2, 2, 5]
    drift = measured(monkeypatch, predicted(tmp_path), [record(1, "promoted", [0] * 10 + [500] * 10)], few)
    assert drift.value is not None
    assert drift.value > 0.25
    assert not drift.is_large
    assert "so few that luck alone may give" in drift.words
