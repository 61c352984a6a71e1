"""tracking.py: what MLflow is told, by a real server; and that a night does not depend on it.

The server is the `mlflow` command that FRUITCNN_MLFLOW names, of an environment of its own: `make proofs` makes one.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fruitcnn import registry, storage, tracking, versions
from fruitcnn.recipe import TrainConfig
from fruitcnn.retrain import Challenge
from tests.night import CheapStages, night, world
from tests.tiny_bundle import write_bundle

SERVER_VARIABLE = "FRUITCNN_MLFLOW"


class TrackedStages(CheapStages):
    """Cheap stages whose training leaves the records of a real run."""

    def train(self, challenge: Challenge) -> None:
        run = challenge.training.run
        config = TrainConfig(dataset="d", run=run, seed=challenge.training.seed).model_dump(mode="json")
        said = {"config": config, "dataset_version": 1, "dataset_sha256": "0", "classes": ["a", "b"]}
        points = [
            {"kind": kind, "step": step, "images_seen": 64 * step, "loss": 1 / step, "accuracy": 0.5, "time": 1.8e9}
            for step in range(1, 4)
            for kind in ("train", "validation")
        ]
        storage.write_json(storage.join(run, "config.json"), said)
        storage.write(storage.join(run, "metrics.jsonl"), "".join(json.dumps(p) + "\n" for p in points).encode())
        score = {"accuracy": 0.75, "loss": 0.25, "num_rows": 4}
        result = {"seed": 0, "images_seen": 192, "images_per_second": 10.0, "validation": score, "test": score}
        storage.write_json(storage.join(run, "result.json"), result)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real MLflow server."""
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed: make proofs does it")
    command = os.environ.get(SERVER_VARIABLE)
    if not command:
        pytest.skip(f"{SERVER_VARIABLE} is not set: it names the mlflow command of an environment of its own")
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri",
                 f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "kept")]  # fmt: skip
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", tracking.VARIABLE)}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [str(Path(command).absolute()), *arguments], env=clean, cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(log.read_text())


@pytest.fixture
def client(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    from mlflow import MlflowClient

    monkeypatch.setenv(tracking.VARIABLE, server)
    monkeypatch.setenv(tracking.EXPERIMENT_VARIABLE, tmp_path.name)
    return MlflowClient(server)


def one_night(folder: Path, **changes: Any) -> str:
    source, uri = world(folder / "world.json", **changes), str(folder / "registry")
    night(source, str(folder / "dataset"), uri, TrackedStages())
    tracking.follow(uri)
    return uri


@pytest.mark.long
def test_nights_become_runs_with_curves_evidence_and_a_model_version(
    client: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    night(world(tmp_path / "world.json"), str(tmp_path / "dataset"), str(tmp_path / "registry"), TrackedStages())
    uri = one_night(tmp_path)  # nothing new; the night before, of which MLflow was not told, is made up for
    one_night(tmp_path, num_rows=150)
    one_night(tmp_path, num_rows=200, challenger=0.8)
    assert capsys.readouterr() == ("", "")
    name = tmp_path.name
    runs = client.search_runs([client.get_experiment_by_name(name).experiment_id], order_by=["start_time"])
    assert [run.data.tags["outcome"] for run in runs] == ["promoted", "promoted", "rejected"]
    assert "not shown to be better" in runs[2].data.tags["reason"]
    assert [run.data.params["seed"] for run in runs] == ["0", "1", "2"]
    assert runs[1].data.metrics["gate_challenger_accuracy"] == pytest.approx(0.98)
    assert runs[0].data.metrics["final_test_accuracy"] == 0.75
    curve = client.get_metric_history(runs[0].info.run_id, "train_loss")
    assert [(point.step, point.value) for point in curve] == [(64, 1.0), (128, 0.5), (192, pytest.approx(1 / 3))]
    files = {each.path for each in client.list_artifacts(runs[1].info.run_id)}
    assert files == {"config.json", "result.json", "report.html", "model"}
    assert {each.path for each in client.list_artifacts(runs[1].info.run_id, "model")} >= {"model/model.json"}

    def champion() -> str:
        return str(client.get_model_version_by_alias(name, tracking.ALIAS).tags["fruitcnn.version"])

    assert len(client.search_model_versions(f"name='{name}'")) == 2
    assert champion() == "2"
    versions.roll_back(uri, None, "calls lemons limes")
    tracking.follow(uri)
    assert champion() == "1"
    versions.promote(uri, versions.add(uri, write_bundle(tmp_path / "by-hand")), "a person's own")
    for _ in range(2):
        tracking.follow(uri)  # of what no night made, MLflow has nothing to point to
    assert "champion" not in client.get_registered_model(name).aliases
    kept = client.download_artifacts(runs[1].info.run_id, "model/model.json", str(tmp_path))
    assert Path(kept).read_bytes() == Path(registry.version_uri(uri, 2), "model.json").read_bytes()


@pytest.mark.long
def test_a_run_is_copied_once_and_a_copy_that_was_cut_off_is_made_again(client: Any, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    challenge = Challenge("d", None, "", TrainConfig(dataset="d", run=run), None, None, None, None)  # type: ignore[arg-type]
    TrackedStages().train(challenge)
    experiment = client.create_experiment(tmp_path.name)
    client.create_run(experiment, tags={"fruitcnn.run": run})  # killed in the middle: it never ended
    for _ in range(2):
        tracking.log_run(run)
    found = client.search_runs([experiment], "attributes.status = 'FINISHED'")
    assert [each.data.tags["fruitcnn.run"] for each in found] == [run]


def test_without_the_variable_nothing_is_imported_and_nothing_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(tracking.VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    tracking.log_run(str(tmp_path / "none"))
    tracking.follow(str(tmp_path / "none"))
    assert capsys.readouterr().err == ""


def test_where_mlflow_is_not_installed_that_is_said_and_the_night_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(tracking.VARIABLE, "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    uri = one_night(tmp_path)
    assert registry.champion(registry.read_log(uri)) == 1
    assert "MLflow is not installed: pip install 'fruitcnn[mlflow]'" in capsys.readouterr().err


def test_a_server_that_is_down_is_a_line_and_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv(tracking.VARIABLE, "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    one_night(tmp_path)
    assert "no word reached MLflow at http://127.0.0.1:9" in capsys.readouterr().err
