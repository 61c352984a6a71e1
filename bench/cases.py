"""The cases: what is compared, with which processes. A new one is one more function in CASES."""

import atexit
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.data import Data
from bench.flow import accuracy, demo, freeze, pipeline_input, serve
from bench.measure import SECONDS, BenchError, Case, Finished, Rates, Side, run_process

_GUIDE = "Ray's guide: read_images, map_batches"
_CEILING = "ceiling: threads, OpenVINO, no books"
_OBJECTS = 10_000
_PHOTOGRAPHS = 200
_NAMES, _MANY_NAMES = 1_000_000, 10_000_000
_PYTHON = (sys.executable, "-m")
_SORT_LINES = "import sys; print(len(sorted(open(sys.argv[1]))))"
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
    return Case("shard", what, Side("jobs.shard", ours), (Side("threads: read and decode only", other),))


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
    return Case("train", what, Side("fruitcnn, one worker", ours), (Side("Keras fit", other),))


def group(data: Data) -> Case:
    """Two workers with half of the cores each against one process with all of them: ours, and plain Keras."""
    networks = (("small_cnn", 32, 64), ("small_cnn", 32, 512), ("custom_cnn", 100, 64))

    def side(name: str, module: str, *flags: str) -> Side:
        def turn(_: Path) -> Rates:
            rates = {}
            for architecture, size_px, batch in networks:
                asked = ("--architecture", architecture, "--batch", str(batch), *flags)
                said = _python(module, str(data.training_pixels(size_px)), *asked).json()
                rates[f"{architecture} at {size_px}x{size_px}, batch {batch}"] = said["num_images"] / said["seconds"]
            return rates

        return Side(name, turn)

    what = "steps with AdamW on the same global batches, no augmentation, pixels in memory; start-up not counted"
    ours = side("fruitcnn, two workers", "bench.sides.our_steps", "--workers", "2")
    alone = side("fruitcnn, one worker", "bench.sides.our_steps", "--workers", "1")
    return Case("group", what, ours, (alone, side("Keras fit, one process", "bench.sides.keras_fit")))


def checkpoints(data: Data) -> Case:
    """The loop that writes its state every few seconds against one that writes it at the end only."""
    pixels = str(data.training_pixels())

    def side(seconds: float) -> Callable[[Path], Rates]:
        def turn(folder: Path) -> Rates:
            flags = ("--checkpoint-seconds", str(seconds))
            said = _python("bench.sides.our_loop", pixels, str(folder / "run"), *flags).json()
            return {name: said["num_images"] / said[key] for name, key in _STEPS.items()}

        return turn

    what = "base_cnn at 32x32, batch 64, averaged weights, one process; by default jobs.train writes every 60 s"
    ours = Side("a checkpoint every 5 s", side(5))
    return Case("checkpoints", what, ours, (Side("one at the end", side(1e6)),))


def classify(data: Data) -> Case:
    """jobs.classify against what people do today, and against what the machine allows; whole processes, two sizes."""
    folders = {number: data.pictures(number) for number in data.sizes}
    model = data.model()
    others = [
        (
            "Keras: image_dataset_from_directory, predict",
            [*_PYTHON, "bench.sides.keras_predict", model / "model.keras"],
        ),
        (_GUIDE, [*_PYTHON, "bench.sides.ray_guide", model / "model.keras"]),
        (_CEILING, [*_PYTHON, "bench.sides.ceiling", model / "model.onnx"]),
    ]
    if daft := os.environ.get("DAFT_PYTHON"):
        others.append(("Daft, OpenVINO in a UDF", [daft, "bench/sides/daft_openvino.py", model / "model.onnx"]))
    sides = [Side(name, _at_each_size(command, folders), is_slow=name == _GUIDE) for name, command in others]
    small, large = data.sizes
    allowed = {"decode": "decode only", "infer": "inference only", "both": f"marginal, {small:,} to {large:,}"}

    def limits(_: Path) -> Rates:
        said = _python("bench.sides.limits", str(model / "model.onnx"), str(folders[large])).json()
        return {name: said[key] for key, name in allowed.items()}

    sides.append(Side("limit: decode and infer, a process a core, nothing else", limits))
    what = "a folder of JPEGs -> predictions as Parquet; one small_cnn in every format"
    return Case("classify", what, Side("jobs.classify", _classify_at_each_size(model, folders)), tuple(sides))


def _classify_at_each_size(model: Path, folders: Mapping[int, Path | str]) -> Callable[[Path], Rates]:
    def turn(folder: Path) -> Rates:
        seconds = {}
        for number, images in folders.items():
            out = folder / f"predictions-{number}"
            arguments = ("--model", str(model), "--images", str(images), "--predictions", str(out))
            seconds[number] = _python("jobs.classify", *arguments).seconds
            books = json.loads((out / "manifest.json").read_text())["books"]
            _require(books["num_listed"] - books["num_rejected"], number, "jobs.classify")
        return _two_sizes(seconds)

    return turn


