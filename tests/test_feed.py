"""feed.py: what workers get together is the global batch, in order; an error in its thread reaches the loop."""

import threading

import numpy as np
import pytest

from fruitcnn.feed import Feed, InMemory
from fruitcnn.sampling import Order

PIXELS = np.arange(200 * 2 * 2 * 3, dtype=np.uint8).reshape(200, 2, 2, 3)
LABELS = np.arange(200) % 7
TRAIN_ROWS = np.flatnonzero(np.arange(200) % 10 != 0)


def feed(rank: int = 0, world_size: int = 1, pixels: np.ndarray = PIXELS) -> Feed:
    return Feed(Order(len(TRAIN_ROWS), 1), TRAIN_ROWS, InMemory(pixels), LABELS, 32, rank, world_size)


@pytest.mark.parametrize("world_size", [2, 4])
def test_workers_together_see_the_batches_of_one(world_size: int) -> None:
    alone = list(feed().batches(0, 12))
    together = [list(feed(rank, world_size).batches(0, 12)) for rank in range(world_size)]
    for step, batch in enumerate(alone):
        for name in ("rows", "keys", "labels", "images"):
            pieces = np.concatenate([getattr(batches[step], name) for batches in together])
            np.testing.assert_array_equal(pieces, getattr(batch, name))


def test_validation_rows_are_never_fed() -> None:
    seen = np.concatenate([batch.rows for batch in feed().batches(0, 12)])
    assert set(seen) == set(TRAIN_ROWS)


def test_a_row_comes_with_its_own_pixels_and_label() -> None:
    for batch in feed().batches(3, 6):
        np.testing.assert_array_equal(batch.images, PIXELS[batch.rows])
        np.testing.assert_array_equal(batch.labels, LABELS[batch.rows])


def test_starting_in_the_middle_gives_what_would_have_come() -> None:
    whole = list(feed().batches(0, 9))
    for resumed, batch in zip(feed().batches(4, 9), whole[4:], strict=True):
        np.testing.assert_array_equal(resumed.rows, batch.rows)
        np.testing.assert_array_equal(resumed.keys, batch.keys)


def test_an_error_while_gathering_reaches_the_loop() -> None:
    with pytest.raises(IndexError):
        list(feed(pixels=PIXELS[:50]).batches(0, 3))


def test_an_abandoned_feed_leaves_no_thread_behind() -> None:
    batches = feed().batches(0, 10_000)
    next(batches)
    batches.close()
    for thread in threading.enumerate():
        if thread.name == "feed":
            thread.join(timeout=5)
            assert not thread.is_alive()
