"""The SavedModel -> model.tflite, for LiteRT on phones, and back to a function; called by export and runtimes.

The conversion is in TensorFlow; running needs only ai-edge-litert. Signature `serving_default`, input `image` (uint8,
any number of pictures), float32 arithmetic: answers as every other format.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

LITE = "model.tflite"


def write_lite(folder: Path, signature: str) -> None:
    """Convert saved_model/ in a local folder to model.tflite beside it."""
    from fruitcnn.runtimes import import_tensorflow

    tf = import_tensorflow()
    with _quiet():
        converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved_model"), signature_keys=[signature])
        (folder / LITE).write_bytes(converter.convert())


def open_lite(file: Path, input_px: tuple[int, int], num_threads: int) -> Callable[..., dict[str, Any]]:
    """Return the signature as a function of image=pixels; one call at a time."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:  # where a model is frozen there is TensorFlow, and in it the same interpreter
        from fruitcnn.runtimes import import_tensorflow

        Interpreter = import_tensorflow().lite.Interpreter  # noqa: N806
    with _quiet():
        interpreter = Interpreter(str(file), num_threads=num_threads or None)
        answer = interpreter.get_signature_runner()
        answer(image=np.zeros((1, *input_px, 3), np.uint8))
    return answer


@contextmanager
def _quiet() -> Iterator[None]:
    """Both libraries announce themselves on the file descriptor of stderr, past Python."""
    sys.stderr.flush()
    screen, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(screen, 2)
        os.close(screen)
        os.close(nowhere)
