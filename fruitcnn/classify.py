"""Classifies every input under a URI exactly once: plan -> parts (execute.py) -> manifest. Before report.

    <predictions>/plan.json, plan/       the listing cut into parts: plan.py
    <predictions>/parts/                 one file per part: infer.py writes, parts.py counts
    <predictions>/attempts/, manifest.json  starts of the job, and the books, written last: predictions.py

The same command continues a run that was stopped, whatever stopped it, and does nothing when the run is finished.
"""

import datetime
import importlib.metadata
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

from fruitcnn import storage
from fruitcnn.books import ClassifyError, RunManifest, StoredPart, Timing, add_up, imbalance
from fruitcnn.classify_config import ClassifyConfig
from fruitcnn.errors import UsageError
from fruitcnn.wording import plural

if TYPE_CHECKING:
    from fruitcnn import inputs, since
    from fruitcnn.crew import Crew
    from fruitcnn.execute import Session
    from fruitcnn.frozen import FrozenModel
    from fruitcnn.plan import Plan

Progress = Callable[..., AbstractContextManager[Callable[..., None]]]
"""progress(title, total, unit, already) -> context manager yielding update(done, note=""): jobs.cli.progress is one."""


class TooManyRejectedError(ClassifyError):
    """More inputs were rejected than --max-rejected allows; everything is written, and manifest has the books."""

    def __init__(self, message: str, manifest: RunManifest) -> None:
        super().__init__(message)
        self.manifest = manifest


class Run(NamedTuple):
    """A run that may be started or continued: nothing stands against it."""

    config: ClassifyConfig
    predictions: str
    plan: "Plan"
    runtime: str
    crew: "Crew"
    model: "FrozenModel | None" = None
    """Opened with one thread, where it had to be opened to know the runtime."""


def classify(config: ClassifyConfig, progress: Progress, session: "Session | None" = None) -> RunManifest:
    """Start, continue or, if it is finished, look up the run at config.predictions.

    session opens Ray, once it is known that there is work; by default the session at hand is used, or none.
    UsageError: nothing was started. ClassifyError: the store failed for good, the books do not balance, another attempt
    took over, or (TooManyRejectedError) too many inputs were rejected. StorageError: a URI cannot be used.
    """
    from fruitcnn import predictions
    from fruitcnn.crew import Crew

    started_seconds = time.monotonic()
    with Crew() as crew:
        run = prepare(config, crew)
        manifest = predictions.load_manifest(run.predictions)
        if manifest:
            _require_whole(run.predictions, manifest)
        if config.retry_rejected:
            _reopen(run, manifest)
            manifest = None
        if manifest is None:
            manifest = _finish(run, started_seconds, progress, session)
    books = manifest.books
    if books.num_rejected > config.rejected_limit(books.num_listed):
        raise TooManyRejectedError(
            f"--max-rejected {config.max_rejected}: {books.num_rejected:,} of {books.num_listed:,} inputs rejected "
            f"({books.causes_in_words()}); the predictions under {run.predictions} are complete",
            manifest,
        )
    return manifest


def prepare(config: ClassifyConfig, crew: "Crew | None" = None) -> Run:
    """The run that config names, planned now if it is new; UsageError if it cannot be started.

    crew: those of it that pay are started while the plan is being made; by default the run has one of its own.
    """
    from fruitcnn import plan
    from fruitcnn.crew import Crew

    crew = crew or Crew()
    model_hash, runtime, model = _identify(config)
    with storage.argument("--images"):
        settings = config.row_settings(runtime)
    with storage.argument("--predictions"):
        predictions = storage.normalise(config.predictions)
        found = plan.load_plan(predictions)
        if found is None:
            plan.require_ours_or_empty(predictions)
            listing = _listing(config, _recruiter(config, runtime, crew))
            found = plan.write_plan(predictions, listing, model_hash, settings, config.part_images, config.part_bytes)
        plan.require_same_run(predictions, found, model_hash, settings)
    return Run(config, predictions, found, runtime, crew, model)


def _listing(
    config: ClassifyConfig, on_found: Callable[[int, int], None] | None = None
) -> "inputs.Listing | since.Choice":
    from fruitcnn import inputs, since

    if not config.since_promotion:
        return inputs.Listing(config.images, config.split, config.sample, None if config.sample else on_found)
    with storage.argument("--since-promotion"):
        choice = since.Choice(config.since_promotion, config.images, config.max_margin, config.audit_share)
    if config.split and config.split != (there := choice.manifest.settings["split"]):
        raise UsageError(f"--split: got {config.split}, wanted {there or 'none'}, as {config.since_promotion} has it")
    return choice


def _recruiter(config: ClassifyConfig, runtime: str, crew: "Crew") -> Callable[[int, int], None]:
    """What starts the crew as soon as so many inputs of so many bytes are worth it."""
    from fruitcnn.crew import may_work_here, pays

    def recruit(num_inputs: int, num_bytes: int) -> None:
        num_parts = num_inputs // config.part_images + num_bytes // config.part_bytes
        if may_work_here(runtime, config.num_actors) and pays(num_inputs, num_bytes, num_parts):
            crew.start(config.model, runtime)

    return recruit


