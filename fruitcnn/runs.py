"""The run folder's own files: who owns it, what was measured, how it ended; between recipe and train. Pure.

<run>/config.json     written first: the complete config and what it was applied to
<run>/metrics.jsonl   one line per record of training and per validation; tensorboard/ holds the same as event files
<run>/result.json     written LAST
"""

from __future__ import annotations

import importlib.metadata
import json
import resource
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fruitcnn import storage
from fruitcnn.errors import UsageError
from fruitcnn.recipe import TrainConfig

DECIDING_PACKAGES = ("fruitcnn", "ray", "tensorflow", "tensorflow-cpu", "keras", "numpy", "simplejpeg", "pyarrow")
"""Packages whose versions decide a run's numbers."""


class TrainError(ValueError):
    """A run that cannot go on as it was asked for; the message names the argument to change."""


@dataclass(frozen=True)
class Facts:
    """What a run is applied to, the same for every worker."""

    classes: list[str]
    manifest_sha256: str
    dataset_version: int
    num_train_rows: int
    num_validation_rows: int
    num_steps: int


def claim(config: TrainConfig, facts: Facts) -> None:
    """Write config.json, or see that the one there belongs to the same run. Raises UsageError where it does not."""
    uri = storage.join(config.run, "config.json")
    wanted = {"identity": config.identity(), **asdict(facts), "library_version": importlib.metadata.version("fruitcnn")}
    if not storage.exists(uri):
        if not storage.is_empty(config.run):
            raise UsageError(
                f"--run: {config.run} is not empty and holds no config.json, wanted an empty or a new folder: give "
                "--run another one"
            )
        storage.write_json(uri, {"config": config.model_dump(mode="json"), **wanted})
        return
    different = _differences(storage.read_json(uri), wanted)
    if different:
        raise UsageError(
            f"--run: {config.run} belongs to another run ({'; '.join(different)}): give --run another folder, or the "
            "same arguments to go on"
        )


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    # A run of an earlier version was told nothing of what came later: what it did then is the default now.
    defaults = {name: field.default for name, field in TrainConfig.model_fields.items() if not field.is_required()}
    here = wanted["identity"]
    there = {name: defaults.get(name) for name in here} | found.get("identity", {})
    names = sorted(there.keys() | here.keys())
    lines = [
        f"{name}: there {there.get(name)}, here {here.get(name)}" for name in names if there.get(name) != here.get(name)
    ]
    if found.get("manifest_sha256") != wanted["manifest_sha256"]:
        lines.append(f"data set: there version {found.get('dataset_version')}, here {wanted['dataset_version']}")
    return lines


def result(run: str) -> dict[str, Any] | None:
    """Return result.json, or None while the run is not finished."""
    uri = storage.join(run, "result.json")
    return storage.read_json(uri) if storage.exists(uri) else None


def write_result(run: str, found: dict[str, Any]) -> None:
    """Write result.json: the run is finished."""
    storage.write_json(storage.join(run, "result.json"), found)


def read_metrics(run: str, up_to_step: int | None = None) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl in order, those after `up_to_step` left out; none while there is no file."""
    uri = storage.join(run, "metrics.jsonl")
    if not storage.exists(uri):
        return []
    lines = [json.loads(line) for line in storage.read(uri).decode().splitlines()]
    return [line for line in lines if up_to_step is None or line["step"] <= up_to_step]


def write_metrics(run: str, lines: list[dict[str, Any]]) -> None:
    """Write metrics.jsonl anew: object stores cannot append, and a run has a few hundred lines."""
    storage.write(storage.join(run, "metrics.jsonl"), "".join(json.dumps(line) + "\n" for line in lines).encode())


def own_memory_bytes() -> int:
    """Return the memory that this process alone holds, bytes: mapped files, shared with others, are not counted."""
    resident, shared = Path("/proc/self/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * resource.getpagesize()
