"""model.onnx -> model.int8.onnx: convolutions in 8-bit integers, a quarter of the size and faster; called by export.

What is quantised was chosen by trying, on the 120 classes of Fruits-360: weights by channel, ranges measured on
training pictures, the first convolution (which sees the picture) and everything behind the last (the classifier, the
score) left in float32. Weights have 7 bits, since processors without VNNI overflow on 8.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fruitcnn.runtimes import INPUT, INT8, ONNX

_NUM_PICTURES = 512
_ROWS_PER_CALL = 64


def write_int8(folder: Path, familiar: npt.NDArray[np.uint8]) -> None:
    """Write model.int8.onnx beside model.onnx in a local folder. familiar: training pictures, uint8 (N, H, W, 3)."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    number = min(len(familiar), _NUM_PICTURES)
    chosen = familiar[np.arange(number) * len(familiar) // number]
    first = next(node.name for node in onnx.load(folder / ONNX).graph.node if node.op_type == "Conv")
    with _quiet():
        quantize_static(
            str(folder / ONNX), str(folder / INT8), _reader(chosen), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=["Conv"],
            nodes_to_exclude=[first], reduce_range=True,
        )  # fmt: skip


def _reader(pictures: npt.NDArray[np.uint8]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        """The pictures in calls of bounded size."""

        def __init__(self) -> None:
            starts = range(0, len(pictures), _ROWS_PER_CALL)
            self.calls: Iterator[Any] = iter({INPUT: pictures[start : start + _ROWS_PER_CALL]} for start in starts)

        def get_next(self) -> Any:
            """The next call, None behind the last."""
            return next(self.calls, None)

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """It advises, through the root logger, what makes no difference to these networks (batch norms are folded in)."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
