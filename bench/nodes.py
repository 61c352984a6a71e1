"""Ray clusters of several nodes on this machine, and jobs timed on them. For scaling.py."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bench.measure import run_process

_KEPT = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")


class Job(NamedTuple):
    """What one run of a job took: the whole process, its work once Ray was up, and (train) what its result says."""

    seconds: float
    work_seconds: float
    result: dict[str, Any] = {}

    @property
    def start_seconds(self) -> float:
        """From the command to the work, and what comes after it."""
        return self.seconds - self.work_seconds


@contextmanager
def nodes(cpus: Sequence[int]) -> Iterator[None]:
    """A Ray cluster: a head that does no work, and a node for each of `cpus`, held to so many cores of its own.

    The environment names it to the jobs started inside.
    """
    from cluster.local import local_cluster

    with local_cluster({}, cpus) as cluster:
        known = {"RAY_ADDRESS": cluster.gcs_address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token}
        os.environ.update(known)
        try:
            yield
        finally:
            for name in known:
                del os.environ[name]


def command(job: str, **arguments: Any) -> list[str]:
    """The command line of a job."""
    flags = [text for name, value in arguments.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    return [sys.executable, "-m", f"jobs.{job}", *flags]


def classify(model: Path, images: Path, out: Path, part_images: int) -> Job:
    """Classify a folder on the cluster of `nodes`."""
    argv = command("classify", model=model, images=images, predictions=out, part_images=part_images)
    done = run_process(argv, _KEPT)
    timing = json.loads((out / "manifest.json").read_text())["timing"]
    return Job(done.seconds, timing["classify_seconds"])


def train(dataset: Path, out: Path, num_workers: int, images: int, batch: int) -> Job:
    """Train on the cluster of `nodes`, one validation at the end, no checkpoint before it."""
    length = {"images_seen": images, "max_epochs": 1_000, "global_batch_size": batch, "num_evaluations": 1}
    argv = command("train", dataset=dataset, run=out, num_workers=num_workers, checkpoint_seconds=600, **length)
    done = run_process(argv, _KEPT)
    result = json.loads((out / "result.json").read_text())
    return Job(done.seconds, result["seconds"]["training"], result)
