"""drift.py: the distance of two distributions, and where the training's comes from."""

from pathlib import Path

import pytest
from frozen_run import CLASSES, bundle

from fruitcnn import drift


def test_the_distance_is_the_share_that_would_have_to_change() -> None:
    shares = {"a": 0.5, "b": 0.25, "c": 0.25}
    assert drift.distance({"a": 50, "b": 25, "c": 25}, shares) == 0
    assert drift.distance({"a": 100}, shares) == pytest.approx(0.5)
    assert drift.distance({"d": 7}, shares) == pytest.approx(1)
    assert drift.distance({"a": 60, "b": 25, "c": 15}, shares) == pytest.approx(0.1)


def test_training_shares_come_from_the_data_set_that_the_model_names(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    frozen = bundle(tmp_path_factory.getbasetemp())
    shares = drift.training_shares(str(frozen.model))
    assert shares == {name: pytest.approx(1 / len(CLASSES)) for name in CLASSES}


def test_without_model_or_data_set_there_is_none(tmp_path: Path) -> None:
    assert drift.training_shares(str(tmp_path / "gone")) is None
