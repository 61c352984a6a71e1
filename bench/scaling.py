"""Where more nodes stop helping: classify's stage costs, measured here, played on 1 to 1,000 nodes.

    python bench/scaling.py [--work FOLDER]

Each "node" of the measurement is a Ray node of one CPU on this machine, its actor held to one thread; no more of them
than cores. The prediction for two nodes stands beside what two nodes took. Beyond that it is extrapolation: the
network between hosts and other users of the store are not in it.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bench.data import open_data
from bench.machine import machine
from bench.measure import ROOT, run_process
from fruitcnn.scaling import ClassifyCosts, Cluster, Forecast, simulate_classify

_SMALL, _LARGE = 5_000, 20_000
_PART_IMAGES = 512
_TINY_PARTS = 600
_NODES = (1, 2, 10, 30, 100, 300, 1_000)
_IMAGES, _CORES = 100_000_000, 16
_NAMES = 200_000


class Job(NamedTuple):
    """What one run of jobs.classify took."""

    seconds: float
    on_ray_seconds: float


def main() -> None:
    """Measure, compare two nodes with their prediction, print the forecast, write bench/scaling.json."""
    parser = argparse.ArgumentParser("bench/scaling.py", description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "work" / "bench", help="where the data is made and kept")
    data = open_data(os.environ.get("FRUITCNN_FRUITS360"), parser.parse_args().work.absolute())
    model, small, large = data.model(), data.pictures(_SMALL), data.pictures(_LARGE)
    tiny, listing = data.pictures(_TINY_PARTS), data.listing(_NAMES)
    with tempfile.TemporaryDirectory(dir=data.folder) as scratch:
        with _nodes(1):
            _classify(model, small, Path(scratch) / "warm-up")
            few = _classify(model, small, Path(scratch) / "few")
            many = _classify(model, large, Path(scratch) / "many")
            whole = _classify(model, tiny, Path(scratch) / "whole", part_images=_TINY_PARTS)
            cut = _classify(model, tiny, Path(scratch) / "cut", part_images=1)
        with _nodes(2):
            measured = _classify(model, large, Path(scratch) / "two")
    planned = run_process([*_command(model, listing, Path(scratch) / "plan", _PART_IMAGES), "--dry-run"])
    costs = _costs(few, many, whole, cut, _NAMES / planned.seconds)
    predicted = simulate_classify(costs, Cluster(2, 1), _LARGE, _PART_IMAGES)
    at_hundred = {nodes: _at(costs, nodes) for nodes in _NODES}
    _print(costs, predicted, measured, at_hundred)
    found = {
        "machine": machine(),
        "costs": costs.model_dump(),
        "two_nodes": {"predicted_seconds": predicted.seconds, "measured_seconds": measured.on_ray_seconds},
        "forecast": {nodes: forecast._asdict() for nodes, forecast in at_hundred.items()},
    }
    (ROOT / "bench" / "scaling.json").write_text(json.dumps(found, indent=1) + "\n")


def _costs(few: Job, many: Job, whole: Job, cut: Job, names_per_second: float) -> ClassifyCosts:
    """Stage costs out of differences, in which everything else cancels out."""
    per_image = (many.on_ray_seconds - few.on_ray_seconds) / (_LARGE - _SMALL)
    return ClassifyCosts(
        start_seconds=max(0.0, few.on_ray_seconds - _SMALL * per_image),
        listing_per_second=names_per_second,
        # A part of one picture: all that is not the picture. It holds the commit, which a larger part hides.
        driver_seconds_per_part=(cut.on_ray_seconds - whole.on_ray_seconds) / _TINY_PARTS,
        core_seconds_per_image=per_image,
        commit_seconds=0,
    )


def _at(costs: ClassifyCosts, num_nodes: int) -> Forecast:
    return simulate_classify(costs, Cluster(num_nodes, _CORES), _IMAGES, part_images=2_048)


def _print(costs: ClassifyCosts, predicted: Forecast, measured: Job, forecasts: dict[int, Forecast]) -> None:
    print("measured costs: " + ", ".join(f"{name} {value:.3g}" for name, value in costs.model_dump().items()))
    took = measured.on_ray_seconds
    off = predicted.seconds / took - 1
    print(f"two nodes, {_LARGE:,} images: predicted {predicted.seconds:.1f} s, took {took:.1f} s ({off:+.0%})")
    print(f"\n{_IMAGES:,} objects in S3, nodes of {_CORES} such cores, parts of 2,048 (extrapolated)")
    print(f"{'nodes':>6} {'hours':>8} {'images/s':>10}  bottleneck (busy)")
    for nodes, forecast in forecasts.items():
        busy = ", ".join(
            f"{name} {share:.0%}" for name, share in sorted(forecast.busy.items(), key=lambda each: -each[1])[:3]
        )
        print(f"{nodes:>6} {forecast.seconds / 3600:>8.2f} {forecast.images_per_second:>10,.0f}  {busy}")


@contextmanager
def _nodes(num: int) -> Iterator[None]:
    """A Ray cluster of `num` nodes of one CPU; RAY_ADDRESS names it to the jobs started inside."""
    from ray.cluster_utils import Cluster as RayCluster

    cluster = RayCluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(num - 1):
            cluster.add_node(num_cpus=1)
        os.environ["RAY_ADDRESS"] = cluster.address
        yield
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        cluster.shutdown()


def _command(model: Path, images: Path, out: Path, part_images: int) -> list[str]:
    given: dict[str, Any] = {"model": model, "images": images, "predictions": out, "part-images": part_images}
    return [
        sys.executable,
        "-m",
        "jobs.classify",
        *(text for name, value in given.items() for text in (f"--{name}", str(value))),
    ]


def _classify(model: Path, images: Path, out: Path, part_images: int = _PART_IMAGES) -> Job:
    done = run_process(_command(model, images, out, part_images), ("RAY_ADDRESS",))
    timing = json.loads((out / "manifest.json").read_text())["timing"]
    return Job(done.seconds, timing["classify_seconds"])


if __name__ == "__main__":
    main()
