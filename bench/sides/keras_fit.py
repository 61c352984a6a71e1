"""The same training as bench.sides.our_steps, as a plain Keras program does it: arrays in memory, compile, fit.

python -m bench.sides.keras_fit PIXELS [--architecture NAME] [--batch ROWS]
"""

import argparse
import json
import os
import time
from typing import Any

import numpy as np

from bench.sides.training import BATCH, PROBE_STEPS, load, num_epochs


def main(asked: argparse.Namespace) -> None:
    """Time a fit after two short ones that warm up and tell how long to measure."""
    import keras
    import tensorflow as tf

    from fruitcnn.models import build_model
    from fruitcnn.recipe import TrainConfig

    tf.config.threading.set_intra_op_parallelism_threads(len(os.sched_getaffinity(0)))
    images, labels = load(asked.pixels)
    # Without ghost_rows the network is made of Keras' own layers alone, keras.layers.BatchNormalization among them.
    model = build_model(asked.architecture, images.shape[1:3], int(labels.max()) + 1)
    assert all(type(layer).__module__.startswith("keras.") for layer in model.layers)
    config = TrainConfig(dataset="-", run="-", schedule="constant")
    optimizer = keras.optimizers.AdamW(config.learning_rate, weight_decay=config.weight_decay, epsilon=1e-5)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(), metrics=["accuracy"])
    probe = BATCH * PROBE_STEPS
    _timed_fit(model, images[:probe], labels[:probe], asked.batch, 1)
    epochs = num_epochs(len(labels), _timed_fit(model, images[:probe], labels[:probe], asked.batch, 1))
    cpu_seconds = time.process_time()
    seconds = _timed_fit(model, images, labels, asked.batch, epochs)
    said = {"num_images": epochs * len(labels), "seconds": seconds, "cpu_seconds": time.process_time() - cpu_seconds}
    print(json.dumps(said))


def _timed_fit(model: Any, images: np.ndarray, labels: np.ndarray, batch: int, epochs: int) -> float:
    started = time.perf_counter()
    model.fit(images, labels, batch_size=batch, epochs=epochs, verbose=0)
    return time.perf_counter() - started


if __name__ == "__main__":
    parser = argparse.ArgumentParser("bench.sides.keras_fit")
    parser.add_argument("pixels")
    parser.add_argument("--architecture", default="small_cnn")
    parser.add_argument("--batch", type=int, default=BATCH)
    main(parser.parse_args())
