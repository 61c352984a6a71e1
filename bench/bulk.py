"""The cases around jobs.classify: whole processes over folders, an archive, photographs, a bucket. Part of cases."""

import atexit
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.data import Data
from bench.measure import BenchError, Case, Finished, Rates, Side, run_process

_GUIDE = "Ray's guide: read_images, map_batches"
_KERAS = "Keras: image_dataset_from_directory in batches of {}, predict"
_KERAS_BATCH, _KERAS_DEFAULT = 256, 32
_CEILING = "ceiling: threads, OpenVINO, no books"
_OBJECTS = 10_000
_PHOTOGRAPHS = 200
_PYTHON = (sys.executable, "-m")


def classify(data: Data) -> Case:
    """jobs.classify against what people do today, and against what the machine allows; whole processes, two sizes."""
    folders = {number: data.pictures(number) for number in data.sizes}
    model = data.model()
    others = [
        *((_KERAS.format(batch), _keras(model, batch)) for batch in (_KERAS_BATCH, _KERAS_DEFAULT)),
        (_GUIDE, [*_PYTHON, "bench.sides.ray_guide", model / "model.keras"]),
        *_quick(model),
    ]
    slow = (_GUIDE, _KERAS.format(_KERAS_DEFAULT))
    sides = [Side(name, _at_each_size(command, folders), is_slow=name in slow) for name, command in others]
    small, large = data.sizes
    allowed = {"decode": "decode only", "infer": "inference only", "both": f"marginal, {small:,} to {large:,}"}

    def limits(_: Path) -> Rates:
        said = run_module("bench.sides.limits", str(model / "model.onnx"), str(folders[large])).json()
        return {name: said[key] for key, name in allowed.items()}

    sides.append(Side("limit: decode and infer, a process a core, nothing else", limits))
    what = "a folder of JPEGs, no two of the same bytes -> predictions as Parquet; one small_cnn in every format"
    return Case("classify", what, Side("jobs.classify", _classify_at_each_size(model, folders)), tuple(sides))


