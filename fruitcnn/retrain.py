"""A night: new pictures in, a challenger trained, and on evidence alone the champion replaced. The flow, closed.

take in -> due? -> train -> freeze -> compare -> report -> publish. Every stage finds what an earlier attempt finished,
so an attempt that was killed anywhere is finished by the next one. What a challenger is made of lies under one name:

    <registry>/work/000004-3f0c.../   run/, model/, the predictions of both, verdict.json; gc removes it
    <registry>/reports/000004-3f0c....html

stages.py is how the stages are carried out; this module is the order of them and what is decided in between. Pure.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, Protocol

from fruitcnn import bundle, due, lease, notify, registry, storage, versions
from fruitcnn.due import Drift
from fruitcnn.errors import UsageError
from fruitcnn.gate import Verdict
from fruitcnn.manifest import Manifest
from fruitcnn.recipe import TrainConfig
from fruitcnn.registry import Record
from fruitcnn.retrain_config import RetrainConfig
from fruitcnn.thresholds import Thresholds, read_thresholds

Progress = Callable[..., AbstractContextManager[Callable[..., None]]]
Session = Callable[[], AbstractContextManager[None]]
Say = Callable[[str], None]


class Outcome(NamedTuple):
    """How a night ended."""

    outcome: Literal["promoted", "rejected", "nothing new", "stood aside"]
    words: str
    record: Record | None = None
    report: str | None = None


class Challenge(NamedTuple):
    """A challenger in the making: all that the stages after `take in` need."""

    dataset: str
    manifest: Manifest
    work: str
    training: TrainConfig
    champion: int | None
    champion_uri: str | None
    judged_version: int | None
    """Version of this data set on which the champion was judged; None: unknown, or another data set."""
    flips: str | None

    @property
    def model(self) -> str:
        """Where the challenger is frozen to."""
        return storage.join(self.work, "model")


class Comparison(NamedTuple):
    """What champion and challenger are and said."""

    verdict: Verdict
    confidences: list[int]
    """The challenger's held-out pictures by confidence, for drift."""
    flips: Any = None


class Stages(Protocol):
    """How the stages are carried out; each finds what was finished before."""

    def take_in(self, config: RetrainConfig) -> Manifest:
        """Append what is new in the source to the data set; returns its newest version."""

    def train(self, challenge: Challenge) -> None:
        """Train the challenger."""

    def freeze(self, challenge: Challenge) -> None:
        """Freeze it to challenge.model."""

    def compare(self, challenge: Challenge, thresholds: Thresholds) -> Comparison:
        """Let both answer the held-out pictures, and judge."""

    def report(self, challenge: Challenge, comparison: Comparison, report_uri: str) -> None:
        """Write the report."""

    def drift(self, config: RetrainConfig, log: Sequence[Record], model_hash: str) -> Drift:
        """How far the confidences of recent predictions are from those of the champion's held-out pictures."""


def retrain(config: RetrainConfig, stages: Stages, say: Say) -> Outcome:
    """Run one night. Whatever it raises was written down as the attempt's end, and posted, first.

    UsageError and StorageError for what cannot be used; registry.OvertakenError if a person decided meanwhile;
    lease.LeaseLostError if this process was frozen for too long.
    """
    thresholds = read_thresholds(config.thresholds)
    with storage.argument("--registry"):
        uri = registry.locate(config.registry)
        try:
            held = lease.acquire(uri, "retrain", config.lease_seconds)
        except lease.LeaseHeldError as error:
            return Outcome("stood aside", str(error))
    with held.kept():
        try:
            _make_up(config, uri)
            outcome = _night(config, thresholds, stages, held, say)
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            words = " ".join(str(error).split()) or type(error).__name__
            if stopped:
                words = (
                    f"stopped from outside at {held.attempt.stage or 'its start'}; the next night goes on from there"
                )
            held.end("stopped" if stopped else "failed", words)
            _post_failure(config, uri, words)
            raise
        held.end(outcome.outcome, outcome.words)
    if outcome.record:
        _post(config, uri, outcome.record)
    return outcome


def _night(config: RetrainConfig, thresholds: Thresholds, stages: Stages, held: lease.Lease, say: Say) -> Outcome:
    def enter(stage: str) -> None:
        held.enter(stage)
        say(stage)

    enter("take in")
    manifest = stages.take_in(config)
    log = registry.read_log(held.registry)[: held.base]
    with storage.argument("--dataset"):
        dataset = storage.normalise(config.dataset)
    reason = due.reason(config, log, dataset, manifest, _drift(config, stages, held, log, say))
    if reason is None:
        last = due.judged(log, dataset)
        return Outcome("nothing new", f"version {manifest.version} of the data set was judged in record "
                       f"{last.number if last else 0}; nothing to train")  # fmt: skip
    challenge = _challenge(config, log, dataset, manifest, held.registry)
    for stage, carry_out in (("train", stages.train), ("freeze", stages.freeze)):
        enter(stage)
        carry_out(challenge)
    enter("compare")
    comparison = stages.compare(challenge, thresholds)
    enter("report")
    report = storage.join(held.registry, "reports", f"{storage.name(challenge.work)}.html")
    stages.report(challenge, comparison, report)
    enter("publish")
    return _publish(held, challenge, comparison, {"why": reason, "report": report})


