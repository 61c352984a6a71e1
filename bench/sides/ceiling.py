"""What this machine allows: one process, threads that read and decode, OpenVINO; no Ray, no books, no checks.

    python -m bench.sides.ceiling MODEL.onnx IMAGES [PLACE]        PLACE is for the sides that write; here nothing is

Also says what decoding alone and inference alone reach, and what their sum allows on these cores.
"""

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

_BATCH = 256
_AHEAD = 8
_PX = 32


def main(onnx_file: str, images: str, _place: str = "") -> None:
    """Time the whole, then its two halves on as many pictures as one second takes or so."""
    import openvino

    model = openvino.Core().compile_model(onnx_file, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT"})
    names = [os.path.join(folder, name) for folder, _, files in os.walk(images) for name in files]  # noqa: PTH118
    batches = [names[start : start + _BATCH] for start in range(0, len(names), _BATCH)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        model(_decoded(batches[0]))
        seconds, num_images = _timed(lambda: _classify(batches, model, pool))
        few = batches[:8]
        decode_seconds, num_decoded = _timed(lambda: sum(len(done) for done in pool.map(_decoded, few)))
        pixels = _decoded(few[0])
        infer_seconds, num_inferred = _timed(lambda: sum(len(model(pixels)[0]) for _ in few))
    each_seconds = decode_seconds / num_decoded + infer_seconds / num_inferred
    print(json.dumps({
        "num_images": num_images,
        "seconds": seconds,
        "decode_per_second": num_decoded / decode_seconds,
        "infer_per_second": num_inferred / infer_seconds,
        "sum_allows_per_second": 1 / each_seconds,
    }))  # fmt: skip


def _classify(batches: Sequence[list[str]], model: Any, pool: ThreadPoolExecutor) -> int:
    waiting: deque[Future[np.ndarray]] = deque()
    num_images = 0
    for batch in [*batches, *[None] * _AHEAD]:
        if batch:
            waiting.append(pool.submit(_decoded, batch))
        if waiting and (len(waiting) > _AHEAD or not batch):
            num_images += len(model(waiting.popleft().result())[0].argmax(1))
    return num_images


def _decoded(names: Sequence[str]) -> np.ndarray:
    import cv2
    import simplejpeg

    pixels = np.empty((len(names), _PX, _PX, 3), np.uint8)
    for number, name in enumerate(names):
        found = simplejpeg.decode_jpeg(Path(name).read_bytes(), min_height=_PX, min_width=_PX)
        pixels[number] = cv2.resize(found, (_PX, _PX), interpolation=cv2.INTER_AREA)
    return pixels


def _timed(work: Callable[[], int]) -> tuple[float, int]:
    started = time.perf_counter()
    done = work()
    return time.perf_counter() - started, done


if __name__ == "__main__":
    main(*sys.argv[1:])
