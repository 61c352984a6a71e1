"""A frozen model, opened: hashes first, then golden answers, then predictions. Between freezing and classify.

    model = frozen.load("work/model")            # OpenVINO on a CPU, TensorFlow on a GPU
    model.predict(pixels)                        # uint8 (N, H, W, 3) -> float32 (N, classes)

Every process that loads a model replays its golden images, and does not get the model if its own answers differ.
Importing this module imports no inference library.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fruitcnn import runtimes
from fruitcnn.bundle import GOLDEN, Description, FrozenModelError, check_files, fetch, read_description
from fruitcnn.errors import UsageError

MAX_DIFFERENCE = 1e-4
"""Largest difference of a probability, to Keras at freezing and to the golden answers ever after."""

_ROWS_PER_CALL = 256  # bounds the memory of a call, whatever the caller hands over


class Golden(NamedTuple):
    """A few images, uint8 (N, H, W, 3), and the probabilities that Keras gave for them, float32 (N, classes)."""

    images: npt.NDArray[np.uint8]
    probabilities: npt.NDArray[np.float32]


class Proof(NamedTuple):
    """What the golden images showed of one format: the largest difference, or why it could not be opened."""

    format: str
    file: str
    max_difference: float
    problem: str | None


@dataclass(frozen=True)
class FrozenModel:
    """A model that gave its golden answers in this process."""

    labels: list[str]
    input_px: tuple[int, int]
    """(height, width) of the pictures it takes."""
    model_hash: str
    """sha256 over the bytes of model.json."""
    runtime: str
    description: Description
    _predict: runtimes.Predict

    def predict(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Map uint8 (N, H, W, 3), any N, to float32 (N, classes) probabilities; from several threads.

        ValueError for another dtype or shape.
        """
        wanted = (*self.input_px, 3)
        if pixels.dtype != np.uint8 or pixels.shape[1:] != wanted or pixels.ndim != 4:
            raise ValueError(
                f"pixels: got {pixels.dtype} {pixels.shape}, wanted uint8 (N, {', '.join(map(str, wanted))})"
            )
        return in_batches(self._predict, pixels, len(self.labels))


def load(
    model_uri: str, runtime: str = "auto", num_threads: int | None = None, cache_dir: str | None = None
) -> FrozenModel:
    """Open a frozen model, local or on S3, in one of runtimes.RUNTIMES.

    auto: TensorFlow where there is a GPU, else OpenVINO, ONNX Runtime or TensorFlow: the first that is installed and
    gives the golden answers. num_threads: default OMP_NUM_THREADS, else all cores. cache_dir: where a bundle on S3 is
    copied to, default the user's cache. FrozenModelError names the file or the runtime that is not right.
    """
    description, model_hash = read_description(model_uri)
    problems = []
    for name in _candidates(runtime):
        folder = fetch(model_uri, description, model_hash, _files(name, description), cache_dir)
        try:
            predict = _open(name, folder, description, num_threads)
        except FrozenModelError as error:
            if runtime != "auto":
                raise
            problems.append(str(error))
        else:
            return FrozenModel(list(description.labels), description.input_px, model_hash, name, description, predict)
    raise FrozenModelError("\n".join(problems))


def identify(model_uri: str, runtime: str = "auto", cache_dir: str | None = None) -> tuple[str, str]:
    """Return the model hash and the name of the runtime that load would use here; its files' hashes are checked.

    FrozenModelError as load; only auto opens the model.
    """
    if runtime == "auto":
        model = load(model_uri, cache_dir=cache_dir)
        return model.model_hash, model.runtime
    (name,) = _candidates(runtime)
    description, model_hash = read_description(model_uri)
    fetch(model_uri, description, model_hash, _files(name, description), cache_dir)
    return model_hash, name


def verify(model_uri: str) -> Description:
    """Check the hash of every file of a bundle, where it lies; FrozenModelError names the first that is not right."""
    description, _ = read_description(model_uri)
    check_files(model_uri, description, description.files)
    return description


