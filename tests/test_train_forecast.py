"""What jobs.train --dry-run says: costs out of tried steps, and the time of N nodes from them."""

import pytest

from fruitcnn import scaling, train_forecast
from fruitcnn.recipe import TrainConfig
from fruitcnn.runs import Facts
from fruitcnn.train_forecast import Tried

FACTS = Facts(["a", "b"], "", 1, 10_000, 500, 1_000)


def tried(step_seconds: dict[int, float]) -> Tried:
    return Tried(step_seconds, 0.0001, 0.0002, 400_000, 1 << 20)


def config(**given: object) -> TrainConfig:
    return TrainConfig(dataset="d", run="r", **given)


def test_two_sizes_tell_a_rows_cost_from_a_steps():
    costs = tried({32: 0.012, 128: 0.036}).costs(FACTS, config(num_evaluations=4), num_rows=20_000, cores=2)
    assert costs.core_seconds_per_image == pytest.approx(2 * 0.00025)
    assert costs.step_seconds == pytest.approx(0.004)
    assert costs.scoring_core_seconds == pytest.approx(2 * 4 * 500 * 0.0001)
    assert costs.start_seconds == pytest.approx(train_forecast.START_SECONDS + 4)


def test_one_node_takes_what_was_tried():
    costs = tried({32: 0.012, 128: 0.036}).costs(FACTS, config(), num_rows=0, cores=2)
    found = scaling.forecast_train(costs, scaling.Cluster(1, 2), 128_000, 128)
    assert found.seconds == pytest.approx(costs.start_seconds + 1_000 * 0.036 + 10 * 500 * 0.0001)


@pytest.mark.parametrize(
    "seconds", [{32: 0.012, 128: 0.036}, {32: 0.006, 128: 0.036}, {32: 0.05, 128: 0.03}, {128: 0.03}]
)
def test_a_step_of_the_larger_size_costs_what_was_timed(seconds: dict[int, float]):
    per_row, per_step = scaling.row_and_step(seconds)
    assert per_row > 0
    assert per_step >= 0
    assert 128 * per_row + per_step == pytest.approx(seconds[128])


def test_noise_that_makes_the_larger_step_faster_gives_no_negative_cost():
    costs = tried({32: 0.05, 128: 0.03}).costs(FACTS, config(), num_rows=0, cores=2)
    assert costs.core_seconds_per_image > 0
    assert costs.step_seconds >= 0


def test_only_numbers_of_nodes_into_which_the_batch_divides_are_named():
    given = config(global_batch_size=32 * 12)
    costs = tried({32: 0.012, 384: 0.1}).costs(FACTS, given, num_rows=0, cores=2)
    rows = train_forecast.by_nodes(given, FACTS, costs, cores=2)
    assert list(rows) == ["1 node", "2 nodes", "4 nodes", "12 nodes", "at most"]
    assert rows["at most"].startswith("12 nodes: the batch of 384")
