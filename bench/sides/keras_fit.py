"""The same training as bench.sides.our_steps, as a plain Keras program does it: arrays in memory, compile, fit.

python -m bench.sides.keras_fit PIXELS
"""

import json
import os
import sys
import time

from bench.sides.training import BATCH, WARM_UP_STEPS, load, num_epochs


def main(folder: str) -> None:
    """Time a fit after a short one that warms up."""
    import keras
    import tensorflow as tf

    from fruitcnn.models import build_model
    from fruitcnn.recipe import TrainConfig
    from fruitcnn.replica import make_optimizer

    tf.config.threading.set_intra_op_parallelism_threads(len(os.sched_getaffinity(0)))
    images, labels = load(folder)
    epochs = num_epochs(len(labels))
    # Without ghost_rows the network is made of Keras' own layers alone, keras.layers.BatchNormalization among them.
    model = build_model("small_cnn", images.shape[1:3], int(labels.max()) + 1)
    assert any(type(layer) is keras.layers.BatchNormalization for layer in model.layers)
    optimizer = make_optimizer(TrainConfig(dataset="-", run="-", schedule="constant"), 1)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(), metrics=["accuracy"])
    warm_up = BATCH * WARM_UP_STEPS
    model.fit(images[:warm_up], labels[:warm_up], batch_size=BATCH, verbose=0)
    started = time.perf_counter()
    model.fit(images, labels, batch_size=BATCH, epochs=epochs, verbose=0)
    print(json.dumps({"num_images": epochs * len(labels), "seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main(*sys.argv[1:])
