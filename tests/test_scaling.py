"""The forecast of N nodes: what a simulation of the job promises whatever the measured costs are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fruitcnn.scaling import ClassifyCosts, Cluster, TrainCosts, forecast_train, simulate_classify

COSTS = ClassifyCosts(
    start_seconds=10,
    listing_per_second=1_000_000,
    driver_seconds_per_part=0.002,
    core_seconds_per_image=0.0002,
    commit_seconds=0.02,
    requests_per_image=0,
)
costs = st.builds(
    ClassifyCosts,
    start_seconds=st.floats(0, 60),
    listing_per_second=st.floats(1e3, 1e6),
    driver_seconds_per_part=st.floats(0, 0.1),
    core_seconds_per_image=st.floats(1e-5, 1e-2),
    commit_seconds=st.floats(0, 1),
    requests_per_second=st.floats(100, 1e5),
)


def test_one_node_takes_the_sum_of_its_stages() -> None:
    found = simulate_classify(COSTS, Cluster(1, 2), num_images=20_480, part_images=2_048)
    per_part = 0.002 + max(2 / 5500, 2_048 * 0.0002 / 2) + 0.02
    assert found.seconds == pytest.approx(10 + 0.02048 + 10 * per_part)


@given(costs, st.integers(1, 64), st.integers(1, 200_000), st.integers(64, 4096))
def test_more_nodes_never_take_longer_and_never_beat_what_is_shared(
    given_costs: ClassifyCosts, nodes: int, num_images: int, part_images: int
) -> None:
    one = simulate_classify(given_costs, Cluster(1, 4), num_images, part_images)
    many = simulate_classify(given_costs, Cluster(nodes, 4), num_images, part_images)
    num_parts = -(-num_images // part_images)
    requests = num_images * given_costs.requests_per_image + num_parts * given_costs.requests_per_part
    assert many.seconds <= one.seconds * (1 + 1e-9)
    assert many.seconds >= num_parts * given_costs.driver_seconds_per_part
    assert many.seconds >= requests / given_costs.requests_per_second
    assert all(0 <= share <= 1 + 1e-9 for share in many.busy.values())


@pytest.mark.parametrize(
    ("changed", "bottleneck"),
    [
        ({}, "compute"),
        ({"driver_seconds_per_part": 0.5}, "driver"),
        ({"requests_per_image": 1}, "store"),
        ({"listing_per_second": 2_000}, "listing"),
    ],
)
def test_the_bottleneck_of_ten_nodes_is_named(changed: dict[str, float], bottleneck: str) -> None:
    found = simulate_classify(COSTS.model_copy(update=changed), Cluster(10, 2), 5_000_000, 2_048)
    assert found.bottleneck == bottleneck


def test_training_stops_scaling_where_the_all_reduce_takes_over() -> None:
    train = TrainCosts(
        start_seconds=20,
        core_seconds_per_image=0.002,
        step_seconds=0.001,
        gradient_bytes=2_000_000,
        link_bytes_per_second=1.25e9,
        link_seconds=50e-6,
    )
    seconds = [forecast_train(train, Cluster(nodes, 8), 1_000_000, 512).seconds for nodes in (1, 2, 4, 512)]
    assert seconds[0] > seconds[1] > seconds[2]
    assert seconds[3] > seconds[2]
    assert forecast_train(train, Cluster(512, 8), 1_000_000, 512).bottleneck == "all-reduce"
    assert forecast_train(train, Cluster(1, 8), 1_000_000, 512).busy["all-reduce"] == 0
