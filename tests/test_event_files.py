"""event_files.py: TensorBoard reads back what was measured, and after a resume nothing that was taken back."""

from pathlib import Path
from typing import Any

import pytest

from fruitcnn import event_files, storage

pytest.importorskip("tensorflow")


def line(step: int, kind: str = "train") -> dict[str, Any]:
    return {"kind": kind, "step": step, "loss": 1 / step, "time": 1_700_000_000.0 + step}


def curves(run: str, folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    storage.download_directory(storage.join(run, "tensorboard"), folder)
    read = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_tensorboard_reads_every_record_once_and_in_order(any_prefix: str, tmp_path: Path) -> None:
    event_files.write(any_prefix, [line(1), line(2), line(2, "validation")])
    event_files.write(any_prefix, [])
    event_files.write(any_prefix, [line(3), line(4)])
    found = curves(any_prefix, tmp_path / "read")
    assert found["train/loss"] == [(step, pytest.approx(1 / step)) for step in (1, 2, 3, 4)]
    assert found["validation/loss"] == [(2, 0.5)]


def test_a_resumed_run_takes_back_what_came_after_its_step(any_prefix: str, tmp_path: Path) -> None:
    for step in (2, 4, 6):
        event_files.write(any_prefix, [line(step)])
    event_files.cut(any_prefix, 4)
    event_files.write(any_prefix, [line(5)])
    assert [step for step, _ in curves(any_prefix, tmp_path / "read")["train/loss"]] == [2, 4, 5]


def test_a_run_without_event_files_has_nothing_to_take_back(tmp_path: Path) -> None:
    event_files.cut(str(tmp_path / "new"), 0)
    assert not (tmp_path / "new").exists()
