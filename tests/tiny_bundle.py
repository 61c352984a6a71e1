"""A frozen model in a few kilobytes, made without TensorFlow: for tests of what happens around a model.

Its score is the difference of the brightest and the darkest pixel value, of 255: pictures of one colour are familiar.
"""

import datetime
import hashlib
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from fruitcnn.bundle import DESCRIPTION, GOLDEN, Description, StoredFile
from fruitcnn.familiar import NO_LIMITS, Limits

LABELS = ("red", "green", "blue")
INPUT_PX = (8, 8)


def probabilities(pixels: npt.NDArray[np.uint8], sharpness: float = 0.05) -> npt.NDArray[np.float32]:
    """What the tiny model answers: the softmax of each channel's mean, uint8 (N, 8, 8, 3) -> float32 (N, 3)."""
    logits = pixels.astype(np.float32).mean((1, 2)) * np.float32(sharpness)
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    return (exponents / exponents.sum(1, keepdims=True)).astype(np.float32)


def unlike(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The score that the tiny model answers: uint8 (N, 8, 8, 3) -> float32 (N,)."""
    values = pixels.astype(np.float32)
    return (values.max((1, 2, 3)) - values.min((1, 2, 3))) * np.float32(1 / 255)


def write_bundle(folder: Path, sharpness: float = 0.05, limits: Limits = NO_LIMITS) -> str:
    """Write the model; another sharpness makes another model. Returns its URI."""
    golden = np.random.default_rng(0).integers(0, 256, (4, *INPUT_PX, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, images=golden, probabilities=probabilities(golden, sharpness), unlike=unlike(golden))
    files = {"model.onnx": _onnx(sharpness), GOLDEN: buffer.getvalue()}
    return write_description(folder, LABELS, INPUT_PX, files, limits)


def write_description(
    folder: Path,
    labels: tuple[str, ...],
    input_px: tuple[int, int],
    files: dict[str, bytes],
    limits: Limits = NO_LIMITS,
) -> str:
    """Write the files of a bundle, and model.json last."""
    folder.mkdir(parents=True)
    stored = {}
    for name, data in files.items():
        (folder / name).write_bytes(data)
        stored[name] = StoredFile(sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data))
    description = Description(
        identity="tiny", architecture="tiny", labels=labels, input_px=input_px, preprocessing={}, tensors={},
        limits=limits, metrics={}, dataset={}, training={}, versions={}, agreement=(), compared_split="test",
        created_at=datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC), files=stored,
    )  # fmt: skip
    (folder / DESCRIPTION).write_bytes(description.to_bytes())
    return str(folder)


def _onnx(sharpness: float) -> bytes:
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("Mul", ["means", "sharpness"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ReduceMax", ["floats"], ["brightest"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("ReduceMin", ["floats"], ["darkest"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Sub", ["brightest", "darkest"], ["range"]),
        helper.make_node("Mul", ["range", "one_of_255"], ["unlike"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", *INPUT_PX, 3])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", len(LABELS)]),
            helper.make_tensor_value_info("unlike", TensorProto.FLOAT, ["n"]),
        ],
        [
            numpy_helper.from_array(np.array(sharpness, np.float32), "sharpness"),
            numpy_helper.from_array(np.array(1 / 255, np.float32), "one_of_255"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()
