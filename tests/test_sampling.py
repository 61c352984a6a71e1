"""sampling.py: the order of rows is a pure function, the same for any number of workers; no row is missing or twice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fruitcnn.recipe import TrainConfig
from fruitcnn.sampling import (
    Order,
    evaluation_slice,
    held_and_validation,
    held_out_groups,
    rank_slice,
    row_keys,
    total_steps,
    validation_mask,
)

orders = st.builds(
    lambda num_rows, seed, block_rows, blocks: Order(num_rows, seed, block_rows * blocks, block_rows),
    st.integers(1, 3000),
    st.integers(0, 5),
    st.integers(1, 64),
    st.integers(1, 8),
)


@settings(max_examples=60)
@given(orders, st.integers(1, 97))
def test_no_row_is_missing_from_an_epoch_and_none_comes_twice(order: Order, batch: int) -> None:
    num_epochs = 2
    stream = [order.batch(step, batch) for step in range(total_steps(order.num_rows, num_epochs, batch))]
    epochs, rows = np.concatenate([each[0] for each in stream]), np.concatenate([each[1] for each in stream])
    for epoch in range(num_epochs):
        seen = rows[epochs == epoch]
        assert len(np.unique(seen)) == order.num_rows, "missing rows"
        assert len(seen) == order.num_rows, "duplicate rows"
        assert (seen == order.epoch(epoch)).all(), "incorrect order"


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_global_batches_are_the_same_for_any_number_of_workers(world_size: int) -> None:
    order = Order(1000, seed=3)
    for step in range(total_steps(1000, 2, 64)):
        whole = order.batch(step, 64)[1]
        pieces = [whole[rank_slice(64, rank, world_size)] for rank in range(world_size)]
        assert (np.concatenate(pieces) == whole).all()


def test_two_epochs_and_two_seeds_differ() -> None:
    assert (Order(500, 0).epoch(0) != Order(500, 0).epoch(1)).any()
    assert (Order(500, 0).epoch(0) != Order(500, 1).epoch(0)).any()


def test_the_order_is_the_same_on_every_machine_and_in_every_release() -> None:
    # Written down once: a change here makes every saved run impossible to resume exactly.
    assert Order(8, seed=1).epoch(2).tolist() == [7, 6, 3, 4, 0, 1, 2, 5]
    assert row_keys(1, np.array([0, 2]), np.array([5, 7])).tolist() == [255711393, -2126984879]


def test_a_window_holds_whole_blocks_and_a_step_reads_few_of_them() -> None:
    order = Order(100_000, 0, window_rows=8192, block_rows=256)
    for step in (0, 100, 700):
        blocks = {int(row) // 256 for each in range(step, step + 3) for row in order.batch(each, 64)[1]}
        assert len(blocks) <= 2 * 8192 // 256


def test_rank_slices_refuse_what_does_not_divide_and_say_what_would() -> None:
    with pytest.raises(ValueError, match=r"got 64 with 3 workers.*63 or 66"):
        rank_slice(64, 0, 3)


@given(st.integers(0, 500), st.integers(1, 9))
def test_evaluation_slices_cover_every_row_once(num_rows: int, world_size: int) -> None:
    rows = [row for rank in range(world_size) for row in range(num_rows)[evaluation_slice(num_rows, rank, world_size)]]
    assert rows == list(range(num_rows))


def _frames(num_groups: int, num_frames: int) -> tuple[list[str], list[str]]:
    names = [
        (f"g{group}", f"Training/g{group}/{frame}_100.jpg")
        for group in range(num_groups)
        for frame in range(num_frames)
    ]
    return [name[0] for name in names], [name[1] for name in names]


@given(st.integers(1, 5), st.integers(2, 120), st.floats(0.01, 0.5), st.integers(0, 3))
def test_validation_takes_one_run_of_neighbouring_frames_per_group(
    num_groups: int, num_frames: int, fraction: float, seed: int
) -> None:
    groups, paths = _frames(num_groups, num_frames)
    mask = validation_mask(groups, paths, fraction, seed).reshape(num_groups, num_frames)
    length = min(round(num_frames * fraction), num_frames - 1)
    for chosen in mask:
        assert chosen.sum() == length or (length == 0 and chosen.sum() == 1)
        edges = int((chosen != np.roll(chosen, 1)).sum())
        assert edges in (0, 2), "one run on the circle"


def test_the_choice_of_validation_rows_does_not_depend_on_their_order() -> None:
    groups, paths = _frames(3, 40)
    mask = validation_mask(groups, paths, 0.2, 7)
    shuffled = np.random.default_rng(0).permutation(len(groups))
    again = validation_mask([groups[i] for i in shuffled], [paths[i] for i in shuffled], 0.2, 7)
    assert (mask[shuffled] == again).all()


@pytest.mark.parametrize(("num_rows", "fewest", "most"), [(1000, 30, 70), (40, 1, 8), (2, 1, 1)])
def test_pictures_that_are_no_frames_of_anything_are_drawn_singly(num_rows: int, fewest: int, most: int) -> None:
    names = [f"holiday/{row:x}.jpg" for row in range(num_rows)]
    assert fewest <= validation_mask(names, names, 0.05, 0).sum() <= most


def test_row_keys_depend_on_seed_epoch_and_row_and_hardly_collide() -> None:
    rows = np.arange(50_000)
    keys = row_keys(0, np.zeros_like(rows), rows)
    assert keys.dtype == np.int32
    assert len(np.unique(keys)) > 49_900
    for other in (row_keys(1, np.zeros_like(rows), rows), row_keys(0, np.ones_like(rows), rows)):
        assert (keys != other).mean() > 0.999


def test_the_last_group_of_each_class_that_has_several_is_held_out() -> None:
    groups = ["a/", "a/r_", "a/r10_", "a/r2_", "b/", "b/", "c/r_", "c/"]
    assert held_out_groups(groups, [0, 0, 0, 0, 1, 1, 2, 2]) == {"a/r_", "c/r_"}


def test_a_row_is_held_out_or_validates_or_trains() -> None:
    groups = [f"{label}/{axis}" for label in range(3) for axis in ("", "r_") for _ in range(40)]
    paths = [f"{row}_100.jpg" for row in range(len(groups))]
    labels = [row // 80 for row in range(len(groups))]
    config = TrainConfig(dataset="d", run="r", hold_out_groups=True)
    held, validation = held_and_validation(groups, paths, labels, config)
    assert {group for group, is_held in zip(groups, held, strict=True) if is_held} == {"0/r_", "1/r_", "2/r_"}
    assert held.sum() == 120
    assert validation.sum() == 6
    assert not (held & validation).any()
    plain = held_and_validation(groups, paths, labels, config.model_copy(update={"hold_out_groups": False}))
    assert (plain[0].sum(), plain[1].sum()) == (0, 12)
