"""A bundle's files -> a function from pixels to answers, one for each runtime; called by frozen and freezing.

Every one maps uint8 (N, H, W, 3) to familiar.Answers for any N >= 1, in float32 arithmetic (REDUCED: less), from
several threads. A library is imported when its runtime is opened, so that classifying with OpenVINO does not wait for
TensorFlow.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fruitcnn.bundle import Description
from fruitcnn.familiar import Answers
from fruitcnn.lite import LITE, open_lite
from fruitcnn.native_output import held_stderr

Predict = Callable[[npt.NDArray[np.uint8]], Answers]

ONNX, INT8 = "model.onnx", "model.int8.onnx"
INPUT, OUTPUT, SCORE = "image", "probabilities", "unlike"
_CACHED_ROWS = 32
"""Pictures per call and core: their activations stay in its cache, which is worth a fifth at 32x32."""

ENCODED_SIGNATURE, SIGNATURE = "encoded", "serving_default"


TENSORS: dict[str, dict[str, Any]] = {
    "frozen_graph.pb": {"input": f"{INPUT}:0", "output": f"{OUTPUT}:0", "score": f"{SCORE}:0"},
    ONNX: {"input": INPUT, "output": OUTPUT, "score": SCORE},
    INT8: {"input": INPUT, "output": OUTPUT, "score": SCORE},
    LITE: {"input": INPUT, "output": OUTPUT, "score": SCORE},
    "saved_model": {
        SIGNATURE: {"input": INPUT, "output": OUTPUT, "score": SCORE},
        ENCODED_SIGNATURE: {"input": ENCODED_SIGNATURE, "output": OUTPUT, "score": SCORE},
    },
}
"""Names of the inputs and outputs, by file: as they go into model.json."""


class Runtime(NamedTuple):
    """`file` (or folder) of the bundle that it reads, and how: open(folder, description, num_threads) -> Predict.

    num_threads 0 leaves it to the runtime.
    """

    file: str
    open: Callable[[Path, Description, int], Predict]

    def files(self, description: Description) -> list[str]:
        """Return the paths of the bundle that this runtime reads."""
        return [name for name in description.files if name == self.file or name.startswith(f"{self.file}/")]


def import_tensorflow(num_threads: int | None = None) -> Any:
    """Return the module tensorflow, quiet, in exact float32, with `num_threads` threads if it was not yet started."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    # On a CPU with AVX-512 TensorFlow 2.21 greets with its oneDNN optimizations, whatever the log level.
    with held_stderr():
        import tensorflow as tf

    logging.getLogger("absl").setLevel(logging.ERROR)
    # On a GPU, TF32 would keep 10 bits of each factor: three digits, and no golden answer would be met.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        for device in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(device, True)
        if num_threads:
            tf.config.threading.set_intra_op_parallelism_threads(num_threads)
    except RuntimeError:
        pass  # TensorFlow already works in this process, with what it was given then
    return tf


def has_gpu() -> bool:
    """Whether TensorFlow would find an NVIDIA GPU here; looks at devices and packages, imports nothing."""
    from importlib.metadata import PackageNotFoundError, version

    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1") or not Path("/dev/nvidiactl").exists():
        return False
    try:
        return bool(version("tensorflow"))  # the CPU build is the package tensorflow-cpu
    except PackageNotFoundError:
        return False


def import_openvino() -> Any:
    """Return the module openvino, silent: by itself it forks a process that reports each import to its maker.

    That process also kept pipes of ours open, and hung where a thread was reading standard input.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # its import fails; openvino has a stub
    import openvino

    return openvino


def import_onnxruntime() -> Any:
    """Return the module onnxruntime, silent: by itself it reports to its maker, from a thread and a file in /tmp."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def has_bf16() -> bool:
    """Whether this CPU computes in bf16 (avx512_bf16, amx_bf16); OpenVINO would otherwise quietly take float32."""
    openvino = import_openvino()
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _openvino_bf16(folder: Path, description: Description, num_threads: int) -> Predict:
    if not has_bf16():
        raise ValueError("this CPU does not compute in bf16 (neither avx512_bf16 nor amx_bf16): leave --precision out")
    return _openvino(folder, description, num_threads, precision="bf16")


def _openvino(
    folder: Path,
    description: Description,
    num_threads: int,
    file: str = ONNX,
    precision: Literal["f32", "bf16"] = "f32",
) -> Predict:
    openvino = import_openvino()
    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": precision,  # left to itself it takes bf16 where the CPU has it
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": num_threads,
        "ENABLE_CPU_PINNING": False,  # several actors of one node would all be pinned to the same cores
    }
    num_rows, lock = _openvino_rows(num_threads), threading.Lock()

    @cache
    def request(is_full: bool) -> Any:
        # Compiled for a known number of rows a call takes a fifth less: nothing is worked out anew, and more is fused.
        model = core.read_model(str(folder / file))
        if is_full:
            model.reshape([num_rows, *description.input_px, 3])
        return core.compile_model(model, "CPU", settings).create_infer_request()

    request(False)

    def predict(pixels: npt.NDArray[np.uint8]) -> Answers:
        probabilities, unlike = [], []
        with lock:
            for start in range(0, len(pixels), num_rows):
                rows = pixels[start : start + num_rows]
                found = request(len(rows) == num_rows).infer([rows], share_inputs=True)
                probabilities.append(np.array(found[OUTPUT]))
                unlike.append(np.array(found[SCORE]).reshape(-1))
        return Answers(np.concatenate(probabilities), np.concatenate(unlike))

    return predict


