"""A frozen model, opened: hashes first, then golden answers, then predictions. Between freezing and classify.

    model = frozen.load("work/model")            # OpenVINO on a CPU, TensorFlow on a GPU
    model.predict(pixels)                        # uint8 (N, H, W, 3) -> float32 (N, classes)
    model.answer(pixels)                         # the same, and the score `unlike` of each picture
    model.causes(model.answer(pixels))           # (N,): why an answer does not stand, None where it does

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

from fruitcnn import familiar, runtimes
from fruitcnn.bundle import GOLDEN, Description, FrozenModelError, check_files, fetch, read_description
from fruitcnn.errors import UsageError
from fruitcnn.familiar import Answers

MAX_DIFFERENCE = 1e-4
"""Largest difference of a probability, to Keras at freezing and to the golden answers ever after."""

MAX_SCORE_DIFFERENCE = 1e-3
"""The same of the score `unlike`, relative to the score (to 1 where it is smaller)."""

MAX_BF16_DIFFERENCE, MAX_BF16_SCORE_DIFFERENCE = 0.1, 0.2
"""The same in bf16, which keeps 8 bits of a factor: four networks were off by at most 0.06 and 0.10."""

_ROWS_PER_CALL = 256  # bounds the memory of a call, whatever the caller hands over


class Golden(NamedTuple):
    """A few images, uint8 (N, H, W, 3), and what Keras answered."""

    images: npt.NDArray[np.uint8]
    answers: Answers


class Proof(NamedTuple):
    """What the golden images showed of one format: the largest differences, or why it could not be opened."""

    format: str
    file: str
    max_difference: float
    score_difference: float
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
    rows_per_call: int | None = None
    """Pictures that the runtime takes at once, at most; None: as many as it is given."""

    @property
    def limits(self) -> familiar.Limits:
        """From where on an answer is unsure."""
        return self.description.limits

    def predict(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Map uint8 (N, H, W, 3), any N, to float32 (N, classes) probabilities; as answer."""
        return self.answer(pixels).probabilities

    def causes(self, answers: Answers) -> npt.NDArray[np.object_]:
        """Return why each answer does not stand, object (N,): "unlike-training", "ambiguous", None where it does."""
        margins = familiar.margins(answers.probabilities)
        return familiar.causes(answers.unlike, margins, self.limits)

    def answer(self, pixels: npt.NDArray[np.uint8]) -> Answers:
        """Map uint8 (N, H, W, 3), any N, to probabilities and scores; from several threads.

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
            at_once = runtimes.rows_per_call(name, _num_threads(num_threads))
            return FrozenModel(
                list(description.labels), description.input_px, model_hash, name, description, predict, at_once
            )
    raise FrozenModelError("\n".join(problems))


def bf16_agreement(model_uri: str, cache_dir: str | None = None) -> str:
    """Say how near the answers in bf16 are to the golden ones; FrozenModelError where this CPU has none."""
    description, model_hash = read_description(model_uri)
    folder = fetch(model_uri, description, model_hash, _files(runtimes.BF16, description), cache_dir)
    golden = read_golden(folder, description)
    answers = in_batches(opened(runtimes.BF16, folder, description), golden.images, len(description.labels))
    found = differences(answers, golden.answers)
    num_same = int((answers.probabilities.argmax(1) == golden.answers.probabilities.argmax(1)).sum())
    return (
        f"same label on {num_same} of {len(golden.images)} golden images (half of them the least sure), probabilities "
        f"within {found.probability:.2g}, scores within {found.score:.2g} of their size"
    )


def identify(model_uri: str, runtime: str = "auto", cache_dir: str | None = None) -> tuple[str, str]:
    """Return the model hash and the name of the runtime that load would use here; its files' hashes are checked.

    FrozenModelError as load; only auto and bf16, which not every CPU has, open the model.
    """
    if runtime in ("auto", *runtimes.REDUCED):
        model = load(model_uri, runtime, cache_dir=cache_dir)
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
    """Prove a bundle: all hashes (FrozenModelError as verify), then every format's golden answers, a Proof each.

    Those of 8-bit formats were never those of Keras: they may be off by twice what they were when the model was frozen.
    """
    description, model_hash = read_description(model_uri)
    check_files(model_uri, description, description.files)
    folder = fetch(model_uri, description, model_hash, description.files, cache_dir)
    golden = read_golden(folder, description)
    for name, runtime in (runtimes.FORMATS | runtimes.QUANTISED).items():
        if not runtime.files(description):
            continue  # frozen before this format was made, or not asked for
        try:
            found = replay(opened(name, folder, description), golden)
        except FrozenModelError as error:
            yield Proof(name, runtime.file, float("nan"), float("nan"), str(error))
        else:
            is_right = found.are_within(_allowed(name, description))
            yield Proof(name, runtime.file, *found, None if is_right else "its answers differ")


def read_golden(folder: Path, description: Description) -> Golden:
    """Read the golden images from a local bundle; FrozenModelError if they do not fit the labels and the input."""
    path = folder / GOLDEN
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            golden = Golden(archive["images"], Answers(archive["probabilities"], archive[runtimes.SCORE]))
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise FrozenModelError(f"{path}: no golden answers in it ({error})") from error
    wanted, answers = (len(golden.images), len(description.labels)), golden.answers
    shapes_fit = answers.probabilities.shape == wanted and answers.unlike.shape == wanted[:1]
    if not shapes_fit or golden.images.shape[1:] != (*description.input_px, 3) or not wanted[0]:
        raise FrozenModelError(
            f"{path}: answers {answers.probabilities.shape} to images {golden.images.shape} do not fit the "
            f"{wanted[1]} labels and input {description.input_px} of model.json"
        )
    return golden


class Differences(NamedTuple):
    """The largest difference of a probability, and the largest relative one of a score; infinite for no number."""

    probability: float
    score: float

    @property
    def are_small(self) -> bool:
        """Whether both are within what is allowed of float32."""
        return self.are_within(Differences(MAX_DIFFERENCE, MAX_SCORE_DIFFERENCE))

    def are_within(self, allowed: Differences) -> bool:
        """Whether neither is larger than that of `allowed`."""
        return self.probability <= allowed.probability and self.score <= allowed.score


def replay(predict: runtimes.Predict, golden: Golden) -> Differences:
    """Return how far a predictor's answers are from the golden ones; the last picture is asked for by itself."""
    probabilities, unlike = golden.answers
    # Full calls and those of fewer rows may be compiled each for itself (runtimes): both are proven.
    calls = [in_batches(predict, images, probabilities.shape[1]) for images in (golden.images[:-1], golden.images[-1:])]
    answers = Answers(*(np.concatenate(both) for both in zip(*calls, strict=True)))
    if answers.probabilities.shape != probabilities.shape or answers.unlike.shape != unlike.shape:
        return Differences(float("inf"), float("inf"))
    return differences(answers, golden.answers)


