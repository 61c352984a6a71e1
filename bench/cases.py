"""The cases: what is compared, with which processes. A new one is one more function in CASES."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from bench.data import Data
from bench.measure import BenchError, Case, Finished, Rates, Side, run_process

_SMALL, _LARGE = 5_000, 20_000
_STEPS = {"steps": "seconds", "steps, per CPU second": "cpu_seconds"}
_SHARD_LINE = re.compile(r"this run\s+([\d,]+) files, ([\d,]+)/s")


def shard(data: Data) -> Case:
    """jobs.shard against reading and decoding alone."""
    source = data.shard_source()

    def ours(folder: Path) -> Rates:
        done = _python("jobs.shard", "--source", source, "--dataset", str(folder / "dataset"))
        found = _SHARD_LINE.search(done.stdout)
        if not found:
            raise BenchError(f"jobs.shard did not print its rate as {_SHARD_LINE.pattern!r}:\n{done.stdout}")
        num_files, rate = (float(text.replace(",", "")) for text in found.groups())
        return {"work, once Ray is up": rate, "whole process": num_files / done.seconds}

    def other(_: Path) -> Rates:
        done = _python("bench.sides.decode_only", source)
        said = done.json()
        return {
            "work, once Ray is up": said["num_images"] / said["seconds"],
            "whole process": said["num_images"] / done.seconds,
        }

    what = "every picture checked by a full decode and written to Parquet"
    return Case("shard", what, Side("jobs.shard", ours), Side("threads: read and decode only", other))


def train(data: Data) -> Case:
    """The step loop of one worker against fit, on the same decoded pixels."""
    pixels = str(data.training_pixels())

    def side(module: str) -> Callable[[Path], Rates]:
        def turn(_: Path) -> Rates:
            said = _python(module, pixels).json()
            # A CPU second does not shrink while others use the machine: the steadier of the two.
            return {name: said["num_images"] / said[key] for name, key in _STEPS.items()}

        return turn

    what = "small_cnn at 32x32, batch 64, AdamW, no augmentation, pixels in memory, one process; start-up not counted"
    ours, other = side("bench.sides.our_steps"), side("bench.sides.keras_fit")
    return Case("train", what, Side("fruitcnn, one worker", ours), Side("Keras fit", other))


def classify(data: Data) -> Case:
    """jobs.classify against image_dataset_from_directory and predict, whole processes."""
    folders = {number: data.pictures(number) for number in (_SMALL, _LARGE)}
    model = data.model()

    def ours(folder: Path) -> Rates:
        seconds = {}
        for number, images in folders.items():
            out = folder / f"predictions-{number}"
            arguments = ("--model", str(model), "--images", str(images), "--predictions", str(out))
            seconds[number] = _python("jobs.classify", *arguments).seconds
            manifest = json.loads((out / "manifest.json").read_text())
            _require(manifest["books"]["num_ok"], number, "jobs.classify")
        timing = manifest["timing"]
        return _two_sizes(seconds) | {"of it, once Ray is up": timing["num_inputs"] / timing["classify_seconds"]}

    def other(folder: Path) -> Rates:
        seconds = {}
        for number, images in folders.items():
            out = folder / f"predictions-{number}.parquet"
            done = _python("bench.sides.keras_predict", str(model / "model.keras"), str(images), str(out))
            seconds[number] = done.seconds
            _require(done.json()["num_images"], number, "Keras")
        return _two_sizes(seconds)

    what = "a folder of JPEGs -> predictions as Parquet; the same model.keras frozen by jobs.freeze"
    other_side = Side("Keras: image_dataset_from_directory + predict", other)
    return Case("classify", what, Side("jobs.classify", ours), other_side)


CASES: dict[str, Callable[[Data], Case]] = {"shard": shard, "train": train, "classify": classify}


def _two_sizes(seconds: dict[int, float]) -> Rates:
    """The whole job at both sizes, and what one picture more costs: the start-up falls out of the difference."""
    whole = {f"whole process, {number:,} images": number / taken for number, taken in seconds.items()}
    extra_seconds = seconds[_LARGE] - seconds[_SMALL]
    if extra_seconds <= 0:  # On a busy machine the larger run may be the quicker one; then no rate is known.
        return whole
    return whole | {f"marginal, {_SMALL:,} to {_LARGE:,}": (_LARGE - _SMALL) / extra_seconds}


def _require(got: int, wanted: int, who: str) -> None:
    if got != wanted:
        raise BenchError(f"{who} answered {got:,} of {wanted:,} pictures: the sides did not do the same work")


def _python(module: str, *arguments: str) -> Finished:
    return run_process([sys.executable, "-m", module, *arguments])
