"""What a report stands on: rows of predictions joined to the truth, and the few pictures it shows. Before report.

Parts are streamed; the truth comes from the data set's Test shards, one shard at a time, because classify's parts do
not cross shards. Pictures are found again through the plan, whatever the predictions were made of, and only the bytes
that were classified count: where their hash differs now, there is no picture.
"""

import base64
import hashlib
import io
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from fruitcnn import fetch, images, storage
from fruitcnn.books import RunManifest
from fruitcnn.columns import COLUMNS, Example
from fruitcnn.manifest import Manifest
from fruitcnn.parquet import read_rows, strings
from fruitcnn.plan import Plan, PlanReader, load_plan
from fruitcnn.predictions import load_manifest
from fruitcnn.tally import Tally

THUMBNAIL_PX = 160
_SMALL_PX = 64
_PARTS_AHEAD = 8
_NUM_READERS = 8


class RunRecords(NamedTuple):
    """What a training run left: config.json and result.json ({} where not there), and the lines of metrics.jsonl."""

    config: Mapping[str, Any]
    result: Mapping[str, Any]
    metrics: list[Mapping[str, Any]]


def read_run(run: str) -> RunRecords:
    """The records of the run at a normalised URI. StorageError if there is no config.json."""
    config = storage.read_json(storage.join(run, "config.json"))
    try:
        result = storage.read_json(storage.join(run, "result.json"))
    except storage.NotFoundError:
        result = {}
    try:
        lines = storage.read(storage.join(run, "metrics.jsonl")).splitlines()
    except storage.NotFoundError:
        lines = []
    # A resumed run repeats the steps since its last checkpoint: what came last counts.
    metrics = {(line["kind"], line["step"]): line for line in map(_json_object, lines) if line}
    return RunRecords(config, result, sorted(metrics.values(), key=lambda line: (line["kind"], line["step"])))


def _json_object(line: bytes) -> Mapping[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:  # the last line of a run that was killed
        return None


class Evidence(NamedTuple):
    """The predictions folder: its figures, its manifest and plan (None where not there)."""

    tally: Tally
    manifest: RunManifest | None
    plan: Plan | None


def read_predictions(predictions: str, truth: "Truth | None") -> Evidence:
    """Stream all parts under a normalised URI into a Tally. StorageError if one cannot be read."""
    tally = Tally()
    manifest = load_manifest(predictions)
    for number, rows in parts(predictions, manifest):
        labels = truth.of(rows["id"]) if truth else pa.nulls(len(rows), pa.string())
        tally.add(number, rows.append_column("truth", labels))
    return Evidence(tally, manifest, load_plan(predictions))


def parts(predictions: str, manifest: RunManifest | None) -> Iterator[tuple[int, pa.Table]]:
    """(number, rows) of each part, in order, a few read ahead."""
    if manifest:
        paths = [part.path for part in manifest.parts]
    else:
        folder = storage.join(predictions, "parts")
        paths = [f"parts/{storage.name(entry.uri)}" for entry in storage.list_files(folder)]
        paths.sort(key=lambda path: (len(path), path))

    def read(path: str) -> tuple[int, pa.Table]:
        uri = storage.join(predictions, path)
        try:
            with pq.ParquetFile(io.BytesIO(storage.read(uri))) as file:
                rows = file.read(list(COLUMNS), use_threads=False)  # others read other parts meanwhile
        except pa.ArrowException as error:
            raise storage.StorageError(uri, f"not readable as Parquet: {error}") from error
        return int(path.removesuffix(".parquet").rpartition("-")[2]), rows

    waiting: deque[Future[tuple[int, pa.Table]]] = deque()
    with ThreadPoolExecutor(_PARTS_AHEAD) as pool:
        try:
            for path in paths:
                waiting.append(pool.submit(read, path))
                if len(waiting) > _PARTS_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


class Truth:
    """The labels of a data set's Test split, by prediction id: "<shard uri>!<path>"."""

    def __init__(self, dataset_uri: str, manifest: Manifest) -> None:
        self.classes = manifest.classes
        shards = manifest.splits["test"].shards if "test" in manifest.splits else ()
        self._paths = {storage.join(dataset_uri, shard.path): shard.path for shard in shards}
        self._names = strings(manifest.classes)
        # lru_cache on a method would keep the object alive; two shards are held at a time.
        self._shard = lru_cache(maxsize=2)(lambda path: _labels(dataset_uri, path))

    def of(self, ids: pa.ChunkedArray) -> pa.Array:
        """The class name of each id, null for what is no row of the Test split. ids: those of one part."""
        ids = ids.combine_chunks()
        first = ids[0].as_py() if len(ids) else ""
        shard_uri = next((uri for uri in _prefixes(first) if uri in self._paths), None)
        if shard_uri is None:
            return pa.nulls(len(ids), pa.string())
        paths, labels = self._shard(self._paths[shard_uri])
        is_of_shard = pc.starts_with(ids, f"{shard_uri}!")
        names = pc.utf8_slice_codeunits(ids, len(shard_uri) + 1)
        found = pc.index_in(pc.if_else(is_of_shard, names, None), value_set=paths, skip_nulls=True)
        return self._names.take(labels.take(found))


def _prefixes(row_id: str) -> Iterator[str]:
    end = row_id.find("!")
    while end >= 0:
        yield row_id[:end]
        end = row_id.find("!", end + 1)


def _labels(dataset_uri: str, path: str) -> tuple[pa.Array, pa.Array]:
    table = pa.Table.from_batches(read_rows(dataset_uri, path, ("image.path", "label"))).combine_chunks()
    paths = table["image"].combine_chunks().field("path")
    return paths, table["label"].combine_chunks()


def thumbnails(predictions: str, plan: Plan, examples: Iterable[Example]) -> dict[Example, str]:
    """Example -> its picture as a data URI, at most THUMBNAIL_PX on its longer side; those that are gone left out."""
    read = lru_cache(maxsize=_PARTS_AHEAD)(PlanReader(predictions, plan).read)
    max_pixels = int(plan.settings.get("max_pixels", images.DEFAULT_MAX_PIXELS))
    sized = [example for example in dict.fromkeys(examples) if example.width_px and example.height_px]
    wanted = sorted(sized, key=lambda example: example.part)  # a part of the plan is read once

    def one(example: Example) -> str | None:
        try:
            data = next(fetch.fetch([read(example.part)[example.row]])).data
        except (storage.NotFoundError, storage.PermissionDeniedError):
            return None
        if data is None or hashlib.sha256(data).hexdigest() != example.sha256:
            return None
        assert example.width_px
        assert example.height_px
        scale = min(1.0, THUMBNAIL_PX / max(example.width_px, example.height_px))
        size_px = max(1, round(example.height_px * scale)), max(1, round(example.width_px * scale))
        return data_uri(images.decode(data, size_px, max_pixels).pixels)

    with ThreadPoolExecutor(_NUM_READERS) as pool:
        found = zip(wanted, pool.map(one, wanted), strict=True)
        return {example: uri for example, uri in found if uri}


def data_uri(pixels: npt.NDArray[np.uint8]) -> str:
    """Pixels (H, W, 3) uint8 as a data URI: PNG if small, else JPEG. Encoded anew, so no metadata travels along."""
    kind = "PNG" if max(pixels.shape[:2]) <= _SMALL_PX else "JPEG"
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=85, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
