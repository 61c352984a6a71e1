"""The stages of a night, carried out with the modules of the flow, in one Ray session. Called by retrain."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from fruitcnn import due, frozen, gate, paired, storage
from fruitcnn.classify import classify
from fruitcnn.classify_config import ClassifyConfig
from fruitcnn.due import Drift
from fruitcnn.evidence import Truth
from fruitcnn.manifest import Manifest, load_manifest
from fruitcnn.paired import Flips
from fruitcnn.registry import Record
from fruitcnn.retrain import Challenge, Comparison, Progress, Session
from fruitcnn.retrain_config import RetrainConfig
from fruitcnn.thresholds import Thresholds

_SPEED_PICTURES = 512
_SPEED_ROUNDS = 5


class RayStages:
    """The stages; `session` opens Ray where a stage has work for it."""

    def __init__(self, progress: Progress, session: Session) -> None:
        self.progress, self._session = progress, session

    def take_in(self, config: RetrainConfig) -> Manifest:
        """Only files that the data set does not know yet are read."""
        from fruitcnn.shard_config import ShardConfig
        from fruitcnn.shards import plan_dataset, write_plan

        plan = plan_dataset(ShardConfig(source=config.source, dataset=config.dataset, root=config.root))
        if plan.base and not plan.records:
            return plan.base
        with self._session():
            return write_plan(plan, self.progress)

    def train(self, challenge: Challenge) -> None:
        """Train, or go on from the last checkpoint."""
        from fruitcnn.train import train

        train(challenge.training, self.progress, self._session)

    def freeze(self, challenge: Challenge) -> None:
        """Freeze the best checkpoint."""
        from fruitcnn.freeze_config import FreezeConfig
        from fruitcnn.freezing import freeze

        asked = FreezeConfig(run=challenge.training.run, model=challenge.model, check=None, dataset=challenge.dataset)
        freeze(asked, self.progress)

    def compare(self, challenge: Challenge, thresholds: Thresholds) -> Comparison:
        """Classify the held-out pictures with both, read both answers side by side, and judge."""
        new = self._classified(challenge, challenge.model, "challenger", challenge.dataset, "test")
        confidences = paired.confidence_histogram(new)
        truth = Truth(challenge.dataset, challenge.manifest)
        problems = _problems(challenge.model)
        if challenge.champion_uri is None:
            parts = [part.rows for part in paired.rows(new, new, truth)]
            right, said = (paired.names(part[name] for part in parts) for name in ("truth", "label"))
            (model,) = _models([challenge.model])
            return Comparison(gate.decide_first(right, said, model, thresholds, problems), confidences)
        old = self._classified(challenge, challenge.champion_uri, "champion", challenge.dataset, "test")
        flips, answers = Flips(new), _Answers(challenge)
        for part in paired.rows(old, new, truth):
            answers.add(part)
            flips.add(part)
        champion, challenger = _models([challenge.champion_uri, challenge.model])
        verdict = gate.decide(answers.all(), champion, challenger, thresholds, problems)
        if challenge.flips:
            flips = self._flips(challenge, challenge.flips)
        return Comparison(verdict, confidences, flips)

    def report(self, challenge: Challenge, comparison: Comparison, report_uri: str) -> None:
        """The report of the run, with the verdict and the labels that change."""
        from fruitcnn.report import Decision, write_report

        write_report(
            report_uri,
            run=challenge.training.run,
            dataset=challenge.dataset,
            predictions=storage.join(challenge.work, "held-out-challenger"),
            decision=Decision(comparison.verdict, challenge.champion, challenge.flips, comparison.flips),
        )

    def drift(self, config: RetrainConfig, log: Sequence[Record], model_hash: str) -> Drift:
        """Compare the confidences of --recent with those of the champion's held-out pictures."""
        return due.measure_drift(config, log, model_hash)

    def _classified(self, challenge: Challenge, model: str, who: str, images: str, split: str | None) -> str:
        """Where the predictions of `model` lie, made now if they were not yet."""
        what = "held-out" if split else "flips"
        predictions = storage.join(challenge.work, f"{what}-{who}")
        asked = ClassifyConfig(model=model, images=images, split=split, predictions=predictions)
        classify(asked, self.progress, self._session)
        return predictions

    def _flips(self, challenge: Challenge, images: str) -> Flips:
        assert challenge.champion_uri, "checked"
        old = self._classified(challenge, challenge.champion_uri, "champion", images, None)
        new = self._classified(challenge, challenge.model, "challenger", images, None)
        flips = Flips(new)
        for part in paired.rows(old, new, None):
            flips.add(part)
        return flips


class _Answers:
    """The columns of all parts, for the gate."""

    def __init__(self, challenge: Challenge) -> None:
        self._columns: dict[str, list[Any]] = {"truth": [], "champion": [], "label": []}
        self._known: list[np.ndarray] = []
        self._shards: set[str] | None = None
        if challenge.judged_version is not None:
            judged = load_manifest(challenge.dataset, challenge.judged_version)
            shards = judged.splits["test"].shards if "test" in judged.splits else ()
            self._shards = {storage.join(challenge.dataset, shard.path) for shard in shards}

    def add(self, part: paired.Part) -> None:
        """Take in what both models said of the pictures of one part."""
        for name, column in self._columns.items():
            column.append(part.rows[name])
        # The parts of a data set do not cross shards.
        first = part.rows["id"][0].as_py()
        is_known = self._shards is None or any(first.startswith(f"{shard}!") for shard in self._shards)
        self._known.append(np.full(len(part.rows), is_known))

    def all(self) -> gate.Answers:
        known = np.concatenate(self._known) if self._known else np.zeros(0, bool)
        truth, champion, challenger = (paired.names(column) for column in self._columns.values())
        return gate.Answers(truth, champion, challenger, known)


def _problems(model: str) -> list[str]:
    """What a frozen model cannot prove, in words."""
    return [f"{proof.format} ({proof.file}): {proof.problem}" for proof in frozen.check(model) if proof.problem]


def _models(uris: Sequence[str]) -> list[gate.Model]:
    """What the gate must know of each; speeds are measured in turns, so that a busy moment meets them all."""
    opened = [frozen.load(uri) for uri in uris]
    seconds = [float("inf")] * len(opened)
    for _ in range(_SPEED_ROUNDS):
        for place, model in enumerate(opened):
            pixels = np.zeros((_SPEED_PICTURES, *model.input_px, 3), np.uint8)
            began = time.perf_counter()
            model.predict(pixels)
            seconds[place] = min(seconds[place], time.perf_counter() - began)
    sizes = [sum(file.num_bytes for file in model.description.files.values()) for model in opened]
    return [
        gate.Model(model.labels, size, _SPEED_PICTURES / second)
        for model, size, second in zip(opened, sizes, seconds, strict=True)
    ]
