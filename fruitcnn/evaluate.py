"""A frozen model and labelled pictures -> what the model is worth on them. Beside classify; report in evaluation.py.

    <evaluation>/answers.parquet   one row a picture: id, truth, label, confidence, score, status, cause, right
    <evaluation>/evaluation.json   all figures, written last
    <evaluation>/report.html       the same with its pictures

Pictures are read, decoded and answered exactly as classify does it, in this process.
"""

from __future__ import annotations

import io
import itertools
import os
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fruitcnn import figures, storage
from fruitcnn.errors import UsageError
from fruitcnn.evaluate_config import EvaluateConfig
from fruitcnn.figures import Judged
from fruitcnn.inputs import Input
from fruitcnn.wording import plural

Progress = Callable[..., AbstractContextManager[Callable[..., None]]]

_ROWS_AT_A_TIME = 1024
_FILES = {"answers.parquet", "evaluation.json", "report.html"}


class Evaluated(NamedTuple):
    """The pictures whose truth is known, in order, and their answers."""

    inputs: list[Input]
    truth: list[str]
    table: pa.Table
    """Columns id, truth, label, confidence, score, status, cause, right: one row for each of inputs."""
    judged: Judged


def evaluate(config: EvaluateConfig, progress: Progress) -> dict[str, Any]:
    """Evaluate and write everything; returns evaluation.json. UsageError: no such model or pictures, or no truth."""
    from fruitcnn import bundle, frozen, truth
    from fruitcnn.inputs import Listing

    with storage.argument("--evaluation"):
        uri = storage.normalise(config.evaluation)
        _require_ours_or_empty(uri, config)
        storage.require_writable(storage.join(uri, "report.html"))
    with bundle.argument("--model", config.model):
        model = frozen.load(config.model, config.runtime)
    listing = Listing(config.images, config.split)
    inputs, names, unused = truth.find(listing, list(listing), config.labels, model.labels)
    known = [row for row, name in enumerate(names) if name is not None]
    if not known:
        raise UsageError(
            f"--images {config.images}: got {plural(len(inputs), 'file')} without a label, wanted a data set, folders "
            f"named after classes of the model ({', '.join(model.labels[:3])}, ...), or a {truth.LABELS_FILE}"
        )
    named = [inputs[row] for row in known], [names[row] or "" for row in known]
    unnamed = Counter(_folder(item) for item, name in zip(inputs, names, strict=True) if name is None)
    evaluated, num_rejected = _answer(model, *named, config, progress)
    said = describe(evaluated) | {
        "num_rejected": num_rejected,
        "num_without_truth": len(inputs) - len(known),
        "without_truth_by_folder": dict(unnamed.most_common()),
        "labels_without_picture": unused,
        "model_hash": model.model_hash,
        "limits": model.limits.model_dump(),
        "config": config.model_dump(),
    }
    _write(uri, evaluated, said, config.max_pixels)
    return said


def _folder(item: Input) -> str:
    return PurePosixPath(item.name).parent.name or storage.name(item.container)


def _write(uri: str, evaluated: Evaluated, said: dict[str, Any], max_pixels: int) -> None:
    from fruitcnn import evaluation

    sink = io.BytesIO()
    pq.write_table(evaluated.table, sink, compression="zstd")
    storage.write(storage.join(uri, "answers.parquet"), sink.getvalue())
    storage.write(storage.join(uri, "report.html"), evaluation.render(evaluated, said, max_pixels).encode())
    storage.write_json(storage.join(uri, "evaluation.json"), said)


def _require_ours_or_empty(uri: str, config: EvaluateConfig) -> None:
    """UsageError for a folder that holds anything but an evaluation, or the evaluation of something else."""
    names = {entry.uri.removeprefix(uri).strip("/") for entry in itertools.islice(storage.list_files(uri), 10)}
    if strange := sorted(names - _FILES):
        raise UsageError(f"--evaluation {uri}: got a folder that holds {strange[0]}, wanted a new or an empty one")
    if "evaluation.json" not in names:
        return
    earlier = storage.read_json(storage.join(uri, "evaluation.json"))["config"]
    for name in ("model", "images", "labels", "split"):
        there, here = (value and storage.normalise(value) for value in (earlier.get(name), getattr(config, name)))
        if there != here:
            raise UsageError(
                f"--evaluation {uri}: holds the evaluation with --{name} {earlier.get(name)}, and this one has "
                f"{getattr(config, name)}; name another folder"
            )


