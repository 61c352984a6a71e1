"""A plain Keras classifier -> the same with the score `unlike` as a second output; between models and export.

Features are mean and standard deviation of every channel of the maps in front of a change of size, from the first
layers (colour, texture) to the last; of the first map only the mean. With the deviations of all, 18 % of pictures of
strange classes passed where 21 % did with means alone.
The score is one small matrix product behind them, in layers of plain Keras: every format computes it like any other
layer, and the model opens without fruitcnn.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fruitcnn.familiar import DOUBT, MAX_CENTRES, Statistics, num_directions

SCORE = "unlike"
_WHITEN, _LENGTH, _DISTANCES = "whiten", "length", "distances"
_LEAST_VARIANCE = 1e-4
"""Added before the root, which would make much of the rounding in a map that hardly varies."""


def features_model(model: Any) -> Any:
    """Return a keras.Model from the pictures of `model`, uint8 (N, H, W, 3), to {"features": float32 (N, F),
    "logits": float32 (N, classes)}.
    """
    import keras

    outputs = {"features": _features(model), "logits": model.get_layer("probabilities").input}
    return keras.Model(model.input, outputs)


def with_score(model: Any) -> Any:
    """Return `model` with outputs {"probabilities": (N, classes), "unlike": (N, 1)}, its weights shared, the score's
    still without meaning: set_statistics gives it one.
    """
    import keras
    from keras import layers

    features = _features(model)
    num_centres = model.output.shape[-1] * MAX_CENTRES
    whitened = layers.Dense(num_directions(features.shape[-1]), name=_WHITEN)(features)
    squares = layers.Multiply(name="squares")([whitened, whitened])
    length = layers.Dense(1, use_bias=False, name=_LENGTH)(squares)
    # length - 2 z.c + c.c: one product of (z, length) gives all distances; negated, as Keras pools maxima.
    point = layers.Concatenate(name="point")([whitened, length])
    negated = layers.Dense(num_centres, name=_DISTANCES)(point)
    nearest = layers.GlobalMaxPooling1D(name="nearest")(layers.Reshape((num_centres, 1), name="column")(negated))
    distance = layers.Rescaling(-1.0, name="distance", dtype="float32")(nearest)
    column = layers.Reshape((model.output.shape[-1], 1), name="classes")(model.output)
    greatest = layers.GlobalMaxPooling1D(name="greatest", dtype="float32")(column)
    doubt = layers.Rescaling(-DOUBT, DOUBT, name="doubt", dtype="float32")(greatest)
    score = layers.Add(name=SCORE, dtype="float32")([distance, doubt])
    return keras.Model(model.input, {model.output_names[0]: model.output, SCORE: score}, name=model.name)


def set_statistics(scored: Any, statistics: Statistics, temperature: float) -> None:
    """Give a model of with_score the statistics of its features, and divide its logits by `temperature`, in place."""
    origin, matrix, centres, scales = statistics
    scored.get_layer(_WHITEN).set_weights([matrix, -origin @ matrix])
    scored.get_layer(_LENGTH).set_weights([np.ones((matrix.shape[1], 1))])
    # A class of few pictures has fewer centres than there is room for: the first one fills it.
    layer = scored.get_layer(_DISTANCES)
    fill = np.zeros(layer.units - len(centres), np.int64)
    chosen = np.concatenate([np.arange(len(centres)), fill])
    centres, scales = centres[chosen], scales[chosen]
    kernel = np.concatenate([2 * centres.T, -np.ones((1, len(centres)))]) / scales
    layer.set_weights([kernel, -(centres**2).sum(axis=1) / scales])
    logits = _producer(scored.get_layer("probabilities"))
    logits.set_weights([values / temperature for values in logits.get_weights()])


def _producer(layer: Any) -> Any:
    """The layer whose output `layer` takes."""
    return layer.input._keras_history.operation


def _features(model: Any) -> Any:
    from keras import layers

    pooled = [each for number, stage in enumerate(_stages(model), 1) for each in _summary(stage, number)]
    return layers.Concatenate(name="features")(pooled) if len(pooled) > 1 else pooled[0]


def _summary(stage: Any, number: int) -> list[Any]:
    """Mean and standard deviation of every channel of a map; of a single place, and of the first map, only the mean.

    Squaring the first map, which is as large as the picture, took an eighth of a small network's time in OpenVINO.
    """
    from keras import layers, ops

    mean = layers.GlobalAveragePooling2D(name=f"mean_{number}")(stage)
    if number == 1 or stage.shape[1:3] == (1, 1):
        return [mean]
    squares = layers.Multiply(name=f"squares_{number}")([stage, stage])
    variance = layers.Subtract(name=f"variance_{number}")(
        [layers.GlobalAveragePooling2D(name=f"power_{number}")(squares), layers.Multiply()([mean, mean])]
    )
    return [mean, ops.sqrt(ops.relu(variance) + _LEAST_VARIANCE)]


def _stages(model: Any) -> list[Any]:
    """The last map of each size, the picture itself left out; padding has nothing new, gates are smaller than all."""
    from keras import layers

    last: dict[tuple[int, ...], Any] = {}
    size: tuple[int, ...] = ()
    for layer in model.layers[2:]:
        output = layer.output
        if len(output.shape) == 4 and not isinstance(layer, layers.ZeroPadding2D):
            size = tuple(output.shape[1:3])
            last[size] = output
    return [each for its_size, each in last.items() if its_size >= size]