def differences(answers: Answers, expected: Answers) -> Differences:
    """Return how far the answers to at least one picture are from those expected for it."""
    scale = np.maximum(np.abs(expected.unlike), 1)
    probability = float(np.abs(answers.probabilities - expected.probabilities).max())
    score = float((np.abs(answers.unlike - expected.unlike) / scale).max())
    return Differences(*(value if np.isfinite(value) else float("inf") for value in (probability, score)))


def _candidates(runtime: str) -> tuple[str, ...]:
    if runtime == "auto":
        on_cpu = ("openvino", "onnxruntime", "tensorflow")
        return ("tensorflow", *on_cpu[:2]) if runtimes.has_gpu() else on_cpu
    if runtime not in runtimes.RUNTIMES | runtimes.REDUCED:
        raise UsageError(f"runtime: got {runtime!r}, wanted auto or one of {', '.join(runtimes.RUNTIMES)}")
    return (runtime,)


def _files(runtime: str, description: Description) -> list[str]:
    reader = (runtimes.RUNTIMES | runtimes.REDUCED)[runtime]
    files = reader.files(description)
    if not files:
        raise FrozenModelError(f"{reader.file}: not in this bundle; the runtime {runtime} needs it")
    return [GOLDEN, *files]


def _open(runtime: str, folder: Path, description: Description, num_threads: int | None) -> runtimes.Predict:
    golden = read_golden(folder, description)
    predict = opened(runtime, folder, description, num_threads)
    found, allowed = replay(predict, golden), _allowed(runtime, description)
    if not found.are_within(allowed):
        file, other = _files(runtime, description)[1], "precision" if runtime in runtimes.REDUCED else "runtime"
        raise FrozenModelError(
            f"runtime {runtime}: {folder / file} gives other answers than {GOLDEN}: "
            f"probabilities differ by {found.probability:.2g}, at most {allowed.probability:g} is allowed, scores by "
            f"{found.score:.2g} of their size, at most {allowed.score:g}; choose another --{other}, or freeze again"
        )
    return predict


def _allowed(runtime: str, description: Description) -> Differences:
    if runtime in runtimes.REDUCED:
        return Differences(MAX_BF16_DIFFERENCE, MAX_BF16_SCORE_DIFFERENCE)
    measured = next((each for each in description.agreement if each.format == runtime), None)
    if runtime in runtimes.QUANTISED and measured:
        return Differences(2 * measured.max_difference, 2 * measured.score_difference)
    return Differences(MAX_DIFFERENCE, MAX_SCORE_DIFFERENCE)


def opened(name: str, folder: Path, description: Description, num_threads: int | None = None) -> runtimes.Predict:
    """Open one of FORMATS, QUANTISED or REDUCED of a local bundle; FrozenModelError if that does not work here."""
    runtime = (runtimes.FORMATS | runtimes.QUANTISED | runtimes.REDUCED)[name]
    try:
        return runtime.open(folder, description, _num_threads(num_threads))
    except ImportError as error:
        raise FrozenModelError(f"runtime {name}: not installed ({error}); choose another --runtime") from error
    except Exception as error:  # deliberately wide: runtimes raise anything
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise FrozenModelError(f"runtime {name}: cannot open {folder / runtime.file}: {first_line}") from error


def _num_threads(asked: int | None) -> int:
    return asked or int(os.environ.get("OMP_NUM_THREADS") or 0)


def in_batches(predict: runtimes.Predict, pixels: npt.NDArray[np.uint8], num_labels: int) -> Answers:
    """Answer uint8 (N, H, W, 3), any N, in calls of bounded size."""
    starts = range(0, len(pixels), _ROWS_PER_CALL)
    answers = [predict(np.ascontiguousarray(pixels[start : start + _ROWS_PER_CALL])) for start in starts]
    if not answers:
        return Answers(np.zeros((0, num_labels), np.float32), np.zeros(0, np.float32))
    probabilities, unlike = zip(*answers, strict=True)
    return Answers(np.concatenate(probabilities), np.concatenate(unlike))
