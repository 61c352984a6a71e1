"""One node against two, and where more nodes stop helping: measured here, played on 1 to 1,000 nodes.

    python bench/scaling.py [classify] [train] [--work FOLDER]

A "node" of the measurement is a Ray node on this machine, held to one core or two of its own; no more of them than
cores. What two nodes take stands beside what the costs of one node predict, measured with the core of the other one
busy, as it would be. Beyond that it is extrapolation: the network between hosts and other users of the store are not in
it.
"""

import argparse
import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.data import Data, open_data
from bench.machine import machine
from bench.measure import ROOT, run_process
from bench.nodes import Job, classify, command, neighbour, nodes, train
from fruitcnn.scaling import (
    ClassifyCosts,
    Cluster,
    Forecast,
    TrainCosts,
    forecast_train,
    row_and_step,
    simulate_classify,
)

RESULTS = ROOT / "bench" / "scaling.json"
_SMALL, _LARGE = 20_000, 200_000
_PART_IMAGES = 2_048
_TINY_PARTS = 600
_NAMES = 1_000_000
_NODES = (1, 2, 10, 30, 100, 300, 1_000)
_IMAGES, _CORES = 100_000_000, 16
_TRAINED, _BATCH, _LARGE_BATCH = 40_000, 64, 256


def main() -> None:
    """Measure what is asked for, print it, and keep it in bench/scaling.json beside what was measured before."""
    parser = argparse.ArgumentParser(
        "bench/scaling.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="classify, train (default: both)")
    parser.add_argument("--work", type=Path, default=ROOT / "work" / "bench", help="where the data is made and kept")
    asked = parser.parse_args()
    known: dict[str, Callable[[Data, Path], dict[str, Any]]] = {"classify": _classify, "train": _train}
    if unknown := [name for name in asked.parts if name not in known]:
        parser.error(f"got {', '.join(unknown)}, wanted {', '.join(known)}")
    data = open_data(os.environ.get("FRUITCNN_FRUITS360"), asked.work.absolute())
    data.folder.mkdir(parents=True, exist_ok=True)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in asked.parts or known:
        with tempfile.TemporaryDirectory(dir=data.folder) as scratch:
            found[name] = {"machine": machine(), "load": os.getloadavg()[0], **known[name](data, Path(scratch))}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def _classify(data: Data, scratch: Path) -> dict[str, Any]:
    model, small, large, tiny = data.model(), *map(data.pictures, (_SMALL, _LARGE, _TINY_PARTS))

    def run(images: Path, name: str, part_images: int = _PART_IMAGES) -> Job:
        return classify(model, images, scratch / name, part_images)

    with nodes([1]), neighbour("classify", model, small, scratch / "neighbour"):
        run(tiny, "warm-up")
        few, many = run(small, "few"), run(large, "many")
        whole, cut = run(tiny, "whole", _TINY_PARTS), run(tiny, "cut", 1)
    with nodes([1, 1]):
        two = run(large, "two")
    with nodes([2]):
        one = run(large, "one")
    planning = command("classify", model=model, images=data.listing(_NAMES), predictions=scratch / "plan")
    planned = run_process([*planning, "--dry-run"])
    per_image = (many.work_seconds - few.work_seconds) / (_LARGE - _SMALL)
    # A part of one picture: all that is not the picture. It holds the commit, which a larger part hides.
    per_part = (cut.work_seconds - whole.work_seconds) / _TINY_PARTS
    costs = ClassifyCosts(
        start_seconds=max(0.0, few.work_seconds - _SMALL * per_image),
        listing_per_second=_NAMES / planned.seconds,
        driver_seconds_per_part=per_part,
        core_seconds_per_image=per_image - per_part / _PART_IMAGES,
        commit_seconds=0,
    )
    predicted = simulate_classify(
        costs.model_copy(update={"listing_per_second": 1e12, "requests_per_image": 0}),
        Cluster(2, 1),
        _LARGE,
        _PART_IMAGES,
    )
    print("\nclassify: costs " + _worded(costs.model_dump()))
    print(f"before the first part, Ray's start and listing: {many.start_seconds:.1f} s of a job")
    _compare("classify, one node of 2 CPUs", one, "two nodes of 1 CPU", two)
    print(f"classify, {_LARGE:,} images: one node of 1 CPU beside a busy core {many.work_seconds:.1f} s")
    _predicted(f"classify, two nodes of 1 CPU, {_LARGE:,} images", predicted.seconds, two.work_seconds)
    archives = _forecast(costs, "in archives", 0.01)
    objects = _forecast(costs, "as objects of one prefix", 1)
    jobs = {"one_node": one, "two_nodes": two, "one_cpu": many}
    return {
        "costs": costs.model_dump(),
        "jobs": {name: job._asdict() for name, job in jobs.items()},
        "two_nodes_predicted_seconds": predicted.seconds,
        "archives": {num: each._asdict() for num, each in archives.items()},
        "objects": {num: each._asdict() for num, each in objects.items()},
    }


def _forecast(costs: ClassifyCosts, name: str, requests: float) -> dict[int, Forecast]:
    print(f"\n{_IMAGES:,} pictures {name}, nodes of {_CORES} such cores, parts of {_PART_IMAGES:,} (extrapolated)")
    print(f"{'nodes':>6} {'hours':>8} {'images/s':>10}  busy")
    given = costs.model_copy(update={"requests_per_image": requests})
    forecast = {num: simulate_classify(given, Cluster(num, _CORES), _IMAGES, _PART_IMAGES) for num in _NODES}
    for num, each in forecast.items():
        busy = sorted(each.busy.items(), key=lambda item: -item[1])[:3]
        shares = ", ".join(f"{name} {share:.0%}" for name, share in busy)
        print(f"{num:>6} {each.seconds / 3600:>8.2f} {each.images_per_second:>10,.0f}  {shares}")
    return forecast


def _train(data: Data, scratch: Path) -> dict[str, Any]:
    dataset = data.dataset()

    def run(name: str, num_workers: int, batch: int = _LARGE_BATCH) -> Job:
        return train(dataset, scratch / name, num_workers, _TRAINED, batch)

    with nodes([1]), neighbour("train", data.training_pixels(), _LARGE_BATCH // 2):
        small, large = run("small", 1, _BATCH), run("large", 1)
    with nodes([1, 1]):
        small_two, two = run("small-two", 2, _BATCH), run("two", 2)
    with nodes([2]):
        one, one_of_two = run("one", 1), run("one-of-two", 2)
    timed = {_BATCH: small, _LARGE_BATCH: large}
    per_image, step_seconds = row_and_step(
        {size: job.work_seconds / job.result["num_steps"] for size, job in timed.items()}
    )
    all_reduce = small_two.result["seconds"]["all_reduce"] / small_two.result["num_steps"]
    gradient_bytes = _gradient_bytes(data)
    costs = TrainCosts(
        start_seconds=0,
        core_seconds_per_image=per_image,
        step_seconds=step_seconds,
        gradient_bytes=gradient_bytes,
        group_seconds=all_reduce,
        link_seconds=0,
        link_bytes_per_second=1e12,  # on one machine there is no network
    )
    predicted = forecast_train(costs, Cluster(2, 1), two.result["images_seen"], _LARGE_BATCH)
    print("\ntrain: costs " + _worded(costs.model_dump()))
    print(f"before the first step: {two.result['seconds']['start']:.1f} s")
    _compare("train, one worker of 2 CPUs on one node", one, "two workers on two nodes", two)
    _compare("train, two workers on one node", one_of_two, "two workers on two nodes", two)
    _predicted(f"train, two nodes, batch {_LARGE_BATCH}, all-reduce from batch {_BATCH}", predicted.seconds,
               two.work_seconds)  # fmt: skip
    jobs = {"one_cpu": large, "one_node": one, "one_node_two_workers": one_of_two, "two_nodes": two}
    return {
        "costs": costs.model_dump(),
        "jobs": {name: {"seconds": job.seconds, "work_seconds": job.work_seconds} for name, job in jobs.items()},
        "two_nodes_predicted_seconds": predicted.seconds,
    }


def _gradient_bytes(data: Data) -> int:
    from fruitcnn.runtimes import import_tensorflow

    import_tensorflow()  # without its greeting
    from fruitcnn.models import build_model

    about = json.loads((data.model() / "model.json").read_text())
    model = build_model(about["architecture"], tuple(about["input_px"]), len(about["labels"]), seed=0)
    return 4 * sum(math.prod(variable.shape) for variable in model.trainable_variables)


def _compare(name: str, one: Job, other: str, two: Job) -> None:
    print(f"{name} {one.work_seconds:.1f} s, {other} {two.work_seconds:.1f} s: ratio "
          f"{two.work_seconds / one.work_seconds:.2f}; whole jobs {one.seconds:.1f} and {two.seconds:.1f} s: "
          f"{two.seconds / one.seconds:.2f}")  # fmt: skip


def _predicted(name: str, predicted: float, took: float) -> None:
    print(f"{name}: predicted {predicted:.1f} s, took {took:.1f} s ({predicted / took - 1:+.0%})")


def _worded(costs: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in costs.items())


if __name__ == "__main__":
    main()
