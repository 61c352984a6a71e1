"""A finished training run in a folder, without training: a data set drawn by hand, and weights drawn at random.

`bundle(tmp_path_factory.getbasetemp())` freezes it once for all tests of the session.
"""

import datetime
import functools
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock

from fruitcnn import checkpoints, storage, synthetic
from fruitcnn.bundle import DESCRIPTION
from fruitcnn.freeze_config import USUAL, FreezeConfig
from fruitcnn.freezing import freeze
from fruitcnn.images import DEFAULT_MAX_PIXELS
from fruitcnn.manifest import Manifest, Split, StoredFile, publish
from fruitcnn.parquet import Row, encode
from fruitcnn.recipe import TrainConfig

CLASSES = tuple(synthetic.class_names(6))
NUM_FRAMES = 8
INPUT_PX = 24


class Frozen(NamedTuple):
    """What was frozen: where the run, its data set and the model lie. Tests copy the model before they damage it."""

    run: str
    dataset: str
    model: Path


@contextmanager
def no_progress(title: str, total: int | None, unit: str, already: int = 0) -> Iterator[Callable[..., None]]:
    yield lambda done, note="": None


@functools.cache
def bundle(base: Path) -> Frozen:
    # The processes of pytest -n share it: each has a folder of its own below that of the session.
    folder = (base.parent if base.name.startswith("popen-") else base) / "frozen"
    frozen = Frozen(str(folder / "run"), str(folder / "dataset"), folder / "model")
    with FileLock(f"{folder}.lock"):
        if not (frozen.model / DESCRIPTION).exists():
            write_run(folder / "run", write_dataset(folder / "dataset"))
            asked = FreezeConfig(run=frozen.run, model=str(frozen.model), num_golden=16, formats=(*USUAL, "int8"))
            freeze(asked, no_progress)
    return frozen


def write_dataset(folder: Path) -> str:
    splits = {}
    for split, offset in (("train", 0), ("test", NUM_FRAMES)):
        rows = [_row(label, offset + frame) for label in range(len(CLASSES)) for frame in range(NUM_FRAMES)]
        data, path = encode(rows, CLASSES), f"shards/{split}-00000.parquet"
        storage.write(storage.join(str(folder), path), data)
        stored = StoredFile(path=path, num_rows=len(rows), num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        splits[split] = Split(shards=(stored,))
    manifest = Manifest(
        version=1, classes=CLASSES, splits=splits, num_rejected_by_cause={}, source="drawn", source_fingerprint="0",
        listings=(), config={"max_pixels": DEFAULT_MAX_PIXELS}, library_version="0",
        created_at=datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC),
    )  # fmt: skip
    publish(str(folder), manifest)
    return str(folder)


def write_run(folder: Path, dataset: str, *, architecture: str = "base_cnn", seed: int = 0) -> str:
    run = str(folder)
    config = TrainConfig(dataset=dataset, run=run, architecture=architecture, input_px=INPUT_PX)
    manifest_sha256 = hashlib.sha256((Path(dataset) / "manifest.json").read_bytes()).hexdigest()
    said = {"config": config.model_dump(mode="json"), "classes": list(CLASSES), "dataset_version": 1}
    storage.write_json(storage.join(run, "config.json"), said | {"manifest_sha256": manifest_sha256})
    best = checkpoints.save(run, checkpoints.State(7, random_weights(architecture, seed), []), {})
    score = {"loss": 1.5, "accuracy": 0.5, "num_rows": 48}
    result = {"best_checkpoint": best, "num_steps": 7, "images_seen": 448, "num_workers": 1}
    storage.write_json(storage.join(run, "result.json"), result | {"validation": score, "test": score})
    return run


def random_weights(architecture: str, seed: int) -> list[np.ndarray]:
    """Weights of the training twin, its moving statistics away from 0 and 1, its answers neither sure nor equal."""
    from fruitcnn.models import build_model

    random = np.random.default_rng(seed)
    model = build_model(architecture, (INPUT_PX, INPUT_PX), len(CLASSES), seed=seed, ghost_rows=32)
    weights = []
    for variable in model.variables:
        values = np.array(variable.value)
        if variable.name in ("gamma", "moving_variance"):
            values = random.uniform(0.5, 1.5, values.shape)
        elif variable.name in ("beta", "moving_mean", "bias"):
            values = random.uniform(-0.3, 0.3, values.shape)
        weights.append(values.astype(np.float32))
    kernel = weights[-2]
    weights[-2] = (kernel * 4).astype(np.float32)
    return weights


def _row(label: int, frame: int) -> Row:
    data = synthetic.frame_jpeg(CLASSES[label], "", frame, 2 * NUM_FRAMES, 0)
    return Row(data, f"{CLASSES[label]}/{frame}_100.jpg", label, hashlib.sha256(data).hexdigest(), CLASSES[label])
