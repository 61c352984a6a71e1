"""Nights without training: cheap stages over the real registry, lease, gate and log; also a process of its own to kill.

    python -m tests.night WORLD DATASET REGISTRY LEASE_SECONDS PAUSE_SECONDS

WORLD is a JSON file that stands for the source and for how good the next challenger becomes. Every stage says on stdout
when it begins and ends, and pauses in between, so that a test can kill it there.
"""

import datetime
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fruitcnn import due, gate, registry, storage
from fruitcnn.due import Drift
from fruitcnn.manifest import Manifest, Split, StoredFile, load_manifest, manifest_uri, publish
from fruitcnn.registry import Record
from fruitcnn.retrain import Challenge, Comparison, Outcome, retrain
from fruitcnn.retrain_config import RetrainConfig
from fruitcnn.thresholds import Thresholds
from tests.tiny_bundle import write_bundle

ROWS_A_CLASS = 50


def world(path: Path, **changes: Any) -> str:
    """Write the world: training pictures, classes, accuracy of champion and challenger, whether labels are swapped."""
    before = json.loads(path.read_text()) if path.exists() else {
        "num_rows": 100, "num_classes": 10, "champion": 0.9, "challenger": 0.98, "swapped": False,
    }  # fmt: skip
    path.write_text(json.dumps(before | changes))
    return str(path)


class CheapStages:
    """The same order and the same decisions as a real night; `called` lists the stages that were carried out."""

    def __init__(self, say: Callable[[str], None] = lambda _: None, pause_seconds: float = 0.0) -> None:
        self.called: list[str] = []
        self.say, self.pause_seconds = say, pause_seconds
        self.recent_drift = 0.0
        self.meanwhile: Callable[[], None] = lambda: None

    def _enter(self, stage: str) -> None:
        self.called.append(stage)
        self.say(f"{stage} begins")
        time.sleep(self.pause_seconds)

    def take_in(self, config: RetrainConfig) -> Manifest:
        self._enter("take in")
        said = json.loads(Path(config.source).read_text())
        base = load_manifest(config.dataset) if storage.exists(manifest_uri(config.dataset)) else None
        manifest = base
        if base is None or base.split("train").num_rows != said["num_rows"]:
            manifest = publish(config.dataset, _manifest(said, base.version + 1 if base else 1))
        self.say("take in ends")
        assert manifest
        return manifest

    def train(self, challenge: Challenge) -> None:
        self._enter("train")
        storage.write_json(storage.join(challenge.training.run, "result.json"), {"seed": challenge.training.seed})
        self.say("train ends")

    def freeze(self, challenge: Challenge) -> None:
        self._enter("freeze")
        if not storage.exists(storage.join(challenge.model, "model.json")):
            with tempfile.TemporaryDirectory() as folder:
                made = write_bundle(Path(folder, "model"), 0.01 * (1 + challenge.training.seed))
                storage.write_json(storage.join(made, "classes.json"), list(challenge.manifest.classes))
                storage.upload_directory(made, challenge.model)
        self.say("freeze ends")

    def compare(self, challenge: Challenge, thresholds: Thresholds) -> Comparison:
        self._enter("compare")
        self.meanwhile()
        said = json.loads(Path(challenge.manifest.source).read_text())
        classes = challenge.manifest.classes
        truth = np.repeat(np.array(classes), ROWS_A_CLASS)
        luck = np.tile((np.arange(ROWS_A_CLASS) + 0.5) / ROWS_A_CLASS, len(classes))
        new = np.where(luck < said["challenger"], truth, "something else")
        if said["swapped"]:
            new[: 2 * ROWS_A_CLASS : 2] = classes[2]
        size = gate.Model(classes, 1_000, 1_000.0)
        if challenge.champion_uri is None:
            verdict = gate.decide_first(truth, new, size, thresholds)
        else:
            labels = storage.read_json(storage.join(challenge.champion_uri, "classes.json"))
            old = np.where((luck < said["champion"]) & np.isin(truth, labels), truth, "something else")
            answers = gate.Answers(truth, old, new, np.isin(truth, labels))
            verdict = gate.decide(answers, size._replace(labels=labels), size, thresholds)
        self.say("compare ends")
        return Comparison(verdict, [1, 2, 3])

    def report(self, challenge: Challenge, comparison: Comparison, report_uri: str) -> None:
        self._enter("report")
        storage.write(report_uri, comparison.verdict.reason.encode())
        self.say("report ends")

    def drift(self, config: RetrainConfig, log: Sequence[Record], model_hash: str) -> Drift:
        chosen = due.promotion(log)
        assert chosen
        assert chosen.evidence["confidences"] == [1, 2, 3]
        return Drift(self.recent_drift, "recent predictions drifted", self.recent_drift > config.max_drift)


def _manifest(said: dict[str, Any], version: int) -> Manifest:
    shard = StoredFile(path="shards/x.parquet", num_rows=said["num_rows"], num_bytes=1, sha256="0")
    return Manifest(
        version=version, classes=tuple(f"fruit {n:02d}" for n in range(said["num_classes"])),
        splits={name: Split(shards=(shard,)) for name in ("train", "test")}, num_rejected_by_cause={},
        source=said["path"], source_fingerprint=str(said["num_rows"]), listings=(), config={}, library_version="0",
        created_at=datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC),
    )  # fmt: skip


def night(source: str, dataset: str, uri: str, stages: CheapStages, **more: Any) -> Outcome:
    """One night in this process."""
    said = json.loads(Path(source).read_text())
    Path(source).write_text(json.dumps(said | {"path": source}))
    config = RetrainConfig(source=source, dataset=dataset, registry=uri, **more)
    return retrain(config, stages, lambda _: None)


def _slowly(name: str, say: Callable[[str], None], pause_seconds: float, function: Callable[..., Any]) -> Any:
    def slow(*arguments: Any, **more: Any) -> Any:
        say(f"{name} begins")
        time.sleep(pause_seconds)
        result = function(*arguments, **more)
        say(f"{name} ends")
        time.sleep(pause_seconds)
        return result

    return slow


def main() -> None:
    source, dataset, uri, lease_seconds, pause = sys.argv[1:]

    def say(text: str) -> None:
        print(text, flush=True)

    append = registry.append

    def slow_append(registry_uri: str, kind: registry.Kind, *arguments: Any, **more: Any) -> registry.Record:
        slow = _slowly("publish", say, float(pause), append) if kind != "taken over" else append
        return slow(registry_uri, kind, *arguments, **more)

    registry.append = slow_append
    outcome = night(source, dataset, uri, CheapStages(say, float(pause)), lease_seconds=float(lease_seconds))
    say(f"{outcome.outcome}: {outcome.words}")


if __name__ == "__main__":
    main()
