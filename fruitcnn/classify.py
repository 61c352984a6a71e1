"""Classifies every input under a URI exactly once: plan -> parts (execute.py) -> manifest. Before report.

    <predictions>/plan.json, plan/       the listing cut into parts: plan.py
    <predictions>/parts/                 one file per part: infer.py writes, parts.py counts
    <predictions>/attempts/, manifest.json  starts of the job, and the books, written last: predictions.py

The same command continues a run that was stopped, whatever stopped it, and does nothing when the run is finished.
"""

import datetime
import importlib.metadata
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from fruitcnn import storage
from fruitcnn.books import ClassifyError, PartBooks, RunManifest, StoredPart, Timing, add_up, imbalance
from fruitcnn.errors import UsageError

if TYPE_CHECKING:
    from fruitcnn.execute import Session
    from fruitcnn.infer import Outcome
    from fruitcnn.plan import Plan

Progress = Callable[..., AbstractContextManager[Callable[..., None]]]
"""progress(title, total, unit, already) -> context manager yielding update(done, note=""): jobs.cli.progress is one."""

_ATTEMPT_CHECK_SECONDS = 5.0
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%|(\d+)")


class ClassifyConfig(BaseModel):
    """What `python -m jobs.classify` takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="Frozen model: the URI that jobs.freeze wrote.")
    images: str = Field(
        description="What to classify: a folder, s3://bucket/prefix, .zip, .tar, .tar.gz, a .txt or .parquet list of "
        "URIs, or a data set written by jobs.shard."
    )
    predictions: str = Field(description="Where the predictions go: a local path or s3://bucket/prefix.")
    split: str | None = Field(default=None, description="Of a data set: classify this split only (train or test).")
    runtime: Literal["auto", "openvino", "onnxruntime", "tensorflow", "keras"] = Field(
        default="auto", description="What runs the model; auto takes the fastest whose golden answers agree."
    )
    top_k: int = Field(default=5, ge=1, description="Labels and scores kept per picture.")
    probabilities: bool = Field(default=False, description="Also write every label's probability, as a list column.")
    min_confidence: float = Field(
        default=0.0, ge=0, le=1, description="Predictions with less confidence than this get the status unsure."
    )
    max_rejected: str = Field(
        default="100%", description="Rejected inputs, as a number or as N%, beyond which the job ends with exit code 1."
    )
    max_pixels: int = Field(default=200_000_000, ge=1, description="Reject pictures of more pixels (width x height).")
    batch_size: int = Field(default=256, ge=1, le=65536, description="Pictures per call of the model.")
    part_images: int = Field(default=2048, ge=1, le=1_000_000, description="Largest number of inputs in a part.")
    part_bytes: int = Field(
        default=256_000_000, ge=1, description="A part is closed once its inputs hold this many bytes."
    )
    num_actors: int | None = Field(
        default=None,
        ge=1,
        description="Ray actors that classify; by default one per 4 CPUs of the cluster, and none where this process "
        "is done before Ray would be up.",
    )
    dry_run: bool = Field(default=False, description="Only plan, show the plan, and write nothing.")

    @field_validator("max_rejected")
    @classmethod
    def _number_or_percent(cls, value: str) -> str:
        if not _PERCENT.fullmatch(value) or (value.endswith("%") and float(value[:-1]) > 100):
            raise ValueError(f"got {value!r}, wanted a number of inputs, as in 25, or a share, as in 0.5%")
        return value

    def rejected_limit(self, num_listed: int) -> float:
        """The number of rejected inputs that is still accepted of num_listed."""
        value = self.max_rejected
        return float(value[:-1]) / 100 * num_listed if value.endswith("%") else float(value)

    def row_settings(self, runtime: str) -> dict[str, Any]:
        """All that decides what the rows say, besides the model: part of the run's identity."""
        names = {"split", "top_k", "probabilities", "min_confidence", "max_pixels", "batch_size", "part_images"}
        chosen = self.model_dump(include=names | {"part_bytes"})
        return {"images": storage.normalise(self.images), "runtime": runtime, **chosen}


class Run(NamedTuple):
    """A run that may be started or continued: nothing stands against it."""

    config: ClassifyConfig
    predictions: str
    plan: "Plan"
    runtime: str


def classify(config: ClassifyConfig, progress: Progress, session: "Session" = nullcontext) -> RunManifest:
    """Start, continue or, if it is finished, look up the run at config.predictions.

    session opens Ray, once it is known that there is work; by default the session at hand is used.
    UsageError: nothing was started. ClassifyError: the store failed for good, the books do not balance, another attempt
    took over, or too many inputs were rejected (then everything is written). StorageError: a URI cannot be used.
    """
    from fruitcnn import predictions

    started_seconds = time.monotonic()
    run = prepare(config)
    manifest = predictions.load_manifest(run.predictions)
    if manifest is None:
        manifest = _finish(run, started_seconds, progress, session)
    books = manifest.books
    if books.num_rejected > config.rejected_limit(books.num_listed):
        raise ClassifyError(
            f"--max-rejected {config.max_rejected}: {books.num_rejected:,} of {books.num_listed:,} inputs rejected "
            f"({books.rejected_by_cause}); the predictions under {run.predictions} are complete"
        )
    return manifest


