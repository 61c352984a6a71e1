"""The cases: what is compared, with which processes. A new one is one more function in CASES."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.bulk import archive, classify, duplicates, photographs, require, run_module, s3
from bench.data import Data
from bench.flow import accuracy, demo, freeze, pipeline_input, serve
from bench.measure import SECONDS, BenchError, Case, Rates, Side, run_process

_NAMES, _MANY_NAMES = 1_000_000, 10_000_000
_PYTHON = (sys.executable, "-m")
_SORT_LINES = "import sys; print(len(sorted(open(sys.argv[1]))))"
_STEPS = {"steps": "seconds", "steps, per CPU second": "cpu_seconds"}
_SHARD_LINE = re.compile(r"this run\s+([\d,]+) files, ([\d,]+)/s")


def shard(data: Data) -> Case:
    """jobs.shard against reading and decoding alone."""
    source = data.shard_source()

    def ours(folder: Path) -> Rates:
        done = run_module("jobs.shard", "--source", source, "--dataset", str(folder / "dataset"))
        found = _SHARD_LINE.search(done.stdout)
        if not found:
            raise BenchError(f"jobs.shard did not print its rate as {_SHARD_LINE.pattern!r}:\n{done.stdout}")
        num_files, rate = (float(text.replace(",", "")) for text in found.groups())
        return {"work, once Ray is up": rate, "whole process": num_files / done.seconds}

    def other(_: Path) -> Rates:
        done = run_module("bench.sides.decode_only", source)
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
            said = run_module(module, pixels).json()
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
                said = run_module(module, str(data.training_pixels(size_px)), *asked).json()
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
            said = run_module("bench.sides.our_loop", pixels, str(folder / "run"), *flags).json()
            return {name: said["num_images"] / said[key] for name, key in _STEPS.items()}

        return turn

    what = "base_cnn at 32x32, batch 64, averaged weights, one process; by default jobs.train writes every 60 s"
    ours = Side("a checkpoint every 5 s", side(5))
    return Case("checkpoints", what, ours, (Side("one at the end", side(1e6)),))


def plan(data: Data) -> Case:
    """jobs.classify --dry-run of a list of a million names against the least that a plan is."""
    listing = data.listing(_NAMES)

    def ours(folder: Path) -> Rates:
        arguments = ("--model", str(data.model()), "--images", str(listing), "--predictions", str(folder / "out"))
        return {"whole process": _NAMES / run_module("jobs.classify", *arguments, "--dry-run").seconds}

    what = f"{_NAMES:,} names of a .txt: checked, sorted on disk, cut into parts"
    return Case("plan", what, Side("jobs.classify --dry-run", ours), (_sorted_in_memory(listing, _NAMES),))


def plan_large(data: Data) -> Case:
    """A plan of ten million names, written; its memory and its size are said on the way."""
    listing = data.listing(_MANY_NAMES)

    def ours(folder: Path) -> Rates:
        done = run_module("bench.sides.plan_only", str(data.model()), str(listing), str(folder / "out"))
        said = done.json()
        require(said["num_names"], _MANY_NAMES, "the plan")
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
    "duplicates": duplicates,
    "archive": archive,
    "photographs": photographs,
    "s3": s3,
}

BY_DEFAULT = tuple(name for name in CASES if name not in ("plan-large", "group", "checkpoints"))
"""About ten minutes; those that take minutes each are asked for by name."""