def dry_run(config: ClassifyConfig) -> dict[str, Any]:
    """What a run would take in, and, after trying a sample, what it would take; name -> value. Writes nothing."""
    from fruitcnn import calibrate, inputs, plan
    from fruitcnn.crew import num_processes, pays
    from fruitcnn.execute import local_options
    from fruitcnn.infer import open_models

    started_seconds = time.monotonic()
    _, runtime, model = _identify(config)
    listing = _listing(config)
    sampler = inputs.Sampler(calibrate.SAMPLE_INPUTS)
    num_parts = num_inputs = num_bytes = 0
    with plan.without_collector():
        for part in plan.cut(listing, config.part_images, config.part_bytes):
            num_parts += 1
            num_inputs += len(part)
            num_bytes += sum(max(0, item.size_bytes) for item in part)
            sampler.add(part)
    rows: dict[str, Any] = {
        "kind": listing.kind,
        "inputs": num_inputs,
        "bytes": num_bytes,
        "parts": num_parts,
        "hidden files": listing.num_hidden,
        "listed again": listing.num_repeated,
    }
    if not num_inputs:
        return rows
    listing_seconds = time.monotonic() - started_seconds
    models = [model] if model else open_models(config.model, runtime, 1)
    sample, num, options = sampler.chosen(), num_processes(), local_options(config)
    num_others = num - 1 if pays(num_inputs, num_bytes, num_parts) else 0
    with calibrate.companions(num_others, config.model, runtime, sample, options):
        found = calibrate.forecast(num_inputs, listing_seconds, sample, models, options, num)
    is_stored = not sample[0].container and sample[0].name.startswith("s3://")
    on_nodes = calibrate.on_nodes(found, num_inputs, num_parts, listing_seconds, num, is_stored)
    return rows | calibrate.describe(found, num) | on_nodes


def _identify(config: ClassifyConfig) -> "tuple[str, str, FrozenModel | None]":
    """(model hash, runtime, model if it was opened), all files proven, also those that this runtime does not read."""
    from fruitcnn import bundle, frozen, runtimes

    runtime = runtimes.BF16 if config.precision == "bf16" else config.runtime
    with bundle.argument("--model", config.model):
        frozen.verify(config.model)
        if runtime in ("auto", *runtimes.REDUCED):
            model = frozen.load(config.model, runtime, num_threads=1)
            return model.model_hash, model.runtime, model
        return (*frozen.identify(config.model, runtime), None)


def _reopen(run: Run, manifest: RunManifest | None) -> None:
    """Open the books of a finished run for --retry-rejected; UsageError if it is not finished, or of unknown causes."""
    from fruitcnn import fetch, images, predictions

    causes = sorted({*images.CAUSES, *fetch.CAUSES})
    if unknown := [cause for cause in run.config.cause or () if cause not in causes]:
        raise UsageError(f"--cause: got {', '.join(unknown)}, wanted some of {', '.join(causes)}")
    if manifest is None and predictions.pending_parts(run.predictions, run.plan):
        raise UsageError(
            f"--retry-rejected: the run at {run.predictions} is not finished; the same command without "
            f"--retry-rejected finishes it first"
        )
    predictions.reopen(run.predictions)


def _require_whole(predictions_uri: str, manifest: RunManifest) -> None:
    """Raise ClassifyError if a part is gone, or has another size, since the books were closed."""
    found = {entry.uri: entry.size_bytes for entry in storage.list_files(storage.join(predictions_uri, "parts"))}
    lost = [part for part in manifest.parts if found.get(storage.join(predictions_uri, part.path)) != part.num_bytes]
    if lost:
        raise ClassifyError(
            f"{predictions_uri}: {plural(len(lost), 'part')} lost or changed since the books were closed, the first "
            f"{lost[0].path}: delete what is left of them and manifest.json, and the same command classifies them again"
        )


def _finish(run: Run, started_seconds: float, progress: Progress, session: "Session | None") -> RunManifest:
    """Classify what is missing, check the books, and write the manifest."""
    from fruitcnn import predictions
    from fruitcnn.execute import classify_parts

    attempt = predictions.claim_attempt(run.predictions)
    pending = predictions.pending_parts(run.predictions, run.plan)
    run_seconds = time.monotonic()
    work = classify_parts(run, pending, attempt, progress, session)
    parts, classify_seconds = work.parts, time.monotonic() - run_seconds
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
        num_retried=work.num_retried,
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
            predicted_seconds=work.predicted_seconds,
            num_cpus=work.num_cpus,
            effort=work.effort,
            num_inputs=work.num_retried if run.config.retry_rejected else sum(sizes[part] for part in pending),
        ),
    )
    return predictions.publish(run.predictions, manifest)
