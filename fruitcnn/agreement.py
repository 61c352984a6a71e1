"""Do all formats answer alike? Test pictures to compare on, the comparison, the golden ones. Called by freezing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fruitcnn import frozen, images, runtimes
from fruitcnn.bundle import GOLDEN, Agreement, Description, FrozenModelError
from fruitcnn.familiar import Answers
from fruitcnn.manifest import Manifest
from fruitcnn.parquet import read_rows
from fruitcnn.pixels import blocks

MIN_SAME_TOP1 = 0.9995

_ROW_GROUPS = 64  # read from the data set for a comparison, of 256 rows each
_FILES_PER_CALL = 32
_CALLS_TO_TIME = 40
_MAX_FILES = 1000  # compared in the signature that decodes by itself, a tenth as fast as the others
_ENCODED = "saved model, encoded"
_DECODED_IN_GRAPH = (b"\xff\xd8\xff", b"\x89PNG")


class Sample(NamedTuple):
    """Pictures to compare on: uint8 (N, H, W, 3), labels (N,) int64, and the N files they were decoded from."""

    split: str
    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    encoded: list[bytes]


def take_sample(dataset: str, manifest: Manifest, num_images: int, input_px: tuple[int, int]) -> Sample:
    """Read and decode `num_images` pictures spread evenly over the test split (over train where there is no test).

    Reads a few row groups, not the split: it is the same work for ten million pictures.
    """
    name = "test" if "test" in manifest.splits else "train"
    groups = blocks(manifest.split(name))
    groups = [groups[index] for index in _evenly(len(groups), max(_ROW_GROUPS, num_images // 16))]
    ends = np.cumsum([group.num_rows for group in groups])
    rows = _evenly(int(ends[-1]), num_images)
    encoded: list[bytes] = []
    labels: list[int] = []
    for group, last in zip(groups, ends, strict=True):
        inside = [int(row - last + group.num_rows) for row in rows if last - group.num_rows <= row < last]
        batches = list(read_rows(dataset, group.shard, ("image.bytes", "label"), [group.row_group])) if inside else []
        table = pa.Table.from_batches(batches).take(inside) if batches else None
        if table is not None:
            encoded += table["image"].combine_chunks().field("bytes").to_pylist()
            labels += table["label"].to_pylist()
    pixels = np.stack([images.decode(data, input_px, manifest.max_pixels).pixels for data in encoded])
    return Sample(name, pixels, np.array(labels, np.int64), encoded)


def choose_golden(
    labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32], num_golden: int
) -> npt.NDArray[np.int64]:
    """Choose rows, (M,) rising: half spread over the classes, half those the model is least sure of.

    Sure answers are near 0 and 1 whatever the arithmetic; the unsure ones show a runtime that computes otherwise.
    """
    first_of_class = np.unique(labels, return_index=True)[1]
    spread = first_of_class[_evenly(len(first_of_class), (num_golden + 1) // 2)]
    by_doubt = np.argsort(probabilities.max(axis=1), kind="stable")
    others = by_doubt[~np.isin(by_doubt, spread)]
    return np.sort(np.concatenate([spread, others[: num_golden - len(spread)]]))


def write_golden(folder: Path, sample: Sample, expected: Answers, num_golden: int) -> None:
    """Write golden.npz: some of the sample's images and what Keras answered."""
    chosen = choose_golden(sample.labels, expected.probabilities, num_golden)
    answers: dict[str, Any] = {runtimes.OUTPUT: expected.probabilities[chosen], runtimes.SCORE: expected.unlike[chosen]}
    np.savez(folder / GOLDEN, images=sample.pixels[chosen], **answers)


