"""A Keras model -> every format of the bundle, offline and without a word on the screen; called by freezing."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fruitcnn.bundle import FrozenModelError
from fruitcnn.encoded import decode_batch
from fruitcnn.freeze_config import USUAL
from fruitcnn.lite import write_lite
from fruitcnn.models import build_model
from fruitcnn.quantised import write_int8
from fruitcnn.runtimes import ENCODED_SIGNATURE, INPUT, ONNX, OUTPUT, SCORE, SIGNATURE, import_tensorflow

ONNX_OPSET = 17
"""Old enough for every runtime of the last years, onnxruntime-web included."""


def plain_model(architecture: str, input_px: tuple[int, int], num_classes: int, weights: list[np.ndarray]) -> Any:
    """Return the plain Keras twin of a trained network with the weights of a checkpoint; FrozenModelError if they do
    not fit.

    It opens anywhere without fruitcnn: nothing of the training layers is in it.
    """
    model = build_model(architecture, input_px, num_classes)
    # Keras's own Dropout brings a state for its random draws, which the training twin has not.
    variables = [each for each in model.variables if "seed_generator" not in each.path]
    if [tuple(each.shape) for each in variables] != [values.shape for values in weights]:
        raise FrozenModelError(f"checkpoint: its arrays do not fit {architecture} with {num_classes} classes")
    for variable, values in zip(variables, weights, strict=True):
        variable.assign(values)
    return model


def write_formats(
    model: Any, folder: Path, formats: Collection[str] = USUAL, familiar: npt.NDArray[np.uint8] | None = None
) -> None:
    """Write a keras.Model that scored.with_score made, into an existing folder, in these formats.

    model.keras and cnn_fruit.weights.h5 for Keras, saved_model/ (signatures serving_default and encoded),
    frozen_graph.pb, model.onnx and model.tflite, all with the preprocessing after decoding and the softmax inside.
    int8 measures its ranges on `familiar`, training pictures uint8 (N, H, W, 3).
    """
    tf = import_tensorflow()
    model.save(str(folder / "model.keras"))
    if "weights" in formats:
        model.save_weights(str(folder / "cnn_fruit.weights.h5"))
    pixels = tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8, name=INPUT)
    # AutoGraph has nothing to convert here, and what it cannot convert it prints, environment included.
    answer = tf.function(lambda image: _flat(model(image, training=False)), [pixels], autograph=False)
    _write_saved_model(model, answer, folder / "saved_model")
    if "frozen_graph" in formats:
        (folder / "frozen_graph.pb").write_bytes(_frozen_graph(answer.get_concrete_function()).SerializeToString())
    (folder / ONNX).write_bytes(_onnx(answer, pixels).SerializeToString())
    if "tflite" in formats:
        write_lite(folder, SIGNATURE)
    if "int8" in formats:
        assert familiar is not None, "int8 measures on pictures"
        write_int8(folder, familiar)


def _flat(answers: dict[str, Any]) -> dict[str, Any]:
    """The score as one number a picture, (N,), where Keras's layers leave (N, 1)."""
    tf = import_tensorflow()
    return {OUTPUT: answers[OUTPUT], SCORE: tf.reshape(answers[SCORE], (-1,))}


def _write_saved_model(model: Any, answer: Any, folder: Path) -> None:
    tf = import_tensorflow()
    input_px = model.input_shape[1:3]
    files = tf.TensorSpec((None,), tf.string, name=ENCODED_SIGNATURE)
    answer_files = tf.function(lambda encoded: answer(decode_batch(encoded, input_px)), [files], autograph=False)
    module = tf.Module()
    module.variables_of_model = [variable.value for variable in model.variables]
    signatures = {SIGNATURE: answer, ENCODED_SIGNATURE: answer_files}
    tf.saved_model.save(module, str(folder), signatures)


def _frozen_graph(function: Any) -> Any:
    """Return a GraphDef without variables, its outputs under the names OUTPUT and SCORE."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    tf = import_tensorflow()
    frozen = convert_variables_to_constants_v2(function)
    with tf.Graph().as_default() as graph:
        names = sorted(function.structured_outputs)  # as the outputs of a dictionary come
        wanted = [output.name for output in frozen.outputs]
        found = tf.import_graph_def(frozen.graph.as_graph_def(), name="", return_elements=wanted)
        for name, tensor in zip(names, found, strict=True):
            tf.identity(tensor, name=name)
    return graph.as_graph_def()


def _onnx(function: Any, pixels: Any) -> Any:
    import tf2onnx

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    proto, _ = tf2onnx.convert.from_function(function, input_signature=[pixels], opset=ONNX_OPSET)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return proto
