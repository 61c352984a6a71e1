"""A plain Keras classifier -> the same with the score `unlike` as a second output; between models and export.

Features are the mean of every channel of what each pooling leaves, from the first layers (colour, texture) to the last,
and of the last two also the deviation. The maps in front of the poolings are four times as large and told no more. Of a
small network (small_cnn) the score must be cheaper: without the first and largest map, without deviations, and with the
logits for the last map, which they are sums over.
The score is two small matrix products behind them, in layers of plain Keras: every format computes it like any other
layer, and the model opens without fruitcnn.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fruitcnn.familiar import DOUBT, MAX_CENTRES, Statistics, num_directions

SCORE = "unlike"
_WHITEN, _LENGTH, _DISTANCES, _OF_CENTRES = "whiten", "length", "distances", "of_centres"
_WITH_DEVIATIONS = 2
"""Stages, the last ones, of which deviations count too: their maps are small."""

_CENTRES_BESIDE_DEVIATIONS = 16
"""Of a class, at most: where deviations count too, twice as many told no more, and took a tenth of the score's time."""

_LEAST_VARIANCE = 1e-4
"""Added before the root, which would make much of the rounding in a map that hardly varies."""

_MOST_WORK, _LEAST_CENTRES = 0.024, 8
"""Multiplications for the distances, as a share of the network's; centres of a class where that allows fewer."""

_FAR = 1e6
"""Distance to a class that no training picture is of."""


def features_model(model: Any) -> Any:
    """Return a keras.Model from the pictures of `model`, uint8 (N, H, W, 3), to {"features": float32 (N, F),
    "logits": float32 (N, classes)}.
    """
    import keras

    outputs = {"features": _features(model), "logits": model.get_layer("probabilities").input}
    return keras.Model(model.input, outputs)


def max_centres(model: Any) -> int:
    """Return how many centres a class may have: as many as take little of the work of `model`, a plain classifier."""
    work = sum(_multiplications(layer) for layer in model.layers if hasattr(layer, "kernel"))
    of_one = model.output.shape[-1] * (num_directions(_features(model).shape[-1]) + 1)
    most = MAX_CENTRES if _is_flattened(model) else _CENTRES_BESIDE_DEVIATIONS
    return max(_LEAST_CENTRES, min(most, int(_MOST_WORK * work / of_one)))


def _multiplications(layer: Any) -> int:
    """For one picture, of a convolution or a dense layer."""
    return math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1])


def with_score(model: Any) -> Any:
    """Return `model` with outputs {"probabilities": (N, classes), "unlike": (N, 1)}, its weights shared, the score's
    still without meaning: set_statistics gives it one.
    """
    import keras
    from keras import layers, ops

    features, num_classes, num_centres = _features(model), model.output.shape[-1], max_centres(model)
    whitened = layers.Dense(num_directions(features.shape[-1]), name=_WHITEN)(features)
    squares = layers.Multiply(name="squares")([whitened, whitened])
    length = layers.Dense(1, use_bias=False, name=_LENGTH)(squares)
    # length - 2 z.c + c.c: one product of (z, length) gives all distances; negated, so that probabilities add to them.
    point = layers.Concatenate(name="point")([whitened, length])
    negated = layers.Dense(num_centres * num_classes, name=_DISTANCES)(point)
    of_centres = layers.Reshape((num_centres, num_classes), name=_OF_CENTRES)(negated)
    nearest = ops.max(of_centres, axis=1)
    # Distances are in units of DOUBT here: then a class's probability is what it is nearer by.
    both = layers.Add(name="near_and_probable", dtype="float32")([nearest, model.output])
    score = layers.Rescaling(-DOUBT, DOUBT, name=SCORE, dtype="float32")(ops.max(both, axis=1, keepdims=True))
    return keras.Model(model.input, {model.output_names[0]: model.output, SCORE: score}, name=model.name)


