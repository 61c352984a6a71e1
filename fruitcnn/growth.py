"""What lies at the destination already, and what the source has beyond it. Asked by shards before anything is written.

A data set grows and never changes: files that were listed once must still be there, and unchanged.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence, Set

import pyarrow as pa
import pyarrow.parquet as pq

from fruitcnn import parquet, storage
from fruitcnn.errors import UsageError
from fruitcnn.manifest import Manifest, StoredFile, load_manifest, manifest_uri, publish
from fruitcnn.sharding import Rejected, ShardResult
from fruitcnn.sources import Record, Source

_REJECTED = pa.schema({name: pa.string() for name in ("id", "path", "cause", "detail")})
_NUM_NAMES = 3


def find_base(dataset_uri: str) -> Manifest | None:
    """The newest manifest at the destination; None if there is none yet.

    UsageError if other things lie there, or if shards of the manifest are missing. A version that was written but not
    yet made the newest, because the run was killed in between, is made the newest.
    """
    base = load_manifest(dataset_uri) if storage.exists(manifest_uri(dataset_uri)) else None
    next_version = base.version + 1 if base else 1
    if storage.exists(manifest_uri(dataset_uri, next_version)):
        base = publish(dataset_uri, load_manifest(dataset_uri, next_version))
    if base is None:
        return None
    missing = missing_shards(dataset_uri, base)
    if missing:
        raise UsageError(
            f"--dataset: the manifest of {dataset_uri} names {_names(missing)}, not there or of another size; "
            "restore them, or write the data set to an empty folder"
        )
    return base


def missing_shards(dataset_uri: str, manifest: Manifest) -> list[str]:
    """Paths of the manifest's shards that are not there, or not of the size the manifest says."""
    sizes = {entry.uri: entry.size_bytes for entry in storage.list_files(storage.join(dataset_uri, "shards"))}
    return [s.path for s in manifest.shards() if sizes.get(storage.join(dataset_uri, s.path)) != s.num_bytes]


def refuse_inside(dataset_uri: str, source: Source) -> None:
    """UsageError if the data set would lie in the source: the next listing would take its shards for pictures."""
    if f"{dataset_uri}/".startswith(f"{source.uri}/"):
        raise UsageError(f"--dataset: {dataset_uri} lies inside the source {source.uri}; name a folder outside it")


def refuse_foreign(dataset_uri: str) -> None:
    """UsageError if the destination holds things, but neither a data set nor a half-written one."""
    if storage.is_empty(dataset_uri) or not storage.is_empty(work_root(dataset_uri)):
        return
    raise UsageError(
        f"--dataset: {dataset_uri} is not empty and holds no data set of ours (no manifest.json); "
        "name an empty folder, or one that does not exist yet"
    )


def new_records(source: Source, base: Manifest, dataset_uri: str) -> list[Record]:
    """The records of the source that the data set has not taken in yet.

    UsageError, naming some, if files it did take in have vanished from the source or changed.
    """
    current = {record.path: record.size_bytes for record in source.records}
    known = _known(dataset_uri, base)
    vanished = [path for path in known if path not in current]
    changed = [path for path, size in known.items() if current.get(path, size) != size]
    new = [record for record in source.records if record.path not in known]
    if not (new or vanished or changed) and source.fingerprint != base.source_fingerprint:
        raise UsageError(_refusal(source, base, dataset_uri, "the contents of some files changed at the same size"))
    if vanished or changed:
        said = [f"{len(paths):,} {verb}: {_names(paths)}" for verb, paths in _verbs(vanished, changed) if paths]
        raise UsageError(_refusal(source, base, dataset_uri, "; ".join(said)))
    return new


def _verbs(vanished: list[str], changed: list[str]) -> list[tuple[str, list[str]]]:
    return [("files of it are gone", vanished), ("files of it changed", changed)]


def _refusal(source: Source, base: Manifest, dataset_uri: str, why: str) -> str:
    return (
        f"--source: {source.uri} is not a grown version of the source of {dataset_uri} (made from {base.source}): "
        f"{why}. A data set only grows: write this source to another --dataset"
    )


