"""shared_sum.py: every process gets the same bits, of a sum in the order of the ranks; nobody waits for the dead."""

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fruitcnn import shared_sum
from fruitcnn.shared_sum import PeerLostError, SharedShares, SharedSum

pytestmark = [
    pytest.mark.skipif(not shared_sum.IS_POSSIBLE, reason="this system has no memory without a name"),
    pytest.mark.timeout(30),
]

NUMBERS = itertools.count()


def in_a_group(size: int, work: Callable[[SharedSum], Any]) -> list[Any]:
    """What `work` returns on each rank; the processes of a group are threads here: nothing tells them apart."""
    meeting = f"test-{os.getpid()}-{next(NUMBERS)}"

    def one(rank: int) -> Any:
        member = SharedSum(meeting, rank, size)
        try:
            return work(member)
        finally:
            member.close()

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


def assert_equal(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> None:
    for one, two in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, two)
        assert one.shape == two.shape


def drawn(rank: int, shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    return np.asarray(np.random.default_rng((rank, *shape)).standard_normal(shape)).astype(dtype)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_every_rank_gets_the_sum_in_the_order_of_the_ranks(size: int) -> None:
    """To the bit, whatever the shapes; single numbers, more numbers than before, and another type in between."""
    calls = [([(3, 3, 3, 16), (16,), (120,)], np.float32), ([(1,)], np.float64), ([(500, 101), (), (7, 1)], np.float32)]
    calls = [*calls, *calls]

    def work(member: SharedSum) -> list[list[np.ndarray]]:
        added = []
        for number, (shapes, dtype) in enumerate(calls):
            own = [drawn(10 * number + member.rank, shape, dtype) for shape in shapes]
            added.append([array.copy() for array in member.add(*own)])
        return added

    for found in in_a_group(size, work):
        for number, (shapes, dtype) in enumerate(calls):
            for shape, array in zip(shapes, found[number], strict=True):
                wanted = drawn(10 * number, shape, dtype)
                for rank in range(1, size):
                    wanted = wanted + drawn(10 * number + rank, shape, dtype)
                np.testing.assert_array_equal(array, wanted)
                assert array.dtype == dtype


@pytest.mark.parametrize("size", [2, 3, 5])
def test_shares_of_the_sum_are_made_into_shares_of_what_all_see(size: int) -> None:
    """The sum to the bit; what was spread stays while others begin the next sum, and while something is collected."""
    shapes = [(3, 3, 3, 16), (16,), (), (500, 101)]
    start = [drawn(99, shape) for shape in shapes]

    def work(member: SharedSum) -> None:
        with closing(SharedShares(meeting, member.rank, size, start)) as shares:
            own = shares.share_of(start)
            seen, wanted = shares.spread(own), start
            for number in range(3):
                of_ranks = [[drawn(10 * number + rank, shape) for shape in shapes] for rank in range(size)]
                assert_equal(seen, wanted)
                own += shares.sum(*of_ranks[member.rank])
                total = [sum(arrays[1:], arrays[0]) for arrays in zip(*of_ranks, strict=True)]
                wanted = [one + two for one, two in zip(wanted, total, strict=True)]
                seen = shares.spread(own)
                assert_equal(shares.collect(own / 2), [array / 2 for array in wanted])
            assert_equal(seen, wanted)

    meeting = f"test-shares-{os.getpid()}-{next(NUMBERS)}"
    in_a_group(size, work)


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_all_others_are_told_when_one_has_ended(dead: int) -> None:
    def work(member: SharedSum) -> str:
        member.add(np.ones(3))
        if member.rank == dead:
            return "ended"
        with pytest.raises(PeerLostError, match="waited for a worker that has ended"):
            member.add(np.ones(3))
        return "told"

    assert sorted(in_a_group(3, work)) == ["ended", "told", "told"]


def test_nothing_is_left_in_the_file_system() -> None:
    """Not even while it is used: so there is nothing that a killed process could leave behind."""
    places = [Path("/dev/shm"), Path("/tmp")]

    def work(member: SharedSum) -> set[Path]:
        member.add(np.ones(100_000))
        return {path for place in places for path in place.iterdir() if "fruitcnn-" in path.name and path not in before}

    before = {path for place in places for path in place.iterdir()}
    assert in_a_group(2, work) == [set(), set()]


def test_whoever_stays_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_sum, "_MEETING_SECONDS", 0.2)
    with pytest.raises(PeerLostError, match=r"1 of 2 workers came within 0\.2 s"):
        SharedSum("test-alone", 0, 2)
    with pytest.raises(PeerLostError, match=r"the first worker did not come within 0\.2 s"):
        SharedSum("test-nobody", 1, 2)


def test_a_process_of_another_user_is_not_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_sum, "_is_own", lambda _: False)
    monkeypatch.setattr(shared_sum, "_MEETING_SECONDS", 0.5)
    with pytest.raises(PeerLostError):
        in_a_group(2, lambda member: member.add(np.ones(1)))
