"""Finished predictions -> what other tools and people want: CSV files, pictures in a folder per label. After classify.

    <predictions>/csv/part-00000.csv ...          the rows of each part; a list is a|b|c
    <organise>/<label>/<name>-<hash>.<ending>     the pictures; _unsure/<label>/ and _rejected/<cause>/ beside them
    <organise>/copies/part-00000.csv, run.json    id -> where its picture went; of which run

Both go by the manifest's parts, one at a time, and may be run again: a picture that is there already stays, one whose
row --retry-rejected changed moves.
"""

import csv
import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from fruitcnn import fetch, storage
from fruitcnn.books import RunManifest
from fruitcnn.errors import UsageError
from fruitcnn.inputs import Input
from fruitcnn.plan import PlanReader, load_plan

By = Literal["link", "copy"]

_NUM_WORKERS = 16
_RUN = "copies/run.json"
_NAME_BYTES = 255
"""Of a file name, on nearly every file system."""


class Organised(NamedTuple):
    """How many pictures lie in their folders now, and how many could not be read any more."""

    num_placed: int
    num_missing: int


def write_csv(predictions: str, manifest: RunManifest) -> str:
    """Write the rows of each part as CSV; returns the URI of the folder. predictions: normalised."""
    folder = storage.join(predictions, "csv")

    def one(path: str) -> None:
        table = _read(predictions, path)
        flat = pa.table({name: _flat(table[name]) for name in table.column_names})
        storage.write(storage.join(folder, _csv_name(path)), _csv(flat))

    with ThreadPoolExecutor(_NUM_WORKERS) as pool:
        for _ in pool.map(one, [part.path for part in manifest.parts]):
            pass
    return folder


def organise(predictions: str, manifest: RunManifest, target: str, by: By) -> Organised:
    """Put every picture into the folder of its label under target; predictions: normalised.

    Names keep their base and gain a hash of the id, because base names repeat. UsageError if target holds anything
    else; StorageError if it cannot be written, or the store fails as a whole.
    """
    plan = load_plan(predictions)
    assert plan is not None, "a manifest without a plan"
    reader, target = PlanReader(predictions, plan), storage.normalise(target)
    require_ours(target, manifest.run_id)
    storage.write_json(storage.join(target, _RUN), {"run_id": manifest.run_id})
    num_placed = num_missing = 0
    with ThreadPoolExecutor(_NUM_WORKERS) as pool:
        for number, part in enumerate(manifest.parts):
            inputs = reader.read(number)
            rows = _read(predictions, part.path, ["id", "label", "status", "cause"]).to_pylist()
            jobs = [
                pool.submit(_place, inputs[start:stop], rows[start:stop], target, by)
                for start, stop in fetch.chunks(inputs, 0, len(inputs))
            ]
            targets = [place for job in jobs for place in job.result()]
            num_missing += targets.count(None)
            num_placed += len(targets) - targets.count(None)
            copies = storage.join(target, "copies", _csv_name(part.path))
            places = dict(zip((row["id"] for row in rows), targets, strict=True))
            _remove_moved(copies, places, target)
            storage.write(
                copies, _csv(pa.table({"id": list(places), "target": pa.array(places.values(), pa.string())}))
            )
    return Organised(num_placed, num_missing)


def require_ours(target: str, run_id: str | None = None) -> None:
    """UsageError if target, normalised, holds anything but the pictures of one run; run_id: of this one."""
    marker = storage.join(target, _RUN)
    if storage.exists(marker):
        if run_id not in (None, storage.read_json(marker)["run_id"]):
            raise UsageError(f"--organise {target}: holds the pictures of another run; name another folder")
    elif entry := next(storage.list_files(target), None):
        name = entry.uri.removeprefix(target).lstrip("/")
        raise UsageError(f"--organise {target}: got a folder that holds {name}, wanted a new or an empty one")


def _remove_moved(copies: str, places: dict[str, str | None], target: str) -> None:
    """Of the pictures that an earlier call put somewhere else, remove what it put there."""
    if not storage.exists(copies):
        return
    for line in csv.DictReader(io.StringIO(storage.read(copies).decode(), newline="")):
        before, now = line["target"], places.get(line["id"])
        if now and before != now and before.startswith(f"{target}/"):
            storage.delete(before)


def _place(inputs: Sequence[Input], rows: Sequence[dict[str, Any]], target: str, by: By) -> list[str | None]:
    """Place the pictures of one chunk; returns where each is now, None for those that cannot be read."""
    places = [_place_of(row, target) for row in rows]
    linked = [by == "link" and _link(item, place) for item, place in zip(inputs, places, strict=True)]
    if all(linked):
        return list(places)
    done: list[str | None] = []
    for found, place, is_linked in zip(fetch.fetch(inputs), places, linked, strict=True):
        if not is_linked and found.data is not None:
            storage.put_if_absent(place, found.data)
        done.append(place if is_linked or found.data is not None else None)
    return done


def _place_of(row: dict[str, Any], target: str) -> str:
    base = storage.name(row["id"].rpartition("!")[2])
    stem, dot, ending = base.rpartition(".")
    tail = f"-{hashlib.sha256(row['id'].encode()).hexdigest()[:10]}"
    if dot and stem and len(ending) < 32:
        base, tail = stem, f"{tail}.{ending}"
    room = _NAME_BYTES - len(tail.encode())
    name = base.encode()[:room].decode(errors="ignore") + tail
    folders = {"ok": [row["label"]], "unsure": ["_unsure", row["label"]], "rejected": ["_rejected", row["cause"]]}
    return storage.join(target, *(_safe(folder) for folder in folders[row["status"]]), _safe(name))


def _safe(name: str) -> str:
    """A name without what would be another folder."""
    return name.replace("/", "_").replace("\\", "_").replace("..", "__") or "_"


def _link(item: Input, place: str) -> bool:
    """Make a hard link; False where that cannot be: members, other disks, S3, a file that is gone."""
    if item.container or storage.is_s3(item.name) or storage.is_s3(place):
        return False
    try:
        os.makedirs(os.path.dirname(place), exist_ok=True)  # noqa: PTH103, PTH120 - names need not be UTF-8
        os.link(os.path.realpath(item.name), place)  # a link to a link would lead nowhere from another folder
    except FileExistsError:
        return True
    except OSError:
        return False
    return True


def _read(predictions: str, path: str, columns: list[str] | None = None) -> pa.Table:
    return pq.read_table(io.BytesIO(storage.read(storage.join(predictions, path))), columns=columns)


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    if not pa.types.is_nested(column.type):
        return column
    lists = column.to_pylist()
    return pa.array([None if each is None else "|".join(map(str, each)) for each in lists], pa.string())


def _csv(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pa_csv.write_csv(table, sink)
    return sink.getvalue()


def _csv_name(path: str) -> str:
    return f"{storage.name(path).removesuffix('.parquet')}.csv"