def _publish(held: lease.Lease, challenge: Challenge, comparison: Comparison, more: dict[str, Any]) -> Outcome:
    verdict, manifest = comparison.verdict, challenge.manifest
    evidence = {
        "work": storage.name(challenge.work),
        "dataset": challenge.dataset,
        "dataset_version": manifest.version,
        "num_train_rows": manifest.split("train").num_rows,
        "champion_before": challenge.champion,
        "started": "warm" if challenge.training.initial_model else "afresh",
        "confidences": comparison.confidences,
        "checks": [check.model_dump() for check in verdict.checks],
        **verdict.figures,
        **more,
    }
    if verdict.promote:
        version = versions.add(held.registry, challenge.model)
        record = held.append("promoted", version, verdict.reason, evidence=evidence)
        return Outcome("promoted", registry.in_words(record), record, more["report"])
    record = held.append("rejected", challenge.champion, verdict.reason, evidence=evidence)
    return Outcome("rejected", registry.in_words(record), record, more["report"])


def _drift(config: RetrainConfig, stages: Stages, held: lease.Lease, log: Sequence[Record], say: Say) -> Drift | None:
    """How far recent predictions are from what the champion was judged on, if that was asked for."""
    champion = registry.champion(log)
    if config.recent is None or champion is None:
        return None
    drift = stages.drift(config, log, versions.read(held.registry, champion).model_hash)
    say(drift.words)
    return drift


def _require_comparable(uri: str, champion: int, champion_uri: str) -> None:
    """RegistryError, before hours go into training, if this version of the library cannot open the champion."""
    try:
        bundle.read_description(champion_uri)
    except bundle.SchemaError as error:
        said = storage.read_json(storage.join(champion_uri, bundle.DESCRIPTION))
        run = said.get("training", {}).get("run", "RUN")
        if not storage.exists(storage.join(run, "result.json")):
            run = "RUN (its own is gone: train one with jobs.train)"
        raise registry.RegistryError(
            f"the champion, version {champion}, cannot be compared with a challenger: {error}. Nothing was trained. Do "
            f"once, and the next night goes on:\npython -m jobs.freeze --run {run} --model work/refrozen\n"
            f"python -m jobs.registry promote --registry {uri} --model work/refrozen --reason 'frozen again'"
        ) from error


def _challenge(
    config: RetrainConfig, log: Sequence[Record], dataset: str, manifest: Manifest, registry_uri: str
) -> Challenge:
    if "test" not in manifest.splits:
        raise UsageError(f"--dataset: {dataset} has no test split, on which champion and challenger are compared")
    champion = registry.champion(log)
    champion_uri = registry.version_uri(registry_uri, champion) if champion else None
    if champion and champion_uri:
        _require_comparable(registry_uri, champion, champion_uri)
    # A challenger that was decided on is never trained again: with another seed the next one gets its own chance.
    num_decided = sum(record.kind in ("promoted", "rejected") for record in log)
    training = config.training(dataset=dataset, run="", seed=config.seed + num_decided)
    if config.start == "warm" and champion_uri:
        training = training.model_copy(update={"initial_model": champion_uri})
    facts = [manifest.sha256, champion, training.identity()]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    work = storage.join(registry_uri, "work", f"{manifest.version:06d}-{digest}")
    training = training.model_copy(update={"run": storage.join(work, "run")})
    chosen = [record for record in log if record.version == champion and record.kind == "promoted"]
    of_dataset = [record for record in chosen if record.evidence.get("dataset") == dataset]
    judged_version = of_dataset[-1].evidence["dataset_version"] if of_dataset else None
    return Challenge(dataset, manifest, work, training, champion, champion_uri, judged_version, config.flips)


# --- word to others


def summary(uri: str, record: Record) -> dict[str, Any]:
    """What is posted about a record."""
    return {
        "event": record.kind,
        "registry": uri,
        "record": record.number,
        "champion": record.version,
        "reason": record.reason,
        "report": record.evidence.get("report"),
        "at": record.created_at.isoformat(timespec="seconds"),
    }


def _make_up(config: RetrainConfig, uri: str) -> None:
    """Post what an attempt decided that was killed before it could say so."""
    if config.notify:
        decided = [record for record in registry.read_log(uri) if record.kind in ("promoted", "rejected")]
        for record in decided[-1:]:
            _post(config, uri, record)


def _post(config: RetrainConfig, uri: str, record: Record) -> None:
    if (
        config.notify
        and record.attempt
        and (problem := notify.post_once(config.notify, uri, record.number, summary(uri, record)))
    ):
        _complain(problem)


def _post_failure(config: RetrainConfig, uri: str, words: str) -> None:
    if config.notify:
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        problem = notify.post(config.notify, {"event": "failed", "registry": uri, "reason": words, "at": at})
        if problem:
            _complain(problem)


def _complain(problem: str) -> None:
    print(problem, file=sys.stderr)
