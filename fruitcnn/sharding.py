"""The work of shards, without Ray: which record goes to which shard, and how one shard is made. Called by shards."""

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from fruitcnn import images, parquet, storage
from fruitcnn.manifest import StoredFile
from fruitcnn.parquet import Row
from fruitcnn.sources import Record, Source, SourceError

_CHUNK_RECORDS = 32
_NUM_THREADS = {False: 4, True: 32}  # by "source is on S3": there the threads wait, here they compute
_UNREADABLE = (SourceError, storage.NotFoundError, storage.PermissionDeniedError)


class ShardPlan(NamedTuple):
    """What one shard is to hold, in the order of its rows."""

    name: str
    records: tuple[Record, ...]

    @property
    def split(self) -> str:
        """Split that all its records belong to."""
        return self.records[0].split

    @property
    def path(self) -> str:
        """Of the shard, relative to the data set."""
        return f"shards/{self.name}.parquet"


class Rejected(BaseModel):
    """A file that did not become a row; id (sha256 of its bytes) is None if they could not be read."""

    model_config = ConfigDict(frozen=True)
    id: str | None
    path: str
    cause: str
    detail: str


class ShardResult(BaseModel):
    """What became of one plan: the contents of its file under _work. shard is None if no record became a row."""

    model_config = ConfigDict(frozen=True)
    shard: StoredFile | None
    labels: tuple[int, ...] = Field(description="Labels that occur in the shard, ascending.")
    rejected: tuple[Rejected, ...]


def plan_shards(records: Iterable[Record], shard_bytes: int, first_index: dict[str, int]) -> list[ShardPlan]:
    """Cut the records into shards of about equal size, none above shard_bytes by more than one picture.

    Within a split the records are sorted by the sha256 of their path: a fixed shuffle, so that every block of rows is a
    fair mix of the classes. first_index: number of the first shard of a split, 0 where absent.
    """
    plans = []
    for split, members in itertools.groupby(sorted(records, key=_shuffle_key), key=lambda record: record.split):
        of_split = list(members)
        num_bytes = sum(record.size_bytes for record in of_split)
        num_shards = max(1, -(-num_bytes // shard_bytes))
        shards: list[list[Record]] = [[] for _ in range(num_shards)]
        before_bytes = 0
        for record in of_split:
            shards[before_bytes * num_shards // max(1, num_bytes) if before_bytes < num_bytes else -1].append(record)
            before_bytes += record.size_bytes
        start = first_index.get(split, 0)
        plans += [ShardPlan(f"{split}-{start + n:05d}", tuple(shard)) for n, shard in enumerate(shards) if shard]
    return plans


def _shuffle_key(record: Record) -> tuple[str, bytes]:
    return record.split, hashlib.sha256(record.path.encode()).digest()


def write_shard(
    source: Source, plan: ShardPlan, classes: Sequence[str], dataset_uri: str, work_uri: str, max_pixels: int
) -> ShardResult:
    """Read, fully decode and store the records of one shard, then leave its ShardResult under work_uri.

    A picture that is broken or cannot be read becomes a Rejected; a store that fails raises StorageError.
    """
    labels = {name: label for label, name in enumerate(classes)}
    chunks = [plan.records[i : i + _CHUNK_RECORDS] for i in range(0, len(plan.records), _CHUNK_RECORDS)]
    with ThreadPoolExecutor(_NUM_THREADS[storage.is_s3(source.uri)]) as pool:
        loaded = [
            item for chunk in pool.map(lambda part: _load(source, part, labels, max_pixels), chunks) for item in chunk
        ]
    rows = [item for item in loaded if isinstance(item, Row)]
    shard = None
    if rows:
        data = parquet.encode(rows, classes)
        storage.write(storage.join(dataset_uri, plan.path), data)
        digest = hashlib.sha256(data).hexdigest()
        shard = StoredFile(path=plan.path, num_rows=len(rows), num_bytes=len(data), sha256=digest)
    result = ShardResult(
        shard=shard,
        labels=tuple(sorted({row.label for row in rows})),
        rejected=tuple(item for item in loaded if isinstance(item, Rejected)),
    )
    storage.write(storage.join(work_uri, f"{plan.name}.json"), result.model_dump_json().encode())
    return result


def _load(source: Source, records: Sequence[Record], labels: dict[str, int], max_pixels: int) -> list[Row | Rejected]:
    return [_load_one(source, record, labels[record.label], max_pixels) for record in records]


def _load_one(source: Source, record: Record, label: int, max_pixels: int) -> Row | Rejected:
    try:
        data = source.read(record)
    except _UNREADABLE as error:
        return Rejected(id=None, path=record.path, cause="unreadable", detail=str(error)[:200])
    row_id = hashlib.sha256(data).hexdigest()
    try:
        images.check(data, max_pixels)
    except images.ImageError as error:
        return Rejected(id=row_id, path=record.path, cause=error.cause, detail=error.detail)
    return Row(data, record.path, label, row_id, record.group)
