"""What a worker tells while it works: metrics for Prometheus and one JSON line per part or window. In Ray actors only.

Every node serves the metrics (`ray_fruitcnn_*`, by job, node and process); the lines are in the worker's own log,
session_latest/logs/worker-*.err. Outside an actor, in tests and single processes, nothing is written.
"""

import functools
import json
import sys
import time
from typing import Any

_STEP_SECONDS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
_PART_SECONDS = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 300.0]


def part_done(run: str, part: int, attempt: int, num_images: int, num_rejected: int, seconds: float) -> None:
    """A part of a classification was committed, by its `attempt`th try (from 1) in this actor."""
    if _is_actor():
        _count("images", "Pictures worked on.", num_images, "classify")
        _count("rejected", "Pictures that did not become a prediction.", num_rejected, "classify")
        _histogram("part_seconds", "From the first read of a part to its commit.", _PART_SECONDS, seconds, "classify")
        _say("part", run=run, part=part, attempt=attempt, images=num_images, rejected=num_rejected, seconds=seconds)


def part_failed(run: str, part: int, attempt: int, error: str) -> None:
    """A try of a part came to nothing; it is tried again, or the job ends."""
    if _is_actor():
        _count("retries", "Tries that came to nothing.", 1, "classify")
        _say("part_failed", run=run, part=part, attempt=attempt, error=error)


def window_done(
    run: str, attempt: int, rank: int, step: int, num_steps: int, num_images: int, seconds: float, waited_seconds: float
) -> None:
    """`num_steps` training steps ended at `step`: this worker's pictures, its time, and of it that without a batch.

    `attempt` is the start of the worker group, from 1.
    """
    if _is_actor() and num_steps:
        step_seconds = (seconds - waited_seconds) / num_steps
        _count("images", "Pictures worked on.", num_images, "train")
        _count("input_wait_seconds", "Time a worker had no batch to work on.", waited_seconds, "train")
        _histogram("step_seconds", "A training step without its wait for input.", _STEP_SECONDS, step_seconds, "train")
        place = {"run": run, "attempt": attempt, "rank": rank, "step": step}
        _say("steps", **place, images=num_images, seconds=seconds, wait=waited_seconds)


def group_restarted(run: str, attempt: int) -> None:
    """The workers of a training run were started for the `attempt`th time (from 2), after the loss of one."""
    if _is_actor():
        _count("retries", "Tries that came to nothing.", 1, "train")
        _say("group_restarted", run=run, attempt=attempt)


@functools.cache
def _is_actor() -> bool:
    ray = sys.modules.get("ray")
    return bool(ray and ray.is_initialized() and ray.get_runtime_context().get_actor_id())


def _count(name: str, description: str, value: float, job: str) -> None:
    if value > 0:  # Ray takes no zero
        _counter(name, description).inc(value, {"job": job})


@functools.cache
def _counter(name: str, description: str) -> Any:
    from ray.util.metrics import Counter

    return Counter(f"fruitcnn_{name}", description, ("job",))


def _histogram(name: str, description: str, boundaries: list[float], value: float, job: str) -> None:
    _made_histogram(name, description, tuple(boundaries)).observe(value, {"job": job})


@functools.cache
def _made_histogram(name: str, description: str, boundaries: tuple[float, ...]) -> Any:
    from ray.util.metrics import Histogram

    return Histogram(f"fruitcnn_{name}", description, list(boundaries), ("job",))


def _say(event: str, **fields: Any) -> None:
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in fields.items()}
    print(json.dumps({"time": round(time.time(), 3), "event": event, **rounded}), file=sys.stderr, flush=True)
