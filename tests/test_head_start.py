"""head_start.py: the job's own process begins; nothing is done twice, nothing is left out, no error is lost."""

import threading
import time

import pytest

from fruitcnn import head_start
from fruitcnn.head_start import HeadStart


def test_a_small_job_is_done_here_and_ray_is_never_asked_for() -> None:
    done: list[int] = []
    with HeadStart(range(20), [done.append] * 2) as start:
        assert not start.ray_pays()
    assert sorted(done) == list(range(20))


def test_of_a_large_job_each_part_is_either_done_here_or_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_start, "HAND_OVER_SECONDS", 0.1)
    done: list[int] = []

    def work(part: int) -> None:
        time.sleep(0.01)
        done.append(part)

    with HeadStart(range(10_000), [work] * 2) as start:
        assert start.ray_pays()
        given = start.hand_over()
    assert given == list(range(given[0], 10_000))
    assert sorted(done) == list(range(given[0]))
    assert len(done) >= 2


def test_work_that_slows_down_calls_for_ray_later() -> None:
    released = threading.Event()

    def work(part: int) -> None:
        if part > 10:
            released.wait(10)

    with HeadStart(range(30), [work] * 2, pays_seconds=0.5) as start:
        assert start.ray_pays()
        released.set()


def test_an_error_of_a_part_ends_the_work_and_is_raised() -> None:
    done: list[int] = []

    def work(part: int) -> None:
        if part == 3:
            raise ValueError("part 3 is bad")
        done.append(part)

    with pytest.raises(ValueError, match="part 3 is bad"), HeadStart(range(100_000), [work] * 2) as start:
        start.ray_pays()
    assert len(done) < 100_000


def test_an_error_elsewhere_stops_the_work_after_the_parts_under_way() -> None:
    done: list[int] = []
    begun, released = threading.Event(), threading.Event()

    def work(part: int) -> None:
        begun.set()
        released.wait(10)
        done.append(part)

    def interrupted() -> None:
        begun.wait(10)
        threading.Timer(0.2, released.set).start()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), HeadStart(range(100_000), [work] * 2):
        interrupted()
    assert 1 <= len(done) <= 2
