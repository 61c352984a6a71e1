"""A training run -> a frozen model that proves itself. Between train and frozen; `jobs.freeze` is its front.

The best checkpoint goes into plain Keras layers, from there into every format, and each format must then answer test
images as Keras does before model.json, the last file, is written.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fruitcnn import bundle, checkpoints, duplicates, frozen, installed, runtimes, storage
from fruitcnn import licence as licences
from fruitcnn.bundle import Description
from fruitcnn.errors import UsageError
from fruitcnn.familiar import Answers, Limits
from fruitcnn.freeze_config import FILES, Format, FreezeConfig
from fruitcnn.manifest import Manifest, load_manifest

if TYPE_CHECKING:
    from fruitcnn.agreement import Sample
    from fruitcnn.answering import Calibrated
    from fruitcnn.class_scores import Confusion

Progress = Callable[..., AbstractContextManager[Callable[..., None]]]
"""progress(title, total, unit) -> context manager yielding update(done, note=""): jobs.cli.progress is one."""

_CARD, _PICTURES = "MODEL_CARD.md", "card"
# fmt: off
_PACKAGES = (
    "fruitcnn", "keras", "numpy", "onnx", "onnxruntime", "opencv-python-headless", "openvino", "pillow", "simplejpeg",
    "tensorflow", "tensorflow-cpu", "tf2onnx",
)
# fmt: on


class Run(NamedTuple):
    """A finished training run, as its files tell."""

    uri: str
    said: dict[str, Any]
    """config.json."""
    result: dict[str, Any]
    """result.json."""
    weights_sha256: str

    def identity(self, answer_share: float) -> str:
        """Hash over what decides the model's answers."""
        config = self.said["config"]
        facts = [self.weights_sha256, self.said["classes"], config["architecture"], config["input_px"], answer_share]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


class Dataset(NamedTuple):
    """The data set to compare on."""

    uri: str
    manifest: Manifest


def freeze(config: FreezeConfig, progress: Progress) -> Description:
    """Freeze the best checkpoint of config.run to config.model; returns what model.json says.

    The same again changes nothing. UsageError: the run is not finished, the destination holds something else, or the
    data set does not fit. FrozenModelError: a format answers unlike Keras, or the model at the destination is damaged.
    """
    assert config.run, "validated"
    assert config.model, "validated"
    with storage.argument("--run"):
        run = read_run(config.run)
    with storage.argument("--model"):
        model_uri = storage.normalise(config.model)
        found = _finished(model_uri, run.identity(config.answer_share), config.written)
        if not found:
            storage.require_writable(storage.join(model_uri, _CARD))
    if found:
        return found
    dataset = _dataset(run, config.dataset)
    with tempfile.TemporaryDirectory(prefix="fruitcnn-freeze-") as folder, progress("freeze", 3, "steps") as update:
        description = _build(run, dataset, config, Path(folder), update)
        storage.upload_directory(folder, model_uri)
        if not storage.put_if_absent(storage.join(model_uri, bundle.DESCRIPTION), description.to_bytes()):
            _finished(
                model_uri, description.identity, config.written
            )  # another freeze was faster: fine if it froze the same
        update(3)
    return frozen.verify(model_uri)


def _build(run: Run, dataset: Dataset, config: FreezeConfig, folder: Path, update: Callable[..., None]) -> Description:
    """Write all files but model.json into a local folder; returns what model.json shall say."""
    from fruitcnn import agreement, class_scores, model_card

    size = (run.said["config"]["input_px"],) * 2
    sample = agreement.take_sample(dataset.uri, dataset.manifest, config.num_compared, size)
    update(0, "TensorFlow starts and writes the formats")
    calibrated, expected = _export(run, dataset, config, folder, sample.pixels)
    agreement.write_golden(folder, sample, expected, config.num_golden)
    update(1, "formats are compared")
    licence = config.data_licence or licences.of_source(dataset.manifest.source)
    draft = _describe(run, dataset, sample.split, folder, calibrated.limits, licence)
    if sample.split == "test":
        draft = draft.model_copy(update={"near_duplicates": duplicates.count(sample.pixels, calibrated.pixels)})
    draft = draft.model_copy(update={"agreement": tuple(agreement.compare(folder, draft, sample, expected))})
    agreement.require(draft.agreement)
    update(2, "the card is written, files are copied")
    found = class_scores.confusion(sample.labels, expected.probabilities)
    _draw(folder, draft, run, sample, found)
    (folder / _CARD).write_text(model_card.render(draft, found))
    return draft.model_copy(update={"files": bundle.stored_files(folder)})


def _draw(folder: Path, draft: Description, run: Run, sample: Sample, found: Confusion) -> None:
    """Draw the pictures that the card shows."""
    from fruitcnn import card_pictures, evidence

    place = folder / _PICTURES
    place.mkdir()
    card_pictures.classes(place / "classes.png", draft.labels, sample.labels, sample.encoded)
    card_pictures.curves(place / "curves.png", evidence.read_run(run.uri).metrics)
    card_pictures.accuracy(place / "accuracy.png", found.accuracies)
    card_pictures.confusion(place / "confusion.png", draft.labels, found.shares)