def prepare(config: ClassifyConfig) -> Run:
    """The run that config names, planned now if it is new; UsageError if it cannot be started."""
    from fruitcnn import bundle, frozen, inputs, plan

    try:
        with storage.argument("--model"):
            frozen.verify(config.model)  # All files, also those that this runtime does not read.
            model_hash, runtime = frozen.identify(config.model, config.runtime)
    except bundle.FrozenModelError as error:
        raise UsageError(f"--model {config.model}: {error}") from error
    with storage.argument("--images"):
        settings = config.row_settings(runtime)
    with storage.argument("--predictions"):
        predictions = storage.normalise(config.predictions)
        found = plan.load_plan(predictions)
        if found is None:
            plan.require_ours_or_empty(predictions)
            listing = inputs.Listing(config.images, config.split)
            found = plan.write_plan(predictions, listing, model_hash, settings, config.part_images, config.part_bytes)
        plan.require_same_run(predictions, found, model_hash, settings)
    return Run(config, predictions, found, runtime)


def dry_run(config: ClassifyConfig) -> dict[str, Any]:
    """What a run would take in, as name -> value; writes nothing."""
    from fruitcnn import inputs, plan

    listing = inputs.Listing(config.images, config.split)
    num_parts = num_inputs = num_bytes = 0
    for part in plan.cut(listing, config.part_images, config.part_bytes):
        num_parts += 1
        num_inputs += len(part)
        num_bytes += sum(max(0, item.size_bytes) for item in part)
    return {
        "kind": listing.kind,
        "inputs": num_inputs,
        "bytes": num_bytes,
        "parts": num_parts,
        "hidden files": listing.num_hidden,
        "listed again": listing.num_repeated,
    }


def _finish(run: Run, started_seconds: float, progress: Progress, session: "Session") -> RunManifest:
    """Classify what is missing, check the books, and write the manifest."""
    from fruitcnn import predictions

    attempt = predictions.claim_attempt(run.predictions)
    pending = predictions.pending_parts(run.predictions, run.plan)
    run_seconds = time.monotonic()
    parts = _all_parts(run, pending, attempt, progress, session)
    classify_seconds = time.monotonic() - run_seconds
    books = add_up(run.plan.num_inputs, parts)
    sizes = run.plan.part_inputs()
    if problem := imbalance(books, sizes, parts):
        raise ClassifyError(f"the books of {run.predictions} do not balance: {problem}")
    manifest = RunManifest(
        run_id=run.plan.run_id,
        model=run.config.model,
        model_hash=run.plan.model_hash,
        settings=run.plan.settings,
        config=run.config.model_dump(),
        books=books,
        num_hidden=run.plan.num_hidden,
        num_repeated=run.plan.num_repeated,
        parts=tuple(
            StoredPart(path=part.path, num_rows=part.num_rows, num_bytes=part.num_bytes, sha256=part.sha256)
            for part in parts
        ),
        versions={name: importlib.metadata.version(name) for name in ("fruitcnn", "ray", "pyarrow", "numpy")},
        timing=Timing(
            attempt=attempt,
            finished_at=datetime.datetime.now(datetime.UTC),
            total_seconds=round(time.monotonic() - started_seconds, 3),
            classify_seconds=round(classify_seconds, 3),
            num_inputs=sum(sizes[part] for part in pending),
        ),
    )
    return predictions.publish(run.predictions, manifest)


def _all_parts(
    run: Run, pending: Sequence[int], attempt: int, progress: Progress, session: "Session"
) -> list[PartBooks]:
    """The books of all parts: those found finished, and the pending ones, classified now."""
    from fruitcnn import predictions
    from fruitcnn.execute import execute

    done = sorted(set(range(run.plan.num_parts)).difference(pending))
    tally = _Tally(predictions.read_finished(run.predictions, run.plan, done), run.predictions, attempt)
    with progress("classify", run.plan.num_inputs, "images", tally.num_done) as update:
        if pending:
            execute(run, pending, lambda outcome: tally.take(outcome, update), session)
    predictions.require_newest(run.predictions, attempt)
    return sorted(tally.parts, key=lambda part: part.part)


class _Tally:
    """The parts that are done, as they come in, from any thread."""

    def __init__(self, parts: list[PartBooks], predictions: str, attempt: int) -> None:
        self.parts = parts
        self.num_done = sum(part.num_rows for part in parts)
        self._num_rejected = sum(part.num_rejected for part in parts)
        self._predictions, self._attempt = predictions, attempt
        self._checked_seconds = time.monotonic()
        self._lock = threading.Lock()

    def take(self, outcome: "Outcome", update: Callable[..., None]) -> None:
        """Add a part and show it; ClassifyError if it failed for good, or if a newer attempt took over."""
        from fruitcnn import predictions

        if outcome.books is None:
            raise ClassifyError(f"{outcome.error}\nwhat is written stays: the same command continues")
        with self._lock:
            self.parts.append(outcome.books)
            self.num_done += outcome.books.num_rows
            self._num_rejected += outcome.books.num_rejected
            update(self.num_done, f"{self._num_rejected:,} rejected" if self._num_rejected else "")
            if time.monotonic() - self._checked_seconds > _ATTEMPT_CHECK_SECONDS:
                predictions.require_newest(self._predictions, self._attempt)
                self._checked_seconds = time.monotonic()
