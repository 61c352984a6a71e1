"""train.py: a run ends as if no worker had been killed; the same command again changes nothing."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fruitcnn import checkpoints, runs, storage
from fruitcnn.errors import UsageError
from fruitcnn.recipe import TrainConfig
from fruitcnn.shard_config import ShardConfig
from fruitcnn.shards import write_dataset
from jobs.cli import progress

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@contextmanager
def silent(*arguments: Any, **named: Any) -> Iterator[Callable[..., None]]:
    yield lambda *said, **also: None


@pytest.fixture(scope="module")
def dataset(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("train") / "dataset")
    write_dataset(ShardConfig(source="synthetic:4x60", dataset=uri), progress)
    return uri


def config(dataset: str, run: Path, **given: Any) -> TrainConfig:
    defaults = {"images_seen": 64 * 24, "num_evaluations": 2, "learning_rate": 1e-3, "optimizer": "sgd"}
    return TrainConfig(dataset=dataset, run=str(run), **(defaults | given))


def final_weights(run: Path) -> list[np.ndarray]:
    return checkpoints.load(str(run), checkpoints.complete(str(run))[-1]).weights


@pytest.fixture(scope="module")
def undisturbed(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one worker."""
    from fruitcnn.train import train

    run = tmp_path_factory.mktemp("undisturbed") / "run"
    result = train(config(dataset, run), silent)
    assert result["num_steps"] == 24
    assert result["test"]["num_rows"] == 60
    return run


def test_a_finished_run_leaves_its_config_curves_and_result(undisturbed: Path) -> None:
    lines = runs.read_metrics(str(undisturbed))
    assert {line["kind"] for line in lines} == {"train", "validation"}
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [12, 24]
    found = storage.read_json(str(undisturbed / "config.json"))
    assert found["config"]["optimizer"] == "sgd"
    assert len(found["classes"]) == 4


def test_a_dry_run_says_what_nodes_would_take_and_writes_nothing(dataset: str, tmp_path: Path) -> None:
    # In a process of its own, as from the command line: TensorFlow takes its threads once.
    program = (
        "import json, sys; from fruitcnn import recipe, train_forecast; train_forecast.SECONDS = 0.0; "
        "print(json.dumps(train_forecast.dry_run(recipe.TrainConfig(**json.loads(sys.argv[1])))))"
    )
    asked = config(dataset, tmp_path / "run", dry_run=True).model_dump_json(exclude_unset=True)
    done = subprocess.run([sys.executable, "-c", program, asked], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said["steps"] == "24 of 64 pictures"
    assert "32 rows" in said["tried"]
    assert said["2 nodes"].split()[1] == "s"
    assert not (tmp_path / "run").exists()


def test_the_same_command_again_changes_nothing(dataset: str, undisturbed: Path) -> None:
    from fruitcnn.train import train

    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()}
    train(config(dataset, undisturbed, num_workers=2), silent)
    assert before == {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()}


def test_a_run_of_another_config_is_refused(dataset: str, undisturbed: Path) -> None:
    from fruitcnn.train import train

    with pytest.raises(UsageError, match="seed: there 0, here 9"):
        train(config(dataset, undisturbed, seed=9), silent)


def test_what_the_user_can_mend_is_not_tried_again(dataset: str, tmp_path: Path) -> None:
    from fruitcnn.train import train
    from jobs.session import root_cause

    began = time.monotonic()
    with pytest.raises(Exception) as caught:
        train(config(dataset, tmp_path / "run", learning_rate=1e30, max_failures=3), silent)
    assert "--learning-rate: got 1e+30" in str(root_cause(caught.value))
    assert time.monotonic() - began < 120


def test_workers_that_the_cluster_has_no_room_for_are_said_instead_of_waited_for(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster after a while: it may be about to get nodes."""
    from fruitcnn import train as train_module

    monkeypatch.setattr(train_module, "_START_SECONDS", 2)
    monkeypatch.setenv("RAY_ADDRESS", "a cluster's")
    with pytest.raises(runs.TrainError, match=r"--num-workers: got 2, each with 1000 CPUs.*give fewer workers"):
        train_module.train(config(dataset, tmp_path / "run", num_workers=2, cpus_per_worker=1000), silent)


@pytest.mark.parametrize(
    "too_much",
    [{"cpus_per_worker": 1000}, {"use_gpu": True, "num_workers": 64, "global_batch_size": 2048}],
)
def test_what_this_machine_has_no_room_for_is_said_at_once(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, too_much: dict[str, Any]
) -> None:
    from fruitcnn import train as train_module

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(
        UsageError, match=r"--num-workers: got \d+, each with \d+ CPUs.* there are \d+ CPUs and \d+ GPUs"
    ):
        train_module.train(config(dataset, tmp_path / "run", **too_much), silent)