def set_statistics(scored: Any, statistics: Statistics, temperature: float) -> None:
    """Give a model of with_score the statistics of its features, and divide its logits by `temperature`, in place."""
    matrix = statistics.matrix.copy()
    if _is_flattened(scored):  # its features end with the logits, which are divided below
        matrix[-scored.get_layer("probabilities").output.shape[-1] :] *= temperature
    scored.get_layer(_WHITEN).set_weights([matrix, -statistics.origin @ statistics.matrix])
    scored.get_layer(_LENGTH).set_weights([np.ones((statistics.matrix.shape[1], 1))])
    layer = scored.get_layer(_DISTANCES)
    num_centres, num_classes = scored.get_layer(_OF_CENTRES).target_shape
    kernel, bias = np.zeros((statistics.matrix.shape[1] + 1, layer.units)), np.full(layer.units, -_FAR)
    for each in np.unique(statistics.classes):
        # A class of few pictures has fewer centres than there is room for: its own fill it again.
        own = np.resize(np.flatnonzero(statistics.classes == each), num_centres)
        centres, scales = statistics.centres[own], DOUBT * statistics.scales[own]
        kernel[:, each::num_classes] = np.concatenate([2 * centres.T, -np.ones((1, num_centres))]) / scales
        bias[each::num_classes] = -(centres**2).sum(axis=1) / scales
    layer.set_weights([kernel, bias])
    logits = _producer(scored.get_layer("probabilities"))
    logits.set_weights([values / temperature for values in logits.get_weights()])


def _producer(layer: Any) -> Any:
    """The layer whose output `layer` takes."""
    return layer.input._keras_history.operation


def _features(model: Any) -> Any:
    stages = _stages(model)
    if _is_flattened(model):
        return _joined([*_means(stages[1:-1]), model.get_layer("probabilities").input], "features")
    means = _means(stages)
    several = [number for number, stage in enumerate(stages) if stage.shape[1:3] != (1, 1)][-_WITH_DEVIATIONS:]
    if several:
        means.append(_deviations([stages[each] for each in several], [means[each] for each in several]))
    return _joined(means, "features")


def _means(stages: list[Any]) -> list[Any]:
    from keras import layers

    return [layers.GlobalAveragePooling2D(name=f"mean_{number}")(stage) for number, stage in enumerate(stages, 1)]


def _deviations(stages: list[Any], means: list[Any]) -> Any:
    """Of all channels of some maps, as one vector."""
    from keras import layers, ops

    squares = [layers.Multiply(name=f"squares_{number}")([each, each]) for number, each in enumerate(stages, 1)]
    powers = [layers.GlobalAveragePooling2D(name=f"power_{number}")(each) for number, each in enumerate(squares, 1)]
    power, mean = _joined(powers, "powers"), _joined(means, "means")
    variance = layers.Subtract(name="variance")([power, layers.Multiply(name="mean_squares")([mean, mean])])
    return ops.sqrt(ops.relu(variance) + _LEAST_VARIANCE)


def _joined(vectors: list[Any], name: str) -> Any:
    from keras import layers

    return layers.Concatenate(name=name)(vectors) if len(vectors) > 1 else vectors[0]


def _is_flattened(model: Any) -> bool:
    """Whether the logits are sums over all places of the last map: then they stand for its means."""
    from keras import layers

    return isinstance(_producer(_producer(model.get_layer("probabilities"))), layers.Flatten)


def _stages(model: Any) -> list[Any]:
    """What pooling leaves of each size, the last map where none follows; the picture itself left out.

    Padding has nothing new, gates are smaller than all.
    """
    from keras import layers

    last: dict[tuple[int, ...], Any] = {}
    size: tuple[int, ...] = ()
    for layer in model.layers[2:]:
        output = layer.output
        if len(output.shape) != 4 or isinstance(layer, layers.ZeroPadding2D):
            continue
        if not isinstance(layer, layers.MaxPooling2D):
            size = tuple(output.shape[1:3])
        last[size] = output
    return [each for its_size, each in last.items() if its_size >= size]
