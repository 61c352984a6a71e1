"""What was trained and decided -> MLflow, where MLFLOW_TRACKING_URI names a server. Last step of train and retrain.

    pip install 'fruitcnn[mlflow]'; export MLFLOW_TRACKING_URI=http://mlflow:5000 MLFLOW_EXPERIMENT_NAME=fruit

A run in MLflow is a training run: its config, its curves, its records, and once it was decided on, the evidence and the
report. A promoted one is a model version too, with the alias `champion` on that of the registry's champion. What is in
MLflow is a copy for people to look at: the registry's log stays the truth, and a server that is down or refuses is a
line on stderr and no error. The same again adds nothing.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fruitcnn import registry, runs, storage
from fruitcnn.registry import Record

VARIABLE = "MLFLOW_TRACKING_URI"
EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
_DEFAULT_EXPERIMENT = "fruitcnn"
ALIAS = "champion"

_RUN, _RECORD, _VERSION, _REGISTRY = "fruitcnn.run", "fruitcnn.record", "fruitcnn.version", "fruitcnn.registry"
# MLflow takes so many metrics at once, and not more characters of a parameter or a tag.
_MOST_METRICS = 1_000
_MOST_RUNS = 10_000
_MOST_CHARS = 5_000
_MOST_SHOWN = 300
# A job waits for its end only, but not for the quarter of an hour that MLflow tries by default.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
          "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}  # fmt: skip


def log_run(run: str) -> None:
    """Copy a finished training run, at most once."""
    _carry_out(lambda client: _run_of(client, storage.normalise(run)))


def follow(registry_uri: str) -> None:
    """Copy the decisions of all nights that are not there yet, and let the alias say which version is in production."""
    _carry_out(lambda client: _follow(client, registry_uri))


def _carry_out(work: Callable[[Any], Any]) -> None:
    server = os.environ.get(VARIABLE)
    if not server:
        return
    for name, value in (_PATIENCE | _QUIET).items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError:
        _complain(f"{VARIABLE} is set, but MLflow is not installed: pip install 'fruitcnn[mlflow]'")
        return
    try:
        work(MlflowClient())
    except (MlflowException, OSError, ValueError) as error:
        # Whatever becomes of somebody else's server must not undo a night.
        _complain(f"no word reached MLflow at {server}: {' '.join(str(error).split())[:_MOST_SHOWN]}")


def _follow(client: Any, uri: str) -> None:
    log = registry.read_log(uri)
    known = _known_records(client, uri)
    for record in log:
        # Of a challenger whose work gc removed there is nothing left to copy.
        if record.evidence.get("work") and str(record.number) not in known and runs.result(_run_uri(uri, record)):
            _log_decision(client, uri, record)
    _point(client, uri, registry.champion(log))


def _point(client: Any, uri: str, champion: int | None) -> None:
    """Put the alias on the champion; away from all where MLflow has not got it, as when a person added it by hand."""
    there = client.search_model_versions(f"name='{_experiment()}'")
    wanted = {_REGISTRY: uri, _VERSION: str(champion)}.items()
    found = [each for each in there if wanted <= each.tags.items()]
    if found:
        client.set_registered_model_alias(_experiment(), ALIAS, found[0].version)
    elif there:
        client.delete_registered_model_alias(_experiment(), ALIAS)


def _known_records(client: Any, uri: str) -> set[str]:
    found = client.search_runs([_experiment_id(client)], f"tags.`{_REGISTRY}` = '{uri}'", max_results=_MOST_RUNS)
    return {run.data.tags.get(_RECORD) for run in found}


def _log_decision(client: Any, uri: str, record: Record) -> None:
    run_id = _run_of(client, _run_uri(uri, record))
    figures = {name: value for name, value in record.evidence.items() if isinstance(value, int | float)}
    _log_metrics(client, run_id, [(f"gate_{name}", float(value), 0, 0) for name, value in figures.items()])
    with tempfile.TemporaryDirectory(prefix="fruitcnn-mlflow-") as folder:
        if report := record.evidence.get("report"):
            _log_bytes(client, run_id, "report.html", storage.read(report))
        if record.kind == "promoted":
            storage.download_directory(registry.version_uri(uri, record.version or 0), folder)
            client.log_artifacts(run_id, folder, "model")
            _add_version(client, uri, record, run_id)
    tags = {"outcome": record.kind, "reason": record.reason, _REGISTRY: uri, _RECORD: str(record.number)}
    # The tag of the record comes last: where it is missing, the next night does all of this again.
    for name, value in tags.items():
        client.set_tag(run_id, name, value[:_MOST_CHARS])


def _run_uri(uri: str, record: Record) -> str:
    return storage.join(uri, "work", record.evidence["work"], "run")


def _add_version(client: Any, uri: str, record: Record, run_id: str) -> None:
    tags = {_REGISTRY: uri, _VERSION: str(record.version), _RECORD: str(record.number)}
    known = client.search_model_versions(f"name='{_experiment()}'")
    if any(tags.items() <= each.tags.items() for each in known):
        return
    if not client.search_registered_models(f"name='{_experiment()}'"):
        client.create_registered_model(_experiment())
    source = f"{client.get_run(run_id).info.artifact_uri}/model"
    about = {"tags": tags, "description": record.reason[:_MOST_CHARS], "await_creation_for": 0}
    client.create_model_version(_experiment(), source, run_id=run_id, **about)


def _run_of(client: Any, run: str) -> str:
    """The id of the MLflow run that stands for this training run, made and filled if there is none."""
    experiment_id = _experiment_id(client)
    result = runs.result(run)
    if result is None:
        raise ValueError(f"{run} holds no finished training run")
    found = client.search_runs([experiment_id], f"tags.`{_RUN}` = '{run}' and attributes.status = 'FINISHED'")
    if found:
        return str(found[0].info.run_id)
    run_id = str(client.create_run(experiment_id, tags={_RUN: run}, run_name=_name(run)).info.run_id)
    said = storage.read_json(storage.join(run, "config.json"))
    for name, value in said["config"].items():
        client.log_param(run_id, name, str(value)[:_MOST_CHARS])
    for name in ("dataset_version", "dataset_sha256"):
        client.set_tag(run_id, name, str(said.get(name)))
    _log_metrics(client, run_id, [*_curves(run), *_ends(result)])
    for name in ("config.json", "result.json"):
        _log_bytes(client, run_id, name, storage.read(storage.join(run, name)))
    client.set_terminated(run_id)
    return run_id


def _curves(run: str) -> Iterator[tuple[str, float, int, int]]:
    """(name, value, milliseconds since 1970, pictures seen) of every point."""
    for line in runs.read_metrics(run):
        for name in ("loss", "accuracy", "learning_rate"):
            if line.get(name) is not None:
                yield f"{line['kind']}_{name}", float(line[name]), int(line["time"] * 1000), int(line["images_seen"])


def _ends(result: dict[str, Any]) -> Iterator[tuple[str, float, int, int]]:
    for split in ("validation", "test", "leak_aware"):
        for name in ("loss", "accuracy"):
            if value := (result.get(split) or {}).get(name):
                yield f"final_{split}_{name}", float(value), 0, int(result["images_seen"])
    yield "images_per_second", float(result["images_per_second"]), 0, int(result["images_seen"])


def _log_metrics(client: Any, run_id: str, points: Sequence[tuple[str, float, int, int]]) -> None:
    from mlflow.entities import Metric

    for start in range(0, len(points), _MOST_METRICS):
        client.log_batch(run_id, metrics=[Metric(*point) for point in points[start : start + _MOST_METRICS]])


def _log_bytes(client: Any, run_id: str, name: str, data: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="fruitcnn-mlflow-") as folder:
        path = storage.join(folder, name)
        storage.write(path, data)
        client.log_artifact(run_id, path)


def _name(run: str) -> str:
    """What people see: 000004-3f0c of <registry>/work/000004-3f0c/run, the folder's name of other runs."""
    name = storage.name(run)
    return storage.name(run.removesuffix("/run")) if name == "run" else name


def _experiment_id(client: Any) -> str:
    experiment = client.get_experiment_by_name(_experiment())
    return str(experiment.experiment_id if experiment else client.create_experiment(_experiment()))


def _experiment() -> str:
    return os.environ.get(EXPERIMENT_VARIABLE, _DEFAULT_EXPERIMENT)


def _complain(problem: str) -> None:
    print(problem, file=sys.stderr)
