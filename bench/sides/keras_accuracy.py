"""The way to 98 % as a plain Keras program goes it: decoded pixels in memory, mirrored at random, compile, fit.

python -m bench.sides.keras_accuracy TRAIN-PIXELS TEST-PIXELS
"""

import json
import sys
import time

from bench.sides.training import BATCH, load

_IMAGES_SEEN = 64_000
"""What the preset speed sees."""


def main(train: str, test: str) -> None:
    """Time the fit; the pictures are there already, which is more than jobs.train is given."""
    import keras
    import tensorflow as tf

    from fruitcnn.models import build_model

    images, labels = load(train)
    model = build_model("small_cnn", images.shape[1:3], int(labels.max()) + 1)
    num_steps = _IMAGES_SEEN // BATCH
    rate = keras.optimizers.schedules.CosineDecay(0.0, num_steps, warmup_target=4e-3, warmup_steps=num_steps // 20)
    model.compile(keras.optimizers.AdamW(rate), keras.losses.SparseCategoricalCrossentropy(), metrics=["accuracy"])
    pictures = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(labels)).repeat().batch(BATCH)
    mirrored = pictures.map(lambda image, label: (tf.image.random_flip_left_right(image), label))
    started = time.perf_counter()
    model.fit(mirrored.prefetch(tf.data.AUTOTUNE), steps_per_epoch=num_steps, epochs=1, verbose=0)
    seconds = time.perf_counter() - started
    _, accuracy = model.evaluate(*load(test), batch_size=256, verbose=0)
    print(json.dumps({"accuracy": accuracy, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
