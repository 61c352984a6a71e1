"""What all cores of this machine reach that only read and decode, only run the model, or do both in turn.

    python -m bench.sides.limits MODEL.onnx IMAGES

One process a core, so that no interpreter is shared; start-up, listing and results are not counted.
"""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable

from bench.sides.ceiling import BATCH, decoded, listed, model

_SECONDS = 1.0


def main(onnx_file: str, images: str) -> None:
    """Measure the three."""
    names = listed(images)
    pictures = decoded(names[:BATCH])
    starts = range(0, max(1, len(names) - BATCH), BATCH)

    def decode() -> Callable[[int], int]:
        return lambda turn: len(decoded(names[starts[turn % len(starts)] :][:BATCH]))

    def infer() -> Callable[[int], int]:
        answer = model(onnx_file)
        return lambda _: len(answer(pictures))

    def both() -> Callable[[int], int]:
        answer = model(onnx_file)
        return lambda turn: len(answer(decoded(names[starts[turn % len(starts)] :][:BATCH])))

    print(json.dumps({"decode": _rate(decode), "infer": _rate(infer), "both": _rate(both)}))


def _rate(make: Callable[[], Callable[[int], int]]) -> float:
    """Pictures a second of all cores together."""
    num, context = len(os.sched_getaffinity(0)), multiprocessing.get_context("fork")
    barrier, rates = context.Barrier(num), context.SimpleQueue()

    def work() -> None:
        once, done, turn = make(), 0, 0
        once(0)
        barrier.wait()
        started = time.perf_counter()
        while (seconds := time.perf_counter() - started) < _SECONDS:
            done, turn = done + once(turn), turn + 1
        rates.put(done / seconds)

    processes = [context.Process(target=work) for _ in range(num)]
    for process in processes:
        process.start()
    found = [rates.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(found)


if __name__ == "__main__":
    main(*sys.argv[1:])