def read_run(run_uri: str) -> Run:
    """Read what a finished training run left; UsageError if it is not finished."""
    uri = storage.normalise(run_uri)
    try:
        said = storage.read_json(storage.join(uri, "config.json"))
        result = storage.read_json(storage.join(uri, "result.json"))
        checkpoint = checkpoints.facts(uri, result["best_checkpoint"])
    except storage.NotFoundError as error:
        raise UsageError(
            f'no {error.uri}: there is no finished training run; run "python -m jobs.train --dataset DATASET --run '
            f'{run_uri}" first'
        ) from error
    return Run(uri, said, result, checkpoint["sha256"]["weights.npz"])


def _finished(model_uri: str, identity: str, formats: Sequence[Format]) -> Description | None:
    """Return the description if this model is at the destination already; UsageError if something else is."""
    if not storage.exists(storage.join(model_uri, bundle.DESCRIPTION)):
        _require_ours(model_uri)
        return None
    found, _ = bundle.read_description(model_uri)
    if found.identity != identity:
        raise UsageError(
            f"--model {model_uri}: holds another model (frozen from {found.training['run']}, checkpoint "
            f"{found.training['checkpoint']}, --answer-share {found.limits.answer_share:g}); name another folder"
        )
    wanted = {FILES[name] for name in formats}
    if missing := sorted(wanted - {name.split("/")[0] for name in found.files}):
        raise UsageError(
            f"--model {model_uri}: holds this model without {', '.join(missing)}; name another folder, or leave those "
            "out of --formats"
        )
    return frozen.verify(model_uri)


def _require_ours(model_uri: str) -> None:
    """Accept an empty place, or what a freeze that was stopped left there."""
    formats = (runtimes.FORMATS | runtimes.QUANTISED).values()
    ours = {runtime.file for runtime in formats} | {bundle.GOLDEN, bundle.STATISTICS, _CARD, _PICTURES}
    for entry in storage.list_files(model_uri):
        name = entry.uri.removeprefix(model_uri).strip("/")
        if name.split("/")[0] not in ours:
            raise UsageError(f"--model {model_uri}: not empty, and no frozen model ({name}); name an empty folder")


def _dataset(run: Run, override: str | None) -> Dataset:
    uri = storage.normalise(override or run.said["config"]["dataset"])
    manifest = load_manifest(uri, None if override else run.said["dataset_version"])
    if list(manifest.classes) != run.said["classes"]:
        raise UsageError(f"--dataset {uri}: its classes are not those of the run {run.uri}; name the run's data set")
    return Dataset(uri, manifest)


def _export(
    run: Run, dataset: Dataset, config: FreezeConfig, folder: Path, pixels: npt.NDArray[np.uint8]
) -> tuple[Calibrated, Answers]:
    """Write all formats; returns the calibrated model, and its answers to `pixels`, uint8 (N, H, W, 3), in Keras."""
    runtimes.import_tensorflow()
    from fruitcnn import answering, export

    weights = checkpoints.load(run.uri, run.result["best_checkpoint"]).weights
    num_classes = len(run.said["classes"])
    model = export.plain_model(run.said["config"]["architecture"], pixels.shape[1:3], num_classes, weights)
    calibrated = answering.calibrate(model, dataset.uri, dataset.manifest, run.said["config"], config.answer_share)
    np.savez(folder / bundle.STATISTICS, **calibrated.statistics._asdict())
    export.write_formats(calibrated.model, folder, config.written, calibrated.pixels)
    return calibrated, frozen.in_batches(runtimes.keras_predict(calibrated.model), pixels, num_classes)


def _describe(run: Run, dataset: Dataset, split: str, folder: Path, limits: Limits, licence: str | None) -> Description:
    config, result = run.said["config"], run.result
    training = {"run": run.uri, "checkpoint": result["best_checkpoint"], "config": config}
    training |= {name: result.get(name) for name in ("num_steps", "images_seen", "num_workers")}
    return Description(
        identity=run.identity(limits.answer_share),
        architecture=config["architecture"],
        labels=tuple(run.said["classes"]),
        input_px=(config["input_px"], config["input_px"]),
        preprocessing=_preprocessing(),
        tensors={name: each for name, each in runtimes.TENSORS.items() if (folder / name).exists()},
        limits=limits,
        metrics={name: result[name] for name in ("validation", "test", "leak_aware") if result.get(name)},
        dataset=_papers(dataset, licence),
        training=training,
        versions=installed.versions(_PACKAGES),
        agreement=(),
        compared_split=split,
        created_at=datetime.datetime.now(datetime.UTC).replace(microsecond=0),
        files=bundle.stored_files(folder),
    )


def _papers(dataset: Dataset, licence: str | None) -> dict[str, Any]:
    manifest = dataset.manifest
    rows = {name: split.num_rows for name, split in manifest.splits.items()}
    which = {"uri": dataset.uri, "version": manifest.version, "manifest_sha256": manifest.sha256}
    return which | {"source": manifest.source, "num_rows": rows, "licence": licence}


def _preprocessing() -> dict[str, str]:
    """Say how bytes become pixels: in the words of images.py, with the hash of its source as its version."""
    from fruitcnn import images

    source = hashlib.sha256(Path(images.__file__).read_bytes()).hexdigest()
    return {"code": "fruitcnn.images.decode", "sha256": source, "statement": (images.__doc__ or "").strip()}
