"""What one process allows: threads that read, decode and run OpenVINO; no Ray, no books, no checks.

    python -m bench.sides.ceiling MODEL.onnx IMAGES [PLACE]        PLACE is for the sides that write; here nothing is

Each thread takes a batch from its first byte to its labels, with a model of its own that uses one core and is compiled
for calls of so many rows: of the ways that were tried the fastest (bench/README.md).
"""

import json
import os
import queue
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

BATCH = 256
_PX = 32
_ROWS = 32
_READ_BYTES = 1 << 16  # room for 16 MB, made for each file of 5 KB, took 24 us in place of 5


def main(onnx_file: str, images: str, _place: str = "") -> None:
    """Answer every picture and throw the answers away."""
    names = listed(images)
    num_threads = len(os.sched_getaffinity(0))
    models: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for _ in range(num_threads):
        answer = model(onnx_file)
        answer(np.zeros((1, _PX, _PX, 3), np.uint8))  # the first call of a process, made by two threads at once, hangs
        models.put(answer)

    def work(start: int) -> int:
        pixels, answer = decoded(names[start : start + BATCH]), models.get()
        try:
            return len(answer(pixels))
        finally:
            models.put(answer)

    with ThreadPoolExecutor(num_threads) as pool:
        print(json.dumps({"num_images": sum(pool.map(work, range(0, len(names), BATCH)))}))


def listed(folder: str) -> list[str]:
    """The files under a folder."""
    return [os.path.join(where, name) for where, _, files in os.walk(folder) for name in files]  # noqa: PTH118


def model(onnx_file: str) -> Callable[[np.ndarray], np.ndarray]:
    """A function from pixels (N, 32, 32, 3) to labels (N,), on one core."""
    import openvino

    core = openvino.Core()
    network = core.read_model(onnx_file)
    network.reshape([_ROWS, _PX, _PX, 3])
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False}
    settings["INFERENCE_PRECISION_HINT"] = "f32"
    request = core.compile_model(network, "CPU", settings).create_infer_request()

    def answer(pixels: np.ndarray) -> np.ndarray:
        filled = np.concatenate([pixels, np.zeros((-len(pixels) % _ROWS, *pixels.shape[1:]), np.uint8)])
        calls = [filled[start : start + _ROWS] for start in range(0, len(filled), _ROWS)]
        return np.concatenate([request.infer([rows], share_inputs=True)[0].argmax(1) for rows in calls])[: len(pixels)]

    return answer


def decoded(names: Sequence[str]) -> np.ndarray:
    """Pixels (N, 32, 32, 3) of JPEG files."""
    import cv2
    import simplejpeg

    pixels = np.empty((len(names), _PX, _PX, 3), np.uint8)
    for number, name in enumerate(names):
        found = simplejpeg.decode_jpeg(_read(name), min_height=_PX, min_width=_PX)
        cv2.resize(found, (_PX, _PX), dst=pixels[number], interpolation=cv2.INTER_LINEAR)
    return pixels


def _read(name: str) -> bytes:
    file = os.open(name, os.O_RDONLY)
    data = os.read(file, _READ_BYTES)
    while len(data) % _READ_BYTES == 0 and (more := os.read(file, _READ_BYTES)):
        data += more
    os.close(file)
    return data


if __name__ == "__main__":
    main(*sys.argv[1:])
