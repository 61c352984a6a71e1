"""Shuffled batches of training pictures as a plain Keras program makes them, with nobody who trains on them.

python -m bench.sides.keras_input memory PIXELS | files FOLDER
"""

import json
import sys
import time
from typing import Any

from bench.sides.training import BATCH, INPUT_SECONDS, load

_PX = 32


def main(kind: str, folder: str) -> None:
    """Take batches for INPUT_SECONDS, after some that warm up."""
    batches = iter(_from_memory(folder) if kind == "memory" else _from_files(folder))
    for _ in range(64):
        next(batches)
    num_images, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < INPUT_SECONDS:
        num_images += len(next(batches)[0])
    print(json.dumps({"num_images": num_images, "seconds": seconds}))


def _from_memory(folder: str) -> Any:
    import tensorflow as tf

    images, labels = load(folder)
    pictures = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(labels)).repeat().batch(BATCH)
    return pictures.prefetch(tf.data.AUTOTUNE)


def _from_files(folder: str) -> Any:
    import keras

    return keras.utils.image_dataset_from_directory(
        folder, image_size=(_PX, _PX), batch_size=BATCH, verbose=False
    ).repeat()


if __name__ == "__main__":
    main(*sys.argv[1:])