def _names(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _NUM_NAMES:,} more" if len(paths) > _NUM_NAMES else ""
    return ", ".join(paths[:_NUM_NAMES]) + more


def _known(dataset_uri: str, base: Manifest | None) -> dict[str, int]:
    """Path -> size of every file that the data set has taken in, as a row or as rejected."""
    known: dict[str, int] = {}
    for listing in base.listings if base else ():
        table = _read(storage.join(dataset_uri, listing.path))
        known.update(zip(table["path"].to_pylist(), table["size_bytes"].to_pylist(), strict=True))
    return known


# --- traces of a run under way


def work_root(dataset_uri: str) -> str:
    """Where the traces of runs under way lie."""
    return storage.join(dataset_uri, "shards", "_work")


def claim(dataset_uri: str, source_uri: str, plan: str, shard_paths: Set[str], base: Manifest | None) -> str:
    """Make the work folder of `plan` (a fingerprint) and return its URI, once the destination is cleared for it.

    What a run with another plan for the same source left half-written is deleted, shards included; UsageError if it
    was for another source.
    """
    claim_uri = storage.join(work_root(dataset_uri), plan, "plan.json")
    for entry in list(storage.list_files(work_root(dataset_uri))):
        if storage.name(entry.uri) != "plan.json" or entry.uri == claim_uri:
            continue
        other = storage.read_json(entry.uri)["source"]
        if other != source_uri:
            raise UsageError(
                f"--source: {dataset_uri} is half-written from {other}, not from {source_uri}; finish that one, "
                "or name another --dataset"
            )
        storage.delete_prefix(entry.uri.removesuffix("/plan.json"))
    storage.write_json(claim_uri, {"source": source_uri})
    base_paths = {shard.path for shard in base.shards()} if base else set()
    kept = {storage.join(dataset_uri, path) for path in shard_paths | base_paths}
    for entry in list(storage.list_files(storage.join(dataset_uri, "shards"))):
        if entry.uri.endswith(".parquet") and entry.uri not in kept:
            storage.delete(entry.uri)
    return storage.join(work_root(dataset_uri), plan)


def finished(dataset_uri: str, work_uri: str, names: Sequence[str]) -> dict[str, ShardResult]:
    """Results that an earlier run of the same plan left, by name of the shard; without those whose shard is gone."""
    sizes = {entry.uri: entry.size_bytes for entry in storage.list_files(storage.join(dataset_uri, "shards"))}
    there = [name for name in names if storage.join(work_uri, f"{name}.json") in sizes]
    results = {}
    for name in there:
        result = ShardResult.model_validate_json(storage.read(storage.join(work_uri, f"{name}.json")))
        shard = result.shard
        if shard is None or sizes.get(storage.join(dataset_uri, shard.path)) == shard.num_bytes:
            results[name] = result
    return results


# --- the two tables beside the shards


def write_listing(dataset_uri: str, version: int, records: Sequence[Record]) -> StoredFile:
    """Write the records that `version` takes in to listings/<version>.parquet."""
    columns = [parquet.strings([r.path for r in records]), parquet.integers([r.size_bytes for r in records])]
    path = f"listings/{version:06d}.parquet"
    data = _encode(pa.Table.from_arrays(columns, ["path", "size_bytes"]))
    storage.write(storage.join(dataset_uri, path), data)
    return StoredFile(path=path, num_rows=len(records), num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def write_rejected(dataset_uri: str, rejected: Iterable[Rejected], base: Manifest | None) -> Counter[str]:
    """Write rejected.parquet, sorted by path: these and those of `base`; returns the number of its rows by cause.

    What a run that came to no manifest may have left in it is dropped.
    """
    uri = storage.join(dataset_uri, "rejected.parquet")
    known = _known(dataset_uri, base)
    rows = [row for row in _read(uri).to_pylist() if row["path"] in known] if known else []
    rows += [item.model_dump() for item in rejected]
    rows.sort(key=lambda row: row["path"])
    storage.write(uri, _encode(pa.Table.from_pylist(rows, _REJECTED) if rows else _REJECTED.empty_table()))
    return Counter(row["cause"] for row in rows)


def _read(uri: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read(uri)))


def _encode(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
