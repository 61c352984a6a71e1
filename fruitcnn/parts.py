"""Rows <-> a part of the predictions. Between infer and classify.

    <predictions>/parts/part-00000.parquet   one row per input, in plan order; put-if-absent: one writer wins, ever

A part holds nothing that differs between two runs of the same plan (no times, no attempt numbers), so whoever writes it
writes the same bytes. `unsure` is decided here, in `unsure_causes`.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fruitcnn import familiar
from fruitcnn.books import PartBooks, part_path
from fruitcnn.familiar import NO_LIMITS, Limits

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

LOW_CONFIDENCE = "low-confidence"
METADATA_KEY = b"fruitcnn"
_REPEATING = ["label", "top_labels.list.element", "status", "cause", "detail", "width", "height"]
"""Columns that Parquet writes as a dictionary: one of ids and hashes takes time, and a fifth more room."""


class PartError(ValueError):
    """A file under parts/ is not the part that the plan asks for; says which and what to do."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What became of the inputs of one part: lists of one entry per input, in plan order.

    cause None: the picture was classified. top_indices (N, k) int64 labels by falling score, top_scores (N, k) float32,
    margins and unlike (N,) float32, as familiar.py defines them; rows of rejected inputs hold anything. probabilities
    (N, classes) float32 if they are to be written, else None.
    """

    ids: list[str]
    sha256: list[str | None]
    widths: list[int | None]
    heights: list[int | None]
    causes: list[str | None]
    details: list[str | None]
    top_indices: Indices
    top_scores: Floats
    margins: Floats
    unlike: Floats
    probabilities: Floats | None


def top(probabilities: Floats, k: int) -> tuple[Indices, Floats]:
    """Indices (N, k) and scores (N, k) of the k greatest of each row, falling; of equals the lower index first."""
    k = min(k, probabilities.shape[1])
    chosen = np.sort(np.argpartition(probabilities, -k, axis=1)[:, -k:], axis=1)
    scores = np.take_along_axis(probabilities, chosen, axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1).astype(np.int64), np.take_along_axis(scores, order, axis=1)


def unsure_causes(
    top_scores: Floats, margins: Floats, unlike: Floats, min_confidence: float, limits: Limits
) -> npt.NDArray[np.object_]:
    """(N,) object: why a prediction does not stand, None where it does: what the model's limits say comes first.

    Arguments as in Rows.
    """
    found = familiar.causes(unlike, margins, limits)
    weak = top_scores[:, 0] < np.float32(min_confidence)
    return np.where(weak & (found == None), LOW_CONFIDENCE, found)  # noqa: E711 - element by element


def encode(
    rows: Rows, labels: Sequence[str], min_confidence: float, metadata: Mapping[str, Any], limits: Limits = NO_LIMITS
) -> bytes:
    """The Parquet file of these rows; the same arguments give the same bytes. metadata goes into the file's own."""
    return to_bytes(to_table(rows, labels, min_confidence, metadata, limits))


def to_bytes(table: pa.Table) -> bytes:
    """The Parquet file of a part's table."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", use_dictionary=_REPEATING)
    return sink.getvalue()


def rejected_rows(table: pa.Table, causes: Sequence[str] | None) -> list[int]:
    """Numbers of the rows of a part that were rejected, for one of these causes (None: whatever the cause)."""
    wanted = pc.equal(table["status"], "rejected")
    if causes is not None:
        wanted = pc.and_(wanted, pc.is_in(table["cause"], pa.array(causes, pa.string())))
    return pc.indices_nonzero(wanted).to_pylist()


def replace_rows(table: pa.Table, numbers: Sequence[int], rows: pa.Table) -> pa.Table:
    """The part with `rows` in place of the rows at `numbers`; all others as they were."""
    places = np.arange(len(table))
    places[list(numbers)] = len(table) + np.arange(len(numbers))
    return pa.concat_tables([table, rows]).take(pa.array(places)).combine_chunks()


def to_table(
    rows: Rows, labels: Sequence[str], min_confidence: float, metadata: Mapping[str, Any], limits: Limits = NO_LIMITS
) -> pa.Table:
    """The table of these rows, with metadata in its schema."""
    rejected = np.array([cause is not None for cause in rows.causes], bool)
    unsure = unsure_causes(rows.top_scores, rows.margins, rows.unlike, min_confidence, limits)
    causes = np.where(rejected, np.array(rows.causes, object), unsure)
    status = np.where(rejected, "rejected", np.where(causes == None, "ok", "unsure"))  # noqa: E711
    mask = pa.array(rejected)
    names = pa.array(labels, pa.string())
    count, k = rows.top_indices.shape
    offsets = pa.array(np.arange(0, count * k + 1, k, dtype=np.int32))
    columns: dict[str, pa.Array] = {
        "id": pa.array([_utf8(text) for text in rows.ids], pa.string()),
        "sha256": pa.array(rows.sha256, pa.string()),
        "width": pa.array(rows.widths, pa.int32()),
        "height": pa.array(rows.heights, pa.int32()),
        "label": names.take(pa.array(rows.top_indices[:, 0], mask=rejected)),
        "confidence": pa.array(rows.top_scores[:, 0], pa.float32(), mask=rejected),
        "top_labels": pa.ListArray.from_arrays(offsets, names.take(pa.array(rows.top_indices.ravel())), mask=mask),
        "top_scores": pa.ListArray.from_arrays(offsets, pa.array(rows.top_scores.ravel()), mask=mask),
        "score": pa.array(rows.unlike, pa.float32(), mask=rejected),
        "status": pa.array(status, pa.string()),
        "cause": pa.array(causes, pa.string()),
        "detail": pa.array([text and _utf8(text) for text in rows.details], pa.string()),
    }
    if rows.probabilities is not None:
        values = pa.array(rows.probabilities.ravel())
        columns["probabilities"] = pa.FixedSizeListArray.from_arrays(values, rows.probabilities.shape[1], mask=mask)
    return pa.table(columns).replace_schema_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True)})


def read_books(part: int, data: bytes, run_id: str, num_rows: int) -> PartBooks:
    """Count the rows of a written part; PartError if it is not part number `part` of this run with num_rows rows."""
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        metadata = json.loads(file.schema_arrow.metadata[METADATA_KEY])
        table = file.read(["status", "cause", "label"])
    except (pa.ArrowException, KeyError, TypeError, ValueError, OSError) as error:
        raise PartError(f"{part_path(part)} is no part of ours: delete it and run the same command again") from error
    found = metadata.get("run_id"), metadata.get("part"), table.num_rows
    if found != (run_id, part, num_rows):
        raise PartError(
            f"{part_path(part)}: got (run, part, rows) {found}, wanted {(run_id, part, num_rows)}: delete the file and "
            f"run the same command again"
        )
    statuses = _count(table["status"])
    return PartBooks(
        part=part,
        num_rows=table.num_rows,
        num_ok=statuses.get("ok", 0),
        num_unsure=statuses.get("unsure", 0),
        unsure_by_cause=_count(table["cause"].filter(pc.equal(table["status"], "unsure"))),
        rejected_by_cause=_count(table["cause"].filter(pc.equal(table["status"], "rejected"))),
        ok_by_label=_count(table["label"].filter(pc.equal(table["status"], "ok"))),
        num_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _count(column: pa.ChunkedArray) -> dict[str, int]:
    pairs = ((entry["values"], entry["counts"]) for entry in pc.value_counts(column).to_pylist())
    return dict(sorted(pairs))


def _utf8(text: str) -> str:
    """Names that are not UTF-8 keep their odd bytes as \\udc.. escapes: Parquet strings must be UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
