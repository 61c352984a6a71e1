"""Listing -> plan: which input belongs to which part of the predictions. After inputs, before classify runs.

    <predictions>/plan/inputs-00000-<hash>.parquet ...   a row per input, one row group per part
    <predictions>/plan.json                              written last, put-if-absent: the run's identity

The plan is written once and is the truth of its run: a restart reads it and does not list again, so files that came
later belong to another run. Planning is streamed: memory does not grow with the number of inputs.
"""

import gc
import hashlib
import importlib.metadata
import io
import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fruitcnn import storage
from fruitcnn.errors import UsageError
from fruitcnn.inputs import Input, Listing

if TYPE_CHECKING:
    from fruitcnn.since import Choice

PARTS_PER_FILE = 256
SCHEMA = pa.schema(
    [
        ("container", pa.binary()),
        ("name", pa.binary()),  # as bytes: file names need not be UTF-8
        ("offset", pa.int64()),
        ("size_bytes", pa.int64()),
        ("stored_bytes", pa.int64()),
        ("method", pa.int32()),
        ("crc32", pa.int64()),
    ]
)


class PlanFile(BaseModel):
    """One Parquet file of the plan; its row group g holds the inputs of part first_part + g."""

    model_config = ConfigDict(frozen=True)

    path: str = Field(description="Relative to the predictions folder.")
    first_part: int
    part_inputs: tuple[int, ...] = Field(description="Number of inputs of each part.")
    num_bytes: int = Field(description="Size of the inputs, as far as the listing knew it.")
    sha256: str


class Plan(BaseModel):
    """The contents of plan.json."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    run_id: str = Field(description="sha256 over the plan files' hashes, the model hash and the settings.")
    model_hash: str
    settings: dict[str, Any] = Field(description="Everything else that decides what the rows say.")
    files: tuple[PlanFile, ...]
    num_inputs: int
    num_bytes: int
    num_hidden: int = Field(description="Hidden and system files passed over.")
    num_repeated: int = Field(description="Names listed more than once, planned once.")
    library_version: str

    @property
    def num_parts(self) -> int:
        """Number of parts, so of files under parts/."""
        return sum(len(file.part_inputs) for file in self.files)

    def part_inputs(self) -> list[int]:
        """Number of inputs of each part, in order."""
        return [number for file in self.files for number in file.part_inputs]


def cut(inputs: Iterable[Input], part_images: int, part_bytes: int) -> Iterator[list[Input]]:
    """Cut a stream into parts of at most part_images, closed once they hold part_bytes; parts do not cross shards.

    Pure: the same stream gives the same parts. Inputs of unknown size count as nothing.
    """
    part: list[Input] = []
    held_bytes = 0
    for item in inputs:
        other_shard = part and not item.name and item.container != part[-1].container
        if part and (len(part) == part_images or held_bytes >= part_bytes or other_shard):
            yield part
            part, held_bytes = [], 0
        part.append(item)
        held_bytes += max(0, item.size_bytes)
    if part:
        yield part


@contextmanager
def without_collector() -> Iterator[None]:
    """Names and numbers make no cycles, and Python's collector would walk them over and over: a quarter of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def write_plan(
    predictions: str,
    listing: "Listing | Choice",
    model_hash: str,
    settings: Mapping[str, Any],
    part_images: int,
    part_bytes: int,
) -> Plan:
    """Stream the listing into plan files, then plan.json. Returns the plan that counts: of two writers the first one's.

    Raises UsageError if the listing holds no input.
    """
    parts = cut(listing, part_images, part_bytes)
    files: list[PlanFile] = []
    with without_collector():
        while file := _write_file(predictions, parts, len(files), sum(len(file.part_inputs) for file in files)):
            files.append(file)
    if not files:
        hidden = f" ({listing.num_hidden} hidden files passed over)" if listing.num_hidden else ""
        raise UsageError(f"--images {listing.images}: got no input{hidden}, wanted at least one file")
    identity = {"files": [file.sha256 for file in files], "model": model_hash, "settings": dict(settings)}
    plan = Plan(
        run_id=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
        model_hash=model_hash,
        settings=dict(settings),
        files=tuple(files),
        num_inputs=sum(sum(file.part_inputs) for file in files),
        num_bytes=sum(file.num_bytes for file in files),
        num_hidden=listing.num_hidden,
        num_repeated=listing.num_repeated,
        library_version=importlib.metadata.version("fruitcnn"),
    )
    storage.put_if_absent(_plan_uri(predictions), plan.model_dump_json(indent=1).encode() + b"\n")
    winner = load_plan(predictions)
    assert winner is not None
    _sweep(predictions, winner)
    return winner


