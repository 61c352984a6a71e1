"""schedule.py and the rate of replica.py: when the rate falls and the run ends follows from the validations so far."""

from typing import Any

import numpy as np
import pytest

from fruitcnn.recipe import TrainConfig
from fruitcnn.schedule import balanced_weights, is_over, rate_scale


def config(**given: Any) -> TrainConfig:
    return TrainConfig(dataset="data", run="run", **given)


@pytest.mark.parametrize(
    ("losses", "scale"),
    [
        ([], 1.0),
        ([3, 2, 1], 1.0),
        ([3, 2, 2], 1.0),
        ([3, 2, 2, 2], 0.5),
        ([3, 2, 2, 2, 2], 0.5),
        ([3, 2, 2, 2, 2, 2], 0.25),
        ([3, 2, 2, 1, 2, 2], 0.5),
    ],
)
def test_a_plateau_lowers_the_rate_each_time_patience_runs_out(losses: list[float], scale: float) -> None:
    plateau = config(schedule="plateau", plateau_patience=2, plateau_factor=0.5)
    assert rate_scale(losses, plateau) == scale
    assert rate_scale(losses, config(schedule="cosine")) == 1.0


def test_early_stopping_counts_validations_since_the_lowest_loss() -> None:
    stopping = config(early_stopping=2)
    assert not is_over([], stopping)
    assert not is_over([1, 2], stopping)
    assert is_over([1, 2, 3], stopping)
    assert not is_over([3, 2, 1], stopping)
    assert is_over([3, 1, 1, 1], stopping), "an equal loss is no better one"
    assert not is_over([1, 2, 3, 4, 5], config())


def test_balanced_weights_give_every_class_the_same_share_and_leave_the_mean_at_one() -> None:
    numbers = np.array([10, 30, 60, 0])
    weights = np.array(balanced_weights(numbers.tolist()))
    np.testing.assert_allclose((weights * numbers)[:3], 100 / 3)
    assert (weights * numbers).sum() == pytest.approx(numbers.sum())


@pytest.mark.parametrize("schedule", ["constant", "cosine", "plateau"])
def test_the_rate_rises_over_the_warm_up_and_then_follows_its_schedule(schedule: str) -> None:
    pytest.importorskip("tensorflow")
    from fruitcnn.optimizing import Rate

    rate = Rate(config(schedule=schedule, learning_rate=2.0, warmup_share=0.1), 100)
    rates = np.array([float(rate(step)) for step in range(101)])
    np.testing.assert_allclose(rates[:11], np.linspace(0, 2, 11), atol=1e-6)
    if schedule == "cosine":
        assert (np.diff(rates[10:]) < 0).all()
        assert rates[55] == pytest.approx(1.0)
        assert rates[100] == pytest.approx(0.0, abs=1e-6)
    else:
        assert (rates[10:] == 2).all()
    rate.scale.assign(0.5)
    assert float(rate(10)) == pytest.approx(1.0)