def describe(evaluated: Evaluated) -> dict[str, Any]:
    """Return all figures, as JSON values."""
    judged = evaluated.judged
    labels = evaluated.table["label"].to_pylist()
    return {
        "summary": figures.summarise(judged),
        "strangers": dict(Counter(np.array(evaluated.truth, object)[judged.stranger].tolist()).most_common()),
        "calibration": [each._asdict() for each in figures.calibration(judged)],
        "risk_coverage": {
            "confidence": figures.risk_coverage(judged, judged.confidence),
            "score": figures.risk_coverage(judged, -judged.unlike),
        },
        "per_class": figures.per_class(evaluated.truth, judged),
        "confusion": figures.confusion(evaluated.truth, labels, judged),
    }


def _answer(
    model: Any, inputs: list[Input], truth: list[str], config: EvaluateConfig, progress: Progress
) -> tuple[Evaluated, int]:
    """Answer every input; returns those that are pictures, and the number of those that are not."""
    from fruitcnn.infer import Workers
    from fruitcnn.orders import Options
    from fruitcnn.parts import unsure_causes

    options = Options(
        batch_size=256,
        top_k=1,
        probabilities=False,
        min_confidence=0,
        max_pixels=config.max_pixels,
        num_threads=os.cpu_count() or 1,
    )
    workers = Workers([model], options)
    columns: dict[str, list[Any]] = {name: [] for name in ("id", "label", "confidence", "score", "cause", "rejected")}
    with progress("evaluate", len(inputs), "images") as update:
        for start in range(0, len(inputs), _ROWS_AT_A_TIME):
            rows = workers.rows(inputs[start : start + _ROWS_AT_A_TIME])
            columns["id"] += rows.ids
            columns["label"] += [model.labels[index] for index in rows.top_indices[:, 0]]
            columns["confidence"] += rows.top_scores[:, 0].tolist()
            columns["score"] += rows.unlike.tolist()
            columns["cause"] += unsure_causes(rows.top_scores, rows.margins, rows.unlike, 0, model.limits).tolist()
            columns["rejected"] += [cause is not None for cause in rows.causes]
            update(len(columns["id"]))
    rejected = columns.pop("rejected")
    kept = [row for row, is_rejected in enumerate(rejected) if not is_rejected]
    if not kept:
        raise UsageError(f"--images {config.images}: none of {len(inputs):,} labelled files is a picture")
    kept_truth = [truth[row] for row in kept]
    columns = {name: [values[row] for row in kept] for name, values in columns.items()}
    return _judge([inputs[row] for row in kept], kept_truth, columns, model.labels), sum(rejected)


def _judge(inputs: list[Input], truth: list[str], columns: dict[str, list[Any]], labels: list[str]) -> Evaluated:
    allowed = {name: {labels[index] for index in figures.matching(name, labels)} for name in {*truth}}
    right = [label in allowed[name] for name, label in zip(truth, columns["label"], strict=True)]
    answered = [cause is None for cause in columns["cause"]]
    judged = Judged(
        confidence=np.array(columns["confidence"]),
        unlike=np.array(columns["score"]),
        right=np.array(right),
        stranger=np.array([not allowed[name] for name in truth]),
        answered=np.array(answered),
    )
    table = pa.table(
        {
            "id": columns["id"],
            "truth": truth,
            "label": columns["label"],
            "confidence": pa.array(columns["confidence"], pa.float32()),
            "score": pa.array(columns["score"], pa.float32()),
            "status": ["ok" if stands else "unsure" for stands in answered],
            "cause": pa.array(columns["cause"], pa.string()),
            "right": right,
        }
    )
    return Evaluated(inputs, truth, table, judged)