def _openvino_rows(num_threads: int) -> int:
    return _CACHED_ROWS * (num_threads or os.cpu_count() or 1)


def rows_per_call(runtime: str, num_threads: int) -> int | None:
    """Return how many pictures a runtime takes at once, at most; None: as many as it is given."""
    return _openvino_rows(num_threads) if runtime in ("openvino", BF16) else None


def _onnxruntime(folder: Path, _: Description, num_threads: int, file: str = ONNX) -> Predict:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = num_threads, 3
    session = onnxruntime.InferenceSession(str(folder / file), options, providers=["CPUExecutionProvider"])
    return lambda pixels: _answers(*session.run([OUTPUT, SCORE], {INPUT: pixels}))


def _tensorflow(folder: Path, _: Description, num_threads: int) -> Predict:
    tf = import_tensorflow(num_threads)
    loaded = tf.saved_model.load(str(folder / "saved_model"))

    def predict(pixels: npt.NDArray[np.uint8]) -> Answers:
        found = loaded.signatures[SIGNATURE](image=tf.constant(pixels))
        return _answers(found[OUTPUT].numpy(), found[SCORE].numpy())

    return predict


def _keras(folder: Path, _: Description, num_threads: int) -> Predict:
    import_tensorflow(num_threads)
    import keras

    return keras_predict(keras.saving.load_model(str(folder / "model.keras"), compile=False))


def _weights(folder: Path, description: Description, num_threads: int) -> Predict:
    import_tensorflow(num_threads)
    from fruitcnn.models import build_model
    from fruitcnn.scored import with_score

    model = with_score(build_model(description.architecture, description.input_px, len(description.labels)))
    model.load_weights(str(folder / "cnn_fruit.weights.h5"))
    return keras_predict(model)


def _frozen_graph(folder: Path, _: Description, num_threads: int) -> Predict:
    tf = import_tensorflow(num_threads)
    definition = tf.compat.v1.GraphDef.FromString((folder / "frozen_graph.pb").read_bytes())
    wrapped = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(definition, name=""), [])
    pruned = wrapped.prune(f"{INPUT}:0", [f"{OUTPUT}:0", f"{SCORE}:0"])
    return lambda pixels: _answers(*(each.numpy() for each in pruned(tf.constant(pixels))))


def _litert(folder: Path, description: Description, num_threads: int) -> Predict:
    answer, lock = open_lite(folder / LITE, description.input_px, num_threads), threading.Lock()

    def predict(pixels: npt.NDArray[np.uint8]) -> Answers:
        with lock:
            found = answer(image=pixels)
        return _answers(found[OUTPUT], found[SCORE])

    return predict


def open_encoded(folder: Path) -> Callable[[list[bytes]], Answers]:
    """Return the SavedModel's other signature: N JPEG or PNG files -> Answers; else ValueError."""
    tf = import_tensorflow()
    loaded = tf.saved_model.load(str(folder / "saved_model"))

    def predict(files: list[bytes]) -> Answers:
        try:
            found = loaded.signatures[ENCODED_SIGNATURE](encoded=tf.constant(files))
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(f"encoded: got a file that TensorFlow does not decode: {error.message}") from error
        return _answers(found[OUTPUT].numpy(), found[SCORE].numpy())

    return predict


def keras_predict(model: Any) -> Predict:
    """Return the Predict of a Keras model that scored.with_score made."""
    tf = import_tensorflow()
    signature = [tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8)]
    # Traced here once and for all: TensorFlow counts the first calls of many models as one function traced many times.
    traced = tf.function(lambda image: model(image, training=False), signature, autograph=False)
    compiled = traced.get_concrete_function()

    def predict(pixels: npt.NDArray[np.uint8]) -> Answers:
        found = compiled(tf.constant(pixels))
        return _answers(found[OUTPUT].numpy(), found[SCORE].numpy())

    return predict


def _answers(probabilities: Any, score: Any) -> Answers:
    return Answers(probabilities, score.reshape(-1))


RUNTIMES: dict[str, Runtime] = {
    "openvino": Runtime(ONNX, _openvino),
    "onnxruntime": Runtime(ONNX, _onnxruntime),
    "tensorflow": Runtime("saved_model", _tensorflow),
    "keras": Runtime("model.keras", _keras),
}
BF16 = "openvino-bf16"
REDUCED: dict[str, Runtime] = {BF16: Runtime(ONNX, _openvino_bf16)}
"""Faster and less exact; never chosen unasked, and no part of what a bundle must prove."""

FORMATS: dict[str, Runtime] = RUNTIMES | {
    "frozen graph": Runtime("frozen_graph.pb", _frozen_graph),
    "weights": Runtime("cnn_fruit.weights.h5", _weights),
    "litert": Runtime(LITE, _litert),
}
"""The runtimes, and what is only proven: formats that a person reads with tools of their own."""

QUANTISED: dict[str, Runtime] = {
    "openvino, int8": Runtime(INT8, partial(_openvino, file=INT8)),
    "onnxruntime, int8": Runtime(INT8, partial(_onnxruntime, file=INT8)),
}
"""For tools of a person's own: answers near those of Keras, how near is measured; no job uses them."""
