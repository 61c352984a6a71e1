"""lease.py: one attempt at a time; who was frozen past the end of its lease cannot publish, whenever it wakes up."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fruitcnn import lease, registry
from fruitcnn.lease import LeaseHeldError, LeaseLostError

ROOT = Path(__file__).parent.parent
SECONDS = 1.0

HOLDER = """
import sys
from fruitcnn import lease
held = lease.acquire(sys.argv[1], "retrain", float(sys.argv[2]))
with held.kept():
    held.enter("train")
    print("holding", flush=True)
    sys.stdin.readline()
    try:
        print(held.append("promoted", 1, "better").number, flush=True)
    except ValueError as error:
        print(type(error).__name__, error, flush=True)
"""


def holder(uri: str, seconds: float = SECONDS) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, uri, str(seconds)], cwd=ROOT, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "holding\n"
    return process


def test_the_second_stands_aside_and_says_who_is_at_work_until_the_first_has_ended(any_prefix: str) -> None:
    held = lease.acquire(any_prefix, "retrain", 60)
    held.enter("train")
    with pytest.raises(LeaseHeldError, match=r"attempt 1 \(retrain by .*, train\) runs since"):
        lease.acquire(any_prefix, "retrain", 60)
    held.append("promoted", 1, "better")
    held.end("promoted", "better")
    second = lease.acquire(any_prefix, "retrain", 60)
    assert (second.attempt.attempt, second.base) == (2, 1)
    assert [attempt.outcome for attempt in lease.read_attempts(any_prefix, 9)] == ["", "promoted"]
    assert [record.kind for record in registry.read_log(any_prefix)] == ["promoted"]


def test_of_many_that_start_at_once_one_gets_the_lease(any_prefix: str) -> None:
    def try_it(_: int) -> int:
        try:
            return lease.acquire(any_prefix, "retrain", 60).attempt.attempt
        except LeaseHeldError:
            return 0

    with ThreadPoolExecutor(12) as pool:
        assert sorted(pool.map(try_it, range(12))) == [0] * 11 + [1]


def test_a_lease_is_extended_for_as_long_as_its_holder_lives(tmp_path: Path) -> None:
    process = holder(str(tmp_path), 0.8)
    time.sleep(2)
    with pytest.raises(LeaseHeldError):
        lease.acquire(str(tmp_path), "retrain", 60)
    assert process.communicate("go\n")[0] == "1\n"


@pytest.mark.fault
def test_who_was_killed_is_followed_after_the_lease_and_the_log_says_so(any_prefix: str) -> None:
    process = holder(any_prefix)
    process.kill()
    process.communicate()
    with pytest.raises(LeaseHeldError):
        lease.acquire(any_prefix, "retrain", 60)
    time.sleep(SECONDS)
    assert lease.acquire(any_prefix, "retrain", 60).attempt.attempt == 2
    (record,) = registry.read_log(any_prefix)
    assert record.kind == "taken over"
    assert "stopped without a word at train; attempt 2 goes on" in record.reason


@pytest.mark.fault
@pytest.mark.parametrize("others", ["nobody", "one that works still", "one that has ended", "one that published"])
def test_a_holder_frozen_past_its_lease_and_woken_cannot_publish(any_prefix: str, others: str) -> None:
    process = holder(any_prefix)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(SECONDS + 0.1)
    if others != "nobody":
        second = lease.acquire(any_prefix, "retrain", 60)
        if others == "one that published":
            second.append("promoted", 2, "better still")
        if others != "one that works still":
            second.end("done", "done")
    before = registry.read_log(any_prefix)
    os.kill(process.pid, signal.SIGCONT)
    said, _ = process.communicate("publish now\n")
    assert said.startswith("LeaseLostError attempt 1 stops"), said
    assert registry.read_log(any_prefix) == before


def test_even_between_looking_at_its_lease_and_writing_a_frozen_holder_is_kept_out(any_prefix: str) -> None:
    """Frozen at the worst moment: it has just seen that the lease is its own. The number it may write to is taken."""
    first = lease.acquire(any_prefix, "retrain", 0.3)
    first.require()
    time.sleep(0.4)
    second = lease.acquire(any_prefix, "retrain", 60)
    with pytest.raises(registry.OvertakenError, match="taken over: attempt 1"):
        registry.append(any_prefix, "promoted", 1, "better", after=first.base)
    assert second.append("promoted", 2, "better").number == 2


def test_a_person_who_decides_meanwhile_stops_the_attempt_from_publishing(any_prefix: str) -> None:
    held = lease.acquire(any_prefix, "retrain", 60)
    registry.append(any_prefix, "promoted", 5, "by hand", after=0)
    with pytest.raises(registry.OvertakenError, match="by hand"):
        held.append("promoted", 6, "better")


def test_a_lease_that_ran_out_cannot_be_extended(tmp_path: Path) -> None:
    held = lease.acquire(str(tmp_path), "retrain", 0.2)
    time.sleep(0.3)
    for step in (held.extend, held.require, lambda: held.enter("gate")):
        with pytest.raises(LeaseLostError, match="ran out"):
            step()
