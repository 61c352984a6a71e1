"""A sample of the inputs, tried for a few seconds -> what the whole run will take. For `jobs.classify --dry-run`.

Everything runs as in an actor, in this process. The share of each stage is the CPU time of one thread over a few
batches; the rate is that of one process, taken as often as there will be processes.
"""

import functools
import itertools
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import synchronize
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from fruitcnn import fetch, images, scaling
from fruitcnn.infer import Model, Workers, open_models
from fruitcnn.inputs import Input
from fruitcnn.orders import Options
from fruitcnn.wording import plural

SECONDS = 20.0
SAMPLE_INPUTS = 10_000

START_SECONDS = 1.5
"""Imports, opening the model, and the report at the end."""

NODES = (2, 10, 100)

_STAGE_INPUTS = 128
_STAGE_SECONDS = 4.0
_CHUNK_SECONDS = 0.25
"""A chunk that takes so long is timed well enough; longer ones would overrun what the whole trial may take."""
_START_PATIENCE_SECONDS = 30.0
_T = TypeVar("_T")


class Estimate(NamedTuple):
    """What a run over num_inputs will take on this machine."""

    num_tried: int
    images_per_second: float
    total_seconds: float
    memory_bytes: int
    stage_seconds: dict[str, float]
    """Of one thread, per input: read, decode, model."""

    @property
    def bottleneck(self) -> str:
        """The stage that takes longest."""
        return max(self.stage_seconds, key=lambda stage: self.stage_seconds[stage])


def forecast(
    num_inputs: int,
    listing_seconds: float,
    sample: Sequence[Input],
    models: Sequence[Model],
    options: Options,
    num_processes: int,
    seconds: float = SECONDS,
) -> Estimate:
    """Try the sample for at most `seconds`; its inputs stand for all num_inputs, which took so long to list."""
    stages = _stages(sample[:_STAGE_INPUTS], models[0], options)
    workers = Workers(models, options, remembers=False)
    size = _chunk_inputs(workers, sample, options)
    started_seconds, num_tried = time.monotonic(), 0
    for first in range(0, len(sample), size):
        num_tried += len(workers.rows(sample[first : first + size]).ids)
        if time.monotonic() - started_seconds > seconds:
            break
    rate = num_processes * num_tried / max(1e-6, time.monotonic() - started_seconds)
    total_seconds = START_SECONDS + listing_seconds + num_inputs / rate
    memory_bytes = num_processes * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Estimate(num_tried, rate, total_seconds, memory_bytes, stages)


def _chunk_inputs(workers: Workers, sample: Sequence[Input], options: Options) -> int:
    """How many inputs to try between two looks at the clock: few large photographs, a part of small pictures."""
    size, most = options.num_threads, options.batch_size * options.num_threads * 4  # a part, more or less
    workers.rows(sample[:size])  # what is done once
    while size < most:
        _, seconds = _timed(functools.partial(workers.rows, sample[:size]), time.monotonic)
        if seconds > _CHUNK_SECONDS:
            break
        size = min(most, size * 4)
    return size


@contextmanager
def companions(number: int, model_uri: str, runtime: str, sample: Sequence[Input], options: Options) -> Iterator[None]:
    """So many processes that classify the sample over and over, beside a forecast.

    CPUs that are all at work are slower than one alone: two of one core share it, and all share caches and memory.
    """
    spawning = multiprocessing.get_context("spawn")
    ready = spawning.Semaphore(0)
    arguments = model_uri, runtime, sample, options, ready
    others = [spawning.Process(target=_classify_on, args=arguments, daemon=True) for _ in range(number)]
    try:
        for process in others:
            process.start()
        for _ in others:
            ready.acquire(timeout=_START_PATIENCE_SECONDS)
        yield
    finally:
        for process in others:
            process.kill()
            process.join()


def _classify_on(
    model_uri: str, runtime: str, sample: Sequence[Input], options: Options, ready: synchronize.Semaphore
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to answer
    workers = Workers(open_models(model_uri, runtime, options.num_threads), options, remembers=False)
    workers.rows(sample[: options.num_threads])
    ready.release()
    for first in itertools.cycle(range(0, len(sample), options.batch_size)):
        workers.rows(sample[first : first + options.batch_size])


def describe(found: Estimate, num_processes: int) -> dict[str, Any]:
    """Name -> value, for a person."""
    shares = ", ".join(f"{stage} {seconds * 1e6:,.0f} us" for stage, seconds in found.stage_seconds.items())
    processes = plural(num_processes, "process")
    return {
        "tried": f"{plural(found.num_tried, 'input')}, {found.images_per_second:,.0f}/s with {processes}",
        "predicted time": f"{found.total_seconds:,.0f} s on this machine",
        "predicted memory": f"{found.memory_bytes / 2**20:,.0f} MiB",
        "bottleneck": f"{found.bottleneck} ({shares} a picture and thread)",
    }


def on_nodes(
    found: Estimate, num_inputs: int, num_parts: int, listing_seconds: float, num_processes: int, is_stored: bool
) -> dict[str, str]:
    """ "10 nodes" -> what they would take, each a machine like this one; is_stored: an object is fetched for each."""
    costs = scaling.ClassifyCosts(
        listing_per_second=num_inputs / listing_seconds,
        core_seconds_per_image=num_processes / found.images_per_second,
        requests_per_image=int(is_stored),
    )
    cores, part_images = len(os.sched_getaffinity(0)), -(-num_inputs // num_parts)
    return {
        f"{nodes} nodes": scaling.simulate_classify(costs, scaling.Cluster(nodes, cores), num_inputs, part_images).words
        for nodes in NODES
    }


def _stages(sample: Sequence[Input], model: Model, options: Options) -> dict[str, float]:
    """Seconds per input of reading (waiting included), decoding and the model, one after the other in one thread.

    One file is held at a time, and no more are taken than there is time for.
    """
    Image.init()  # what a process does once, with the first picture that is no JPEG
    began = asked = time.perf_counter()
    num, read_seconds, decode_seconds, pictures = 0, 0.0, 0.0, []
    for data in _files(sample):
        read_seconds += time.perf_counter() - asked
        if data:
            pixels, seconds = _timed(functools.partial(_decode, data, model, options), time.thread_time)
            decode_seconds += seconds
            pictures += [] if pixels is None else [pixels]
        num, asked = num + 1, time.perf_counter()
        if asked - began > _STAGE_SECONDS:
            break
    model_seconds = 0.0
    if pictures:
        batch = np.stack(pictures)
        model.answer(batch)
        _, model_seconds = _timed(lambda: model.answer(batch), time.perf_counter)
    return {"read": read_seconds / num, "decode": decode_seconds / num, "model": model_seconds / num}


def _files(sample: Sequence[Input]) -> Iterator[bytes | None]:
    for start, stop in fetch.chunks(sample, 0, len(sample)):
        yield from (found.data for found in fetch.fetch(sample[start:stop]))


def _decode(data: bytes, model: Model, options: Options) -> images.Pixels | None:
    try:
        return images.decode(data, model.input_px, options.max_pixels).pixels
    except images.ImageError:
        return None


def _timed(work: Callable[[], _T], clock: Callable[[], float]) -> tuple[_T, float]:
    started = clock()
    found = work()
    return found, clock() - started