def compare(folder: Path, description: Description, sample: Sample, expected: Answers) -> Iterator[Agreement]:
    """Compare every format in a local folder with `expected`, from Keras before the export."""
    num_labels = expected.probabilities.shape[1]
    reduced = runtimes.REDUCED if runtimes.has_bf16() else {}
    for name, runtime in (runtimes.FORMATS | runtimes.QUANTISED | reduced).items():
        if not (folder / runtime.file).exists():
            continue  # not among --formats
        predict = frozen.opened(name, folder, description)
        one_image_ms = _one_image_ms(predict, sample.pixels)
        started = time.perf_counter()
        answers = frozen.in_batches(predict, sample.pixels, num_labels)
        speed = len(sample.pixels) / (time.perf_counter() - started)
        found = _agreement(name, runtime.file, answers, expected, sample.labels, name in runtimes.FORMATS)
        yield found.model_copy(update={"images_per_second": speed, "one_image_ms": one_image_ms})
    yield from _compare_encoded(runtimes.open_encoded(folder), sample, expected)


def _one_image_ms(predict: runtimes.Predict, pixels: npt.NDArray[np.uint8]) -> float:
    """Median of a few calls, the first ones, which warm up, left out."""
    seconds = []
    for _ in range(_CALLS_TO_TIME):
        started = time.perf_counter()
        predict(pixels[:1])
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[_CALLS_TO_TIME // 4 :])


def _compare_encoded(
    predict: Callable[[list[bytes]], Answers], sample: Sample, expected: Answers
) -> Iterator[Agreement]:
    """Compare on the JPEG and PNG files, in batches; one that TensorFlow cannot decode (CMYK) leaves its batch out."""
    files = sample.encoded
    candidates = _evenly(len(files), _MAX_FILES)
    known = np.array([row for row in candidates if files[row].startswith(_DECODED_IN_GRAPH)], np.int64)
    answers, rows = [], []
    for start in range(0, len(known), _FILES_PER_CALL):
        batch = known[start : start + _FILES_PER_CALL]
        with suppress(ValueError):
            answers.append(predict([files[row] for row in batch]))
            rows.append(batch)
    if rows:
        joined = Answers(*(np.concatenate(each) for each in zip(*answers, strict=True)))
        compared = np.concatenate(rows)
        chosen = Answers(*(each[compared] for each in expected))
        yield _agreement(_ENCODED, "saved_model", joined, chosen, sample.labels[compared], is_bound=False)


def require(agreements: tuple[Agreement, ...]) -> None:
    """Raise FrozenModelError naming every format that answers unlike Keras."""
    wrong = [
        f"{each.format} ({each.file}): {each.same_top1:.2%}, within {each.max_difference:.2g}, scores within "
        f"{each.score_difference:.2g}"
        for each in agreements
        if each.is_bound and not _is_good(each)
    ]
    if wrong:
        raise FrozenModelError(
            f"no model was written, since these answer unlike Keras on {agreements[0].num_images} images (wanted same "
            f"top-1 on {MIN_SAME_TOP1:.1%}, probabilities within {frozen.MAX_DIFFERENCE:g}, scores within "
            f"{frozen.MAX_SCORE_DIFFERENCE:g} of their size):\n" + "\n".join(wrong)
        )


def _is_good(agreement: Agreement) -> bool:
    found = frozen.Differences(agreement.max_difference, agreement.score_difference)
    return agreement.same_top1 >= MIN_SAME_TOP1 and found.are_small


def _agreement(
    name: str, file: str, answers: Answers, expected: Answers, labels: npt.NDArray[np.int64], is_bound: bool
) -> Agreement:
    best = answers.probabilities.argmax(axis=1)
    same = float((best == expected.probabilities.argmax(axis=1)).mean())
    found = frozen.differences(answers, expected)
    return Agreement(
        format=name,
        file=file,
        num_images=len(expected.unlike),
        same_top1=same,
        accuracy=float((best == labels).mean()),
        max_difference=found.probability,
        score_difference=found.score,
        is_bound=is_bound,
    )


def _evenly(count: int, wanted: int) -> npt.NDArray[np.int64]:
    """Return `wanted` numbers, or all, spread over range(count)."""
    return np.arange(min(count, wanted)) * count // max(1, min(count, wanted))
