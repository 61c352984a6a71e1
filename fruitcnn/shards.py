"""Records -> Parquet shards + manifest.json: the data set that training reads. After sources, before pixels.

    <dataset>/shards/<split>-00000.parquet ...  rows in a fixed order, row groups of 256 rows
    <dataset>/shards/_work/<plan>/...           one small JSON a finished shard; gone once the manifest is there
    <dataset>/rejected.parquet                  every file that did not become a row: id, path, cause, detail
    <dataset>/listings/000001.parquet           the source files that version 1 took in
    <dataset>/manifests/000001.json             every version of the manifest
    <dataset>/manifest.json                     the newest, written LAST: no manifest, no data set

The plan (which file goes to which shard) is a pure function of the source's listing, so a run that was killed finds
its finished shards again. A source that grew adds shards with the new files only. One writer at a
time: two runs of the same plan agree byte for byte, two different plans over one data set do not.
"""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any, NamedTuple

from fruitcnn import growth, storage
from fruitcnn.errors import UsageError
from fruitcnn.manifest import SCHEMA_VERSION, DatasetError, Manifest, Split, StoredFile, load_manifest, publish
from fruitcnn.parquet import read_rows
from fruitcnn.shard_config import ShardConfig
from fruitcnn.sharding import ShardPlan, ShardResult, plan_shards, write_shard
from fruitcnn.sources import Record, Source, open_source

__all__ = [
    "Manifest",
    "check_dataset",
    "load_manifest",
    "plan_dataset",
    "read_rows",
    "write_dataset",
    "write_plan",
]

Progress = Callable[..., AbstractContextManager[Callable[..., None]]]


class DatasetPlan(NamedTuple):
    """What one run is to do; no records: the data set is whole already."""

    config: ShardConfig
    dataset_uri: str
    source: Source
    base: Manifest | None
    classes: tuple[str, ...]
    records: list[Record]
    plans: list[ShardPlan]
    work_uri: str


def write_dataset(config: ShardConfig, progress: Progress) -> Manifest:
    """Write, finish or grow the data set at config.dataset, in the Ray session at hand; returns its newest manifest.

    plan_dataset and write_plan in one, and raises what they raise. A source that is in the data set already changes
    nothing.
    """
    return write_plan(plan_dataset(config), progress)


def plan_dataset(config: ShardConfig) -> DatasetPlan:
    """List the source, compare it with what lies at config.dataset, and plan the shards that are missing. No Ray.

    Raises UsageError (SourceError among them) or StorageError: then nothing was changed.
    """
    with storage.argument("--dataset"):
        dataset_uri = storage.normalise(config.dataset)
        base = growth.find_base(dataset_uri)
        if base is None:
            growth.refuse_foreign(dataset_uri)
        else:
            _require_same_settings(config, base)
    with storage.argument("--source"):
        source = open_source(
            config.source,
            root=config.root,
            test_fraction=config.test_fraction,
            seed=config.seed,
            allow_class_mismatch=config.allow_class_mismatch,
        )
    growth.refuse_inside(dataset_uri, source)
    if base and base.source_fingerprint == source.fingerprint:
        storage.delete_prefix(growth.work_root(dataset_uri))
        return DatasetPlan(config, dataset_uri, source, base, base.classes, [], [], "")
    records = growth.new_records(source, base, dataset_uri) if base else source.records
    known = base.classes if base else ()
    classes = known + tuple(sorted(set(source.classes) - set(known)))
    first_index = {name: 1 + _index(split.shards[-1]) for name, split in (base.splits if base else {}).items()}
    plans = plan_shards(records, config.shard_bytes, first_index)
    said = [SCHEMA_VERSION, source.fingerprint, classes, config.row_settings(), config.shard_bytes, first_index]
    fingerprint = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
    with storage.argument("--dataset"):
        work_uri = growth.claim(dataset_uri, source.uri, fingerprint, {plan.path for plan in plans}, base)
    return DatasetPlan(config, dataset_uri, source, base, classes, records, plans, work_uri)


def write_plan(plan: DatasetPlan, progress: Progress) -> Manifest:
    """Carry out a plan in the Ray session at hand; returns the newest manifest.

    progress(title, total, unit, already) is a context manager that yields update(done). Raises DatasetError if the
    pictures make no data set; SourceError or StorageError if the source or a store fails: the same command then
    finishes the work.
    """
    if plan.base and not plan.records:
        return plan.base
    manifest = _finish(plan, _run(plan, progress))
    storage.delete_prefix(growth.work_root(plan.dataset_uri))
    return manifest


def check_dataset(dataset_uri: str) -> Manifest:
    """Compare every shard and listing with the hash in the newest manifest; DatasetError names those that differ."""
    manifest = load_manifest(dataset_uri)

    def differs(file: StoredFile) -> bool:
        try:
            data = storage.read(storage.join(dataset_uri, file.path))
        except storage.NotFoundError:
            return True
        return hashlib.sha256(data).hexdigest() != file.sha256

    files = [*manifest.shards(), *manifest.listings]
    with ThreadPoolExecutor(4) as pool:
        bad = [file.path for file, is_bad in zip(files, pool.map(differs, files), strict=True) if is_bad]
    if bad:
        raise DatasetError(
            f"{dataset_uri}: {len(bad)} of {len(files)} files are not what the manifest says: {', '.join(bad)}; "
            "restore them, or write the data set to an empty folder"
        )
    return manifest