def load_plan(predictions: str) -> Plan | None:
    """The plan in a predictions folder, None if there is none; UsageError if plan.json is not one of ours."""
    uri = _plan_uri(predictions)
    try:
        return Plan.model_validate_json(storage.read(uri))
    except storage.NotFoundError:
        return None
    except ValidationError as error:
        raise UsageError(f"{uri} is no plan of this version: choose another --predictions folder") from error


def require_same_run(predictions: str, plan: Plan, model_hash: str, settings: Mapping[str, Any]) -> None:
    """Raise UsageError, naming every difference, if `plan` belongs to another model or other settings."""
    wanted = {"model hash": model_hash, **settings}
    planned = {"model hash": plan.model_hash, **plan.settings}
    lines = [
        f"{key.replace('_', ' ')}: that run has {planned.get(key)!r}, this command says {wanted.get(key)!r}"
        for key in sorted(wanted.keys() | planned.keys())
        if planned.get(key) != wanted.get(key)
    ]
    if lines:
        text = "\n  ".join(lines)
        raise UsageError(
            f"--predictions {predictions} belongs to another run:\n  {text}\n"
            f"give the same arguments to continue it, or another --predictions folder"
        )


def require_ours_or_empty(predictions: str) -> None:
    """Raise UsageError for a folder without a plan that holds anything but the beginnings of one."""
    for entry in storage.list_files(predictions):
        if not entry.uri.startswith(storage.join(predictions, "plan") + "/"):
            raise UsageError(
                f"--predictions {predictions}: got a folder that holds {entry.uri.removeprefix(predictions)[1:]} and "
                f"no plan.json, wanted an empty one or an earlier run's; choose another"
            )


class PlanReader:
    """Reads the inputs of single parts; keeps the last plan file open. Thread-safe."""

    def __init__(self, predictions: str, plan: Plan) -> None:
        self._predictions = predictions
        self._plan = plan
        self._lock = threading.Lock()
        self._open: tuple[str, pq.ParquetFile] | None = None

    def read(self, part: int) -> list[Input]:
        """The inputs of part number `part` in plan order; StorageError if the plan file cannot be read."""
        file = next(file for file in reversed(self._plan.files) if file.first_part <= part)
        uri = storage.join(self._predictions, file.path)
        with self._lock:
            if not self._open or self._open[0] != uri:
                filesystem, path = storage.parquet_filesystem(uri)
                self._open = uri, pq.ParquetFile(path, filesystem=filesystem)
            table = self._open[1].read_row_group(part - file.first_part)
        return _from_table(table)


def _write_file(predictions: str, parts: Iterator[list[Input]], number: int, first_part: int) -> PlanFile | None:
    sink = io.BytesIO()
    part_inputs: list[int] = []
    num_bytes = 0
    with pq.ParquetWriter(sink, SCHEMA, compression="zstd", write_statistics=False) as writer:
        while len(part_inputs) < PARTS_PER_FILE and (part := next(parts, None)):
            writer.write_table(_to_table(part), row_group_size=len(part))
            part_inputs.append(len(part))
            num_bytes += sum(max(0, item.size_bytes) for item in part)
    if not part_inputs:
        return None
    data = sink.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    path = f"plan/inputs-{number:05d}-{digest[:12]}.parquet"
    storage.write(storage.join(predictions, path), data)
    return PlanFile(
        path=path, first_part=first_part, part_inputs=tuple(part_inputs), num_bytes=num_bytes, sha256=digest
    )


def _to_table(part: list[Input]) -> pa.Table:
    containers, names, *numbers = zip(*part, strict=True)
    texts = [[text.encode("utf-8", "surrogateescape") for text in column] for column in (containers, names)]
    columns = [pa.array(values, field.type) for values, field in zip([*texts, *numbers], SCHEMA, strict=True)]
    return pa.table(columns, SCHEMA)


def _from_table(table: pa.Table) -> list[Input]:
    containers, names, *numbers = (column.to_pylist() for column in table.columns)
    texts = [[raw.decode("utf-8", "surrogateescape") for raw in column] for column in (containers, names)]
    return [Input(*values) for values in zip(*texts, *numbers, strict=True)]


def _sweep(predictions: str, plan: Plan) -> None:
    """Delete plan files of writers that did not win; they list again and come to the same end."""
    named = {storage.join(predictions, file.path) for file in plan.files}
    for entry in list(storage.list_files(storage.join(predictions, "plan"))):
        if entry.uri not in named:
            storage.delete(entry.uri)


def _plan_uri(predictions: str) -> str:
    return storage.join(predictions, "plan.json")
