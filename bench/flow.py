"""The cases of the flow around training: what a whole step takes, start-up included. Part of cases."""

import json
import re
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import serving
from bench.data import Data
from bench.measure import PERCENT, SECONDS, BenchError, Case, Rates, Side, run_process

_PYTHON = (sys.executable, "-m")
_WANTED_PERCENT = 98.0
_START = ("ray", "workers", "imports", "pixels", "model", "first_step")
_PARTS = re.compile(r"seconds\s+\d+ = (.*)")
_RIGHT, _TRAINING, _WHOLE = f"right of Test{PERCENT}", f"training{SECONDS}", f"whole process{SECONDS}"


def pipeline_input(data: Data) -> Case:
    """Batches of training pictures without a step that takes them."""
    pixels = str(data.training_pixels())

    def side(module: str, *arguments: str) -> Callable[[Path], Rates]:
        def turn(_: Path) -> Rates:
            said = run_process([*_PYTHON, module, *arguments]).json()
            return {"shuffled batches": said["num_images"] / said["seconds"]}

        return turn

    others = (
        Side("tf.data: pixels in memory, shuffle, batch", side("bench.sides.keras_input", "memory", pixels)),
        Side(
            "image_dataset_from_directory, decoded every epoch",
            side("bench.sides.keras_input", "files", str(data.unpacked() / "Training")),
        ),
    )
    what = "pictures of 32x32 in batches of 64; start-up and decoding of the first epoch not counted"
    ours = Side("fruitcnn: feed", side("bench.sides.our_input", pixels))
    return Case("input", what, ours, others, is_slow=True)  # the sides warm up by themselves


def accuracy(data: Data) -> Case:
    """The way to 98 % of Test, by the same number of pictures through the same network."""
    dataset, train, test = data.dataset(), data.training_pixels(), data.training_pixels(split="test")

    def ours(folder: Path) -> Rates:
        run = folder / "run"
        done = run_process([*_PYTHON, "jobs.train", "--dataset", str(dataset), "--run", str(run), "--preset", "speed"])
        said = json.loads((run / "result.json").read_text())
        found = {_RIGHT: 100 * said["test"]["accuracy"], _TRAINING: said["seconds"]["training"], _WHOLE: done.seconds}
        return _enough(found, "jobs.train") | {
            f"start: {part}{SECONDS}": said["start_seconds"][part] for part in _START
        }

    def other(_: Path) -> Rates:
        done = run_process([*_PYTHON, "bench.sides.keras_accuracy", str(train), str(test)])
        said = done.json()
        return {_RIGHT: 100 * said["accuracy"], _TRAINING: said["seconds"], _WHOLE: done.seconds}

    what = (
        "small_cnn at 32x32, the preset speed: 64,000 pictures, one worker; whole process: start, evaluation, records"
    )
    return Case("accuracy", what, Side("jobs.train --preset speed", ours), (Side("Keras fit", other),), is_slow=True)


def freeze(data: Data) -> Case:
    """jobs.freeze against a script that only writes the formats."""
    model, run = data.model(), data.run()

    def ours(folder: Path) -> Rates:
        return {_WHOLE: run_process([*_PYTHON, "jobs.freeze", "--run", str(run), "--model", str(folder / "m")]).seconds}

    def other(folder: Path) -> Rates:
        arguments = (str(model / "model.keras"), str(folder))
        return {_WHOLE: run_process([*_PYTHON, "bench.sides.keras_export", *arguments]).seconds}

    what = "a run -> seven formats, score and limits, all answers compared on the test split, the card"
    others = (Side("Keras export to SavedModel, ONNX and TFLite, nothing compared", other),)
    return Case("freeze", what, Side("jobs.freeze", ours), others, is_slow=True)


def serve(data: Data) -> Case:
    """From the command to the first answer, by parts."""
    model, picture = str(data.model()), next(data.unpacked().glob("Test/*/*.jpg")).read_bytes()

    def ours(_: Path) -> Rates:
        began = time.monotonic()
        with serving.server(model, batch_size=32) as started:
            ready = time.monotonic()
            with urllib.request.urlopen(f"http://127.0.0.1:{started.port}/classify", picture, timeout=60) as answer:
                answer.read()
            answered = time.monotonic()
        parts = _parts("jobs.serve", started.said) | {f"of it first answer{SECONDS}": answered - ready}
        return {f"until the first answer{SECONDS}": answered - began} | parts

    what = "from the command to the first answer; what is not in the parts is Python's start and imports"
    return Case("serve", what, Side("jobs.serve", ours), is_slow=True)


def demo(_: Data) -> Case:
    """The whole flow from drawn pictures, with the time of every part: each job's cold start is in it."""

    def ours(folder: Path) -> Rates:
        flags = ("--source", "synthetic", "--work", str(folder / "work"), "--num-workers", "2")
        done = run_process([*_PYTHON, "jobs.pipeline", *flags])
        parts = _parts("jobs.pipeline", done.stdout)
        start = json.loads((folder / "work" / "run" / "result.json").read_text())["start_seconds"]
        return {_WHOLE: done.seconds} | parts | {f"of train, {part}{SECONDS}": start[part] for part in _START}

    return Case(
        "demo", "the command of make demo: two workers, drawn pictures", Side("jobs.pipeline", ours), is_slow=True
    )


def _parts(who: str, said: str) -> Rates:
    """What the line `seconds` of a closing table says of each part."""
    found = _PARTS.search(said)
    if not found:
        raise BenchError(f"{who} did not print its parts as {_PARTS.pattern!r}:\n{said}")
    return {f"of it {name}{SECONDS}": float(seconds) for name, seconds in map(_split, found.group(1).split(", "))}


def _split(text: str) -> tuple[str, str]:
    name, _, seconds = text.rpartition(" ")
    return name, seconds


def _enough(found: dict[str, Any], who: str) -> dict[str, Any]:
    if found[_RIGHT] < _WANTED_PERCENT:
        print(f"{who}: {found[_RIGHT]:.2f} % of Test, less than {_WANTED_PERCENT:g}", file=sys.stderr)
    return found
