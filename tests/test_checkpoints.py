"""checkpoints.py: a checkpoint is whole or none, a torn one is never loaded, the newest and the best are kept."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from fault_server import SLOW_DOWN, fault_server

from cluster.local_s3 import LocalS3
from fruitcnn import checkpoints, storage, storage_clients, storage_s3
from fruitcnn.checkpoints import State, Writer
from tests.disks import disk


def state(step: int) -> State:
    return State(step, [np.full((2, 3), step, np.float32), np.arange(12.0)], [np.array(step)])


def test_what_was_saved_is_what_is_loaded(any_prefix: str) -> None:
    name = checkpoints.save(any_prefix, state(7), {"accuracy": 0.5})
    found = checkpoints.load(any_prefix, name)
    assert found.step == 7
    for wrote, read in zip(state(7).weights + state(7).optimizer, found.weights + found.optimizer, strict=True):
        np.testing.assert_array_equal(wrote, read)
    assert checkpoints.facts(any_prefix, name)["accuracy"] == 0.5


def test_without_a_manifest_there_is_no_checkpoint(tmp_path: Path) -> None:
    name = checkpoints.save(str(tmp_path), state(1), {})
    (tmp_path / "checkpoints" / name / "manifest.json").unlink()
    assert checkpoints.complete(str(tmp_path)) == []
    assert checkpoints.latest(str(tmp_path)) is None


@pytest.mark.parametrize("file", ["weights.npz", "optimizer.npz"])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, file: str, damage: str) -> None:
    checkpoints.save(str(tmp_path), state(1), {})
    target = tmp_path / "checkpoints" / checkpoints.save(str(tmp_path), state(2), {}) / file
    data = target.read_bytes()
    target.unlink()
    if damage == "cut":
        target.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        target.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    found = checkpoints.latest(str(tmp_path))
    assert found is not None
    assert found.step == 1


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    writer = Writer(str(tmp_path), keep=2)
    for step, score in ((1, 0.2), (2, 0.9), (3, 0.5), (4, None), (5, 0.4)):
        writer.submit(state(step), score, {})
    writer.wait()
    assert checkpoints.complete(str(tmp_path)) == [checkpoints.checkpoint_name(step) for step in (2, 4, 5)]
    assert writer.best == checkpoints.checkpoint_name(2)


@pytest.mark.s3
@pytest.mark.fault
def test_a_store_that_is_away_for_a_while_costs_no_checkpoint_and_no_waiting(
    s3: LocalS3, s3_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # FRUITCNN_OUTAGE_SECONDS=30 for the outage that issue 3 names; storage.py by itself outlasts a few seconds.
    seconds = float(os.environ.get("FRUITCNN_OUTAGE_SECONDS", "4"))
    monkeypatch.setattr(storage_s3, "BUSY_SECONDS", min(seconds / 2, storage_s3.BUSY_SECONDS))
    monkeypatch.setattr(storage_clients, "_RETRIES", {"max_retries": 1})
    back_at = time.monotonic() + seconds
    with fault_server(lambda *_: SLOW_DOWN if time.monotonic() < back_at else None, s3.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        writer = Writer(s3_prefix, keep=2)
        writer.submit(state(1), 0.5, {})
        assert time.monotonic() < back_at, "the step loop does not wait"
        writer.wait()
        assert time.monotonic() > back_at
        assert checkpoints.complete(s3_prefix) == [checkpoints.checkpoint_name(1)]


@pytest.mark.fault
def test_a_full_disk_leaves_the_checkpoint_before_and_says_what_to_do(tmp_path: Path) -> None:
    with disk(tmp_path, "size=64k"):
        writer = Writer(str(tmp_path / "run"), keep=2)
        writer.submit(state(1), None, {})
        writer.submit(State(2, [np.zeros(100_000, np.float32)], []), None, {})
        with pytest.raises(storage.StorageError, match="no space left on the device: free some"):
            writer.wait()
        found = checkpoints.latest(str(tmp_path / "run"))
        assert found is not None
        assert found.step == 1


def test_a_failed_write_is_raised_not_lost(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    writer = Writer(str(blocked), keep=1)
    writer.submit(state(1), None, {})
    with pytest.raises(storage.StorageError, match="file"):
        writer.wait()
    writer.wait()