def duplicates(data: Data) -> Case:
    """A folder in which every picture lies several times, which only ours notices."""
    model, (small, large) = data.model(), data.sizes
    num = max(1, min(data.num_files(), small // 3))
    folders = {number: data.repeated(number, num) for number in (small, large)}
    keras = Side(_KERAS.format(_KERAS_BATCH), _at_each_size(_keras(model, _KERAS_BATCH), folders), is_slow=True)
    others = [Side(name, _at_each_size(command, folders)) for name, command in _quick(model)]
    what = f"{num:,} pictures under other names: each {small / num:.3g} and {large / num:.3g} times"
    return Case("duplicates", what, Side("jobs.classify", _classify_at_each_size(model, folders)), (keras, *others))


def _quick(model: Path) -> list[tuple[str, list[object]]]:
    """(name, command) of the sides that start quickly: the ceiling, and Daft where there is one."""
    found: list[tuple[str, list[object]]] = [(_CEILING, [*_PYTHON, "bench.sides.ceiling", model / "model.onnx"])]
    if daft := os.environ.get("DAFT_PYTHON"):
        found.append(("Daft, OpenVINO in a UDF", [daft, "bench/sides/daft_openvino.py", model / "model.onnx"]))
    return found


def _keras(model: Path, batch: int) -> list[object]:
    return [*_PYTHON, "bench.sides.keras_predict", model / "model.keras", batch]


def _classify_at_each_size(model: Path, folders: Mapping[int, Path | str]) -> Callable[[Path], Rates]:
    def turn(folder: Path) -> Rates:
        seconds = {}
        for number, images in folders.items():
            out = folder / f"predictions-{number}"
            arguments = ("--model", str(model), "--images", str(images), "--predictions", str(out))
            seconds[number] = run_module("jobs.classify", *arguments).seconds
            books = json.loads((out / "manifest.json").read_text())["books"]
            require(books["num_listed"] - books["num_rejected"], number, "jobs.classify")
        return _two_sizes(seconds)

    return turn


def _at_each_size(command: Sequence[object], folders: Mapping[int, Path | str]) -> Callable[[Path], Rates]:
    """A side that takes the pictures' folder and a place for its result, and says num_images at the end."""

    def turn(folder: Path) -> Rates:
        seconds = {}
        for number, images in folders.items():
            done = run_process([str(part) for part in (*command, images, folder / f"predictions-{number}")])
            seconds[number] = done.seconds
            require(done.json()["num_images"], number, str(command[-2]))
        return _two_sizes(seconds)

    return turn


def archive(data: Data) -> Case:
    """The same pictures from one zip against the folder."""
    num_images, model = data.sizes[-1], data.model()
    folder, packed = data.pictures(num_images), data.zipped(num_images)

    def side(images: Path) -> Callable[[Path], Rates]:
        def turn(scratch: Path) -> Rates:
            out = scratch / "predictions"
            arguments = ("--model", str(model), "--images", str(images), "--predictions", str(out))
            seconds = run_module("jobs.classify", *arguments).seconds
            return {f"whole process, {num_images:,} images": num_images / seconds}

        return turn

    what = "jobs.classify of one zip, read in place, against the same pictures as files"
    return Case("archive", what, Side("from one zip", side(packed)), (Side("from a folder", side(folder)),))


def photographs(data: Data) -> Case:
    """Large JPEGs, where scaled decoding pays."""
    images, model = data.photographs(_PHOTOGRAPHS), data.model()
    sizes = {_PHOTOGRAPHS: images}
    keras = _at_each_size(_keras(model, _KERAS_BATCH), sizes)
    ours = Side("jobs.classify", _classify_at_each_size(model, sizes))
    others = (Side(_KERAS.format(_KERAS_BATCH), keras),)
    return Case("photographs", "drawn JPEGs of 3000x2000", ours, others)


def s3(data: Data) -> Case:
    """The same pictures from a bucket on this machine against boto3 with as many requests in flight."""
    from cluster.local_s3 import local_s3
    from fruitcnn import storage

    until_the_end = ExitStack()
    atexit.register(until_the_end.close)
    server = until_the_end.enter_context(local_s3(data.folder / "s3"))
    os.environ.update(server.environment)
    sizes = {_OBJECTS: f"s3://{server.bucket}/pictures"}
    storage.upload_directory(data.pictures(_OBJECTS), sizes[_OBJECTS])
    model = data.model()
    boto3 = _at_each_size([*_PYTHON, "bench.sides.boto3_openvino", model / "model.onnx"], sizes)
    ours = Side("jobs.classify", _classify_at_each_size(model, sizes))
    return Case("s3", "small objects of a local S3", ours, (Side("boto3, 32 threads, OpenVINO", boto3, is_slow=True),))


def _two_sizes(seconds: dict[int, float]) -> Rates:
    """The whole job at both sizes, and what one picture more costs: the start-up falls out of the difference."""
    whole = {f"whole process, {number:,} images": number / taken for number, taken in seconds.items()}
    if len(seconds) == 1:
        return whole
    small, large = seconds
    extra_seconds = seconds[large] - seconds[small]
    if extra_seconds <= 0:  # On a busy machine the larger run may be the quicker one; then no rate is known.
        return whole
    return whole | {f"marginal, {small:,} to {large:,}": (large - small) / extra_seconds}


def require(got: int, wanted: int, who: str) -> None:
    """Raise BenchError unless all pictures were answered."""
    if got != wanted:
        raise BenchError(f"{who} answered {got:,} of {wanted:,} pictures: the sides did not do the same work")


def run_module(module: str, *arguments: str) -> Finished:
    """Run `python -m module arguments` to its end."""
    return run_process([*_PYTHON, module, *arguments])