def _at_each_size(command: Sequence[object], folders: Mapping[int, Path | str]) -> Callable[[Path], Rates]:
    """A side that takes the pictures' folder and a place for its result, and says num_images at the end."""

    def turn(folder: Path) -> Rates:
        seconds = {}
        for number, images in folders.items():
            done = run_process([str(part) for part in (*command, images, folder / f"predictions-{number}")])
            seconds[number] = done.seconds
            _require(done.json()["num_images"], number, str(command[-2]))
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
            seconds = _python("jobs.classify", *arguments).seconds
            return {f"whole process, {num_images:,} images": num_images / seconds}

        return turn

    what = "jobs.classify of one zip, read in place, against the same pictures as files"
    return Case("archive", what, Side("from one zip", side(packed)), (Side("from a folder", side(folder)),))


def photographs(data: Data) -> Case:
    """Large JPEGs, where scaled decoding pays."""
    images, model = data.photographs(_PHOTOGRAPHS), data.model()
    sizes = {_PHOTOGRAPHS: images}
    keras = _at_each_size([*_PYTHON, "bench.sides.keras_predict", model / "model.keras"], sizes)
    ours = Side("jobs.classify", _classify_at_each_size(model, sizes))
    others = (Side("Keras: image_dataset_from_directory, predict", keras),)
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


def plan(data: Data) -> Case:
    """jobs.classify --dry-run of a list of a million names against the least that a plan is."""
    listing = data.listing(_NAMES)

    def ours(folder: Path) -> Rates:
        arguments = ("--model", str(data.model()), "--images", str(listing), "--predictions", str(folder / "out"))
        return {"whole process": _NAMES / _python("jobs.classify", *arguments, "--dry-run").seconds}

    what = f"{_NAMES:,} names of a .txt: checked, sorted on disk, cut into parts"
    return Case("plan", what, Side("jobs.classify --dry-run", ours), (_sorted_in_memory(listing, _NAMES),))


def plan_large(data: Data) -> Case:
    """A plan of ten million names, written; its memory and its size are said on the way."""
    listing = data.listing(_MANY_NAMES)

    def ours(folder: Path) -> Rates:
        done = _python("bench.sides.plan_only", str(data.model()), str(listing), str(folder / "out"))
        said = done.json()
        _require(said["num_names"], _MANY_NAMES, "the plan")
        memory, size = said["peak_bytes"] / 2**20, said["plan_bytes"] / 2**20
        parts = f"{said['num_parts']:,} parts in {done.seconds:.1f} s"
        print(f"plan-large: {parts}, peak memory {memory:,.0f} MiB, plan {size:,.1f} MiB", file=sys.stderr)
        return {"whole process": _MANY_NAMES / done.seconds}

    what = f"{_MANY_NAMES:,} names of a .txt: checked, sorted on disk, cut into parts, written as a plan"
    return Case("plan-large", what, Side("jobs.classify, its plan", ours), (_sorted_in_memory(listing, _MANY_NAMES),))


def _sorted_in_memory(listing: Path, num_names: int) -> Side:
    command = [*_PYTHON[:1], "-c", _SORT_LINES, str(listing)]
    return Side("sorted(file), in memory", lambda _: {"whole process": num_names / run_process(command).seconds})


def start(_: Data) -> Case:
    """What a command costs before it does anything."""

    def turn(command: Sequence[str]) -> Callable[[Path], Rates]:
        return lambda _folder: {f"whole process{SECONDS}": run_process([*_PYTHON[:1], *command]).seconds}

    others = [(f"{name} --help", ["-m", f"jobs.{name}", "--help"]) for name in ("shard", "train", "freeze", "pipeline")]
    others += [("import tensorflow", ["-c", "import tensorflow"]), ("import ray", ["-c", "import ray"])]
    sides = tuple(Side(name, turn(command)) for name, command in others)
    return Case(
        "start",
        "before a command does anything",
        Side("classify --help", turn(["-m", "jobs.classify", "--help"])),
        sides,
    )


CASES: dict[str, Callable[[Data], Case]] = {
    "start": start,
    "plan": plan,
    "plan-large": plan_large,
    "shard": shard,
    "input": pipeline_input,
    "train": train,
    "accuracy": accuracy,
    "group": group,
    "checkpoints": checkpoints,
    "freeze": freeze,
    "serve": serve,
    "demo": demo,
    "classify": classify,
    "archive": archive,
    "photographs": photographs,
    "s3": s3,
}

BY_DEFAULT = tuple(name for name in CASES if name not in ("plan-large", "group", "checkpoints"))
"""About ten minutes; those that take minutes each are asked for by name."""


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


def _require(got: int, wanted: int, who: str) -> None:
    if got != wanted:
        raise BenchError(f"{who} answered {got:,} of {wanted:,} pictures: the sides did not do the same work")


def _python(module: str, *arguments: str) -> Finished:
    return run_process([*_PYTHON, module, *arguments])