def check(model_uri: str, cache_dir: str | None = None) -> Iterator[Proof]:
    """Prove a bundle: all hashes (FrozenModelError as verify), then every format's golden answers, a Proof each."""
    description, model_hash = read_description(model_uri)
    check_files(model_uri, description, description.files)
    folder = fetch(model_uri, description, model_hash, description.files, cache_dir)
    golden = read_golden(folder, description)
    for name, runtime in runtimes.FORMATS.items():
        try:
            difference = replay(opened(name, folder, description), golden)
        except FrozenModelError as error:
            yield Proof(name, runtime.file, float("nan"), str(error))
        else:
            problem = None if difference <= MAX_DIFFERENCE else "its answers differ"
            yield Proof(name, runtime.file, difference, problem)


def read_golden(folder: Path, description: Description) -> Golden:
    """Read the golden images from a local bundle; FrozenModelError if they do not fit the labels and the input."""
    path = folder / GOLDEN
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            golden = Golden(archive["images"], archive["probabilities"])
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise FrozenModelError(f"{path}: no golden answers in it ({error})") from error
    wanted = (len(golden.images), len(description.labels))
    if golden.probabilities.shape != wanted or golden.images.shape[1:] != (*description.input_px, 3) or not wanted[0]:
        raise FrozenModelError(
            f"{path}: answers {golden.probabilities.shape} to images {golden.images.shape} do not fit the "
            f"{wanted[1]} labels and input {description.input_px} of model.json"
        )
    return golden


def replay(predict: runtimes.Predict, golden: Golden) -> float:
    """Return the largest difference between a predictor's probabilities and the golden ones; infinite for no number."""
    answers = in_batches(predict, golden.images, golden.probabilities.shape[1])
    if answers.shape != golden.probabilities.shape:
        return float("inf")
    difference = float(np.abs(answers - golden.probabilities).max())
    return difference if np.isfinite(difference) else float("inf")


def _candidates(runtime: str) -> tuple[str, ...]:
    if runtime == "auto":
        on_cpu = ("openvino", "onnxruntime", "tensorflow")
        return ("tensorflow", *on_cpu[:2]) if runtimes.has_gpu() else on_cpu
    if runtime not in runtimes.RUNTIMES:
        raise UsageError(f"runtime: got {runtime!r}, wanted auto or one of {', '.join(runtimes.RUNTIMES)}")
    return (runtime,)


def _files(runtime: str, description: Description) -> list[str]:
    files = runtimes.RUNTIMES[runtime].files(description)
    if not files:
        raise FrozenModelError(f"{runtimes.RUNTIMES[runtime].file}: not in this bundle; the runtime {runtime} needs it")
    return [GOLDEN, *files]


def _open(runtime: str, folder: Path, description: Description, num_threads: int | None) -> runtimes.Predict:
    golden = read_golden(folder, description)
    predict = opened(runtime, folder, description, num_threads)
    difference = replay(predict, golden)
    if difference > MAX_DIFFERENCE:
        raise FrozenModelError(
            f"runtime {runtime}: {folder / runtimes.RUNTIMES[runtime].file} gives other answers than {GOLDEN}: "
            f"probabilities differ by {difference:.2g}, at most {MAX_DIFFERENCE:g} is allowed; "
            "choose another --runtime, or freeze again"
        )
    return predict


def opened(name: str, folder: Path, description: Description, num_threads: int | None = None) -> runtimes.Predict:
    """Open one of runtimes.FORMATS of a local bundle; FrozenModelError if it is not installed or does not open."""
    runtime = runtimes.FORMATS[name]
    try:
        return runtime.open(folder, description, num_threads or int(os.environ.get("OMP_NUM_THREADS") or 0))
    except ImportError as error:
        raise FrozenModelError(f"runtime {name}: not installed ({error}); choose another --runtime") from error
    except Exception as error:  # deliberately wide: runtimes raise anything
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise FrozenModelError(f"runtime {name}: cannot open {folder / runtime.file}: {first_line}") from error


def in_batches(predict: runtimes.Predict, pixels: npt.NDArray[np.uint8], num_labels: int) -> npt.NDArray[np.float32]:
    """Predict uint8 (N, H, W, 3), any N, in calls of bounded size: float32 (N, num_labels)."""
    starts = range(0, len(pixels), _ROWS_PER_CALL)
    answers = [predict(np.ascontiguousarray(pixels[start : start + _ROWS_PER_CALL])) for start in starts]
    return np.concatenate(answers) if answers else np.zeros((0, num_labels), np.float32)
