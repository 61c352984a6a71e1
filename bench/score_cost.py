"""What the score `unlike` costs: a frozen model with and without it, in turn, in the runtimes that jobs.classify uses.

    python -m bench.score_cost --model work/model

The model without it ends at the probabilities; nothing of the score is left in it. Both answer calls of as many
pictures as one core of jobs.classify gives to OpenVINO, with one thread, A B A B; a round's ratio is with / without.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fruitcnn.runtimes import _CACHED_ROWS, INPUT, ONNX, OUTPUT, import_onnxruntime

Call = Callable[[], Any]


def main() -> None:
    """Print a line for each runtime."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a frozen model")
    parser.add_argument("--rounds", type=int, default=1000, help="calls of each")
    parser.add_argument("--rows", type=int, default=_CACHED_ROWS, help="pictures in a call")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        without = Path(folder) / ONNX
        pixels = _without_score(given.model / ONNX, without, given.rows)
        for name, opened in (("OpenVINO", _openvino), ("ONNX Runtime", _onnxruntime)):
            with_score, bare = (opened(file, pixels) for file in (given.model / ONNX, without))
            print(f"{name:12s} {compare(with_score, bare, given)}")


def compare(with_score: Call, without: Call, given: argparse.Namespace) -> str:
    """Call both in turn; say what a call takes and the ratio."""
    seconds = np.array([[_seconds(with_score), _seconds(without)] for _ in range(given.rounds + 20)][20:])
    ratios = seconds[:, 0] / seconds[:, 1]
    fastest, median = seconds.min(axis=0) * 1e6, np.median(seconds, axis=0) * 1e6
    return (
        f"with / without the score: {np.median(ratios):.3f} (middle half {np.quantile(ratios, 0.25):.3f}-"
        f"{np.quantile(ratios, 0.75):.3f}) of {given.rounds:,} rounds; {given.rows} pictures in {median[0]:,.0f} "
        f"against {median[1]:,.0f} us, "
        f"at best {fastest[0]:,.0f} against {fastest[1]:,.0f} ({fastest[0] / fastest[1]:.3f})"
    )


def _seconds(call: Call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _without_score(source: Path, target: Path, num_rows: int) -> npt.NDArray[np.uint8]:
    """Write the part of the model that the probabilities need; return pictures for it."""
    import onnx

    onnx.utils.extract_model(str(source), str(target), [INPUT], [OUTPUT])
    height, width = (each.dim_value for each in onnx.load(source).graph.input[0].type.tensor_type.shape.dim[1:3])
    return np.random.default_rng(0).integers(0, 256, (num_rows, height, width, 3), dtype=np.uint8)


def _openvino(file: Path, pixels: npt.NDArray[np.uint8]) -> Call:
    """As fruitcnn.runtimes compiles it for full calls."""
    import openvino

    core = openvino.Core()
    model = core.read_model(str(file))
    model.reshape(list(pixels.shape))
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer([pixels], share_inputs=True)


def _onnxruntime(file: Path, pixels: npt.NDArray[np.uint8]) -> Call:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {INPUT: pixels})


if __name__ == "__main__":
    main()
