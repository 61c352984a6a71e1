"""Ray clusters of several nodes on this machine, and jobs timed on them. For scaling.py."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bench.measure import ROOT, BenchError, environment, run_process

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


@contextmanager
def neighbour(*arguments: object) -> Iterator[None]:
    """Keep the core that a second node of one CPU would have as busy as that node would: bench.sides.neighbour.

    BenchError where there is no second core, or where it ended before its time.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise BenchError("wanted two cores: one for a node, one for its neighbour")
    argv = [sys.executable, "-m", "bench.sides.neighbour", *map(str, arguments)]
    process = subprocess.Popen(argv, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True,
                               preexec_fn=lambda: os.sched_setaffinity(0, cores[1:2]))  # fmt: skip
    try:
        assert process.stdout
        if process.stdout.readline() != "busy\n":
            raise BenchError(f"{' '.join(argv)} ended before it was busy")
        yield
        if process.poll() is not None:
            raise BenchError(f"{' '.join(argv)} ended with {process.returncode} while it was needed")
    finally:
        process.kill()
        process.wait()


def command(job: str, **arguments: Any) -> list[str]:
    """The command line of a job."""
    flags = [text for name, value in arguments.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    return [sys.executable, "-m", f"jobs.{job}", *flags]


def classify(model: Path, images: Path, out: Path, part_images: int) -> Job:
    """Classify a folder on the cluster of `nodes`."""
    argv = command("classify", model=model, images=images, predictions=out, part_images=part_images)
    done = run_process(argv, _KEPT)
    timing = json.loads((out / "manifest.json").read_text())["timing"]
    return _said(out, Job(done.seconds, timing["classify_seconds"]))


def train(dataset: Path, out: Path, num_workers: int, images: int, batch: int) -> Job:
    """Train on the cluster of `nodes`, one validation at the end, no checkpoint before it."""
    length = {"images_seen": images, "max_epochs": 1_000, "global_batch_size": batch, "num_evaluations": 1}
    argv = command("train", dataset=dataset, run=out, num_workers=num_workers, checkpoint_seconds=600, **length)
    done = run_process(argv, _KEPT)
    result = json.loads((out / "result.json").read_text())
    # The first step holds the compilation, which is a cost of the start.
    work_seconds = result["seconds"]["training"] - result["start_seconds"]["first_step"]
    return _said(out, Job(done.seconds, work_seconds, result))


def _said(out: Path, job: Job) -> Job:
    print(f"{out.name}: {job.seconds:.1f} s, of them work {job.work_seconds:.1f} s", flush=True)
    return job