def _require_same_settings(config: ShardConfig, base: Manifest) -> None:
    for name, value in config.row_settings().items():
        if base.config[name] != value:
            raise UsageError(
                f"--{name.replace('_', '-')}: got {value!r}, wanted {base.config[name]!r}, with which the data set at "
                f"{config.dataset} was begun; use that, or write to another --dataset"
            )


def _index(shard: StoredFile) -> int:
    return int(shard.path.removesuffix(".parquet").rpartition("-")[2])


# --- many shards at once


def _run(job: DatasetPlan, progress: Progress) -> list[ShardResult]:
    """One result per plan, in their order; those of an earlier run are taken over."""
    results = growth.finished(job.dataset_uri, job.work_uri, [plan.name for plan in job.plans])
    todo = [plan for plan in job.plans if plan.name not in results]
    total = len(job.records)
    done = total - sum(len(plan.records) for plan in todo)
    with progress("shard", total, "images", done) as update:
        for plan, result in _on_ray(job, todo) if todo else ():
            results[plan.name] = result
            done += len(plan.records)
            update(done)
    return [results[plan.name] for plan in job.plans]


def _on_ray(job: DatasetPlan, plans: Sequence[ShardPlan]) -> Iterator[tuple[ShardPlan, ShardResult]]:
    import ray

    task = ray.remote(num_cpus=1)(_write_shard)
    # In a list Ray leaves the reference alone: the source, with all its listing, is unpickled once a worker, not once a
    # shard.
    source = [ray.put(dataclasses.replace(job.source, records=[]))]
    waiting = iter(plans)
    in_flight: dict[Any, ShardPlan] = {}
    num_cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    try:
        while True:
            for plan in itertools.islice(waiting, num_cpus - len(in_flight)):
                ref = task.remote(source, plan, job.classes, job.dataset_uri, job.work_uri, job.config.max_pixels)
                in_flight[ref] = plan
            if not in_flight:
                return
            ready, _ = ray.wait(list(in_flight), num_returns=1)
            yield in_flight.pop(ready[0]), ray.get(ready[0])
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    finally:
        for ref in in_flight:
            ray.cancel(ref)


def _write_shard(source: list[Any], *args: Any) -> ShardResult:
    return write_shard(_source(source[0]), *args)


@lru_cache(maxsize=1)
def _source(reference: Any) -> Source:
    import ray

    found: Source = ray.get(reference)
    return found


# --- the end


def _finish(job: DatasetPlan, results: Sequence[ShardResult]) -> Manifest:
    """Write everything that is not a shard; the manifest last."""
    base = job.base
    rejected = growth.write_rejected(job.dataset_uri, [item for result in results for item in result.rejected], base)
    _require_pictures(job, results, rejected)
    splits = {name: list(split.shards) for name, split in base.splits.items()} if base else {}
    for plan, result in zip(job.plans, results, strict=True):
        if result.shard:
            splits.setdefault(plan.split, []).append(result.shard)
    version = base.version + 1 if base else 1
    listing = growth.write_listing(job.dataset_uri, version, job.records)
    manifest = Manifest(
        version=version,
        classes=job.classes,
        splits={name: Split(shards=tuple(shards)) for name, shards in sorted(splits.items())},
        num_rejected_by_cause=dict(sorted(rejected.items())),
        source=job.source.uri,
        source_fingerprint=job.source.fingerprint,
        listings=(*(base.listings if base else ()), listing),
        config=job.config.model_dump(),
        library_version=importlib.metadata.version("fruitcnn"),
        created_at=datetime.datetime.now(datetime.UTC).replace(microsecond=0),
    )
    return publish(job.dataset_uri, manifest)


def _require_pictures(job: DatasetPlan, results: Sequence[ShardResult], rejected: Counter[str]) -> None:
    causes = ", ".join(f"{cause} {count:,}" for cause, count in rejected.most_common())
    where = f"see {storage.join(job.dataset_uri, 'rejected.parquet')}"
    num_files, num_rejected = len(job.source.records), rejected.total()
    if num_rejected == num_files:
        raise DatasetError(f"all {num_files:,} files of {job.source.uri} were rejected ({causes}); {where}")
    if num_rejected > job.config.max_rejected * num_files:
        raise DatasetError(
            f"{num_rejected:,} of {num_files:,} files were rejected ({causes}), more than --max-rejected "
            f"{job.config.max_rejected} allows; {where}, then repair the source or raise --max-rejected"
        )
    labels = {label for result in results for label in result.labels}
    if job.base is None and len(labels) < 2:
        names = ", ".join(job.classes[label] for label in labels)
        raise DatasetError(f"only one class ({names}) has pictures that can be read ({causes}); {where}")
