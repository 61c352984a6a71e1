"""Training-only layers whose results do not depend on the number of workers, used by models and augment.

Both layers are twins of a plain Keras layer with the same variables: a frozen model holds the plain one, so nobody
needs this module to load it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import keras
import numpy as np
import tensorflow as tf

_ROW_KEYS: ContextVar[Any] = ContextVar("row_keys", default=None)
_STATISTICS: ContextVar[Any] = ContextVar("statistics", default=None)


@contextmanager
def drawing_from(keys: tf.Tensor) -> Iterator[None]:
    """Make `keys`, int32 (N,), the source of all random draws of the layers called inside (sampling.row_keys)."""
    token = _ROW_KEYS.set(keys)
    try:
        yield
    finally:
        _ROW_KEYS.reset(token)


@contextmanager
def one_batch() -> Iterator[None]:
    """Make all calls of a layer inside parts of one batch: its moving averages follow the mean over all of them."""
    found: dict[int, tuple[keras.Variable, float, list[tf.Tensor]]] = {}
    token = _STATISTICS.set(found)
    try:
        yield
    finally:
        _STATISTICS.reset(token)
    for moving, momentum, values in found.values():
        moving.assign(moving * momentum + (1 - momentum) * tf.add_n(values) / len(values))


def row_uniform(keys: tf.Tensor, num_draws: int, stream: int) -> tf.Tensor:
    """Return uniform draws in [0, 1), float32 (N, num_draws), a pure function of (key, stream, draw).

    A counter-based generator in plain arithmetic (the finalizer of MurmurHash3), because TensorFlow's stateless
    generators take one seed per call, not one per row. Streams keep the draws of different users apart.
    """
    counters = np.arange(num_draws, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(
        stream * 0x85EBCA77 % (1 << 32)
    )
    counted = _murmur(tf.constant(counters))
    mixed = _murmur(tf.bitwise.bitwise_xor(tf.bitcast(keys, tf.uint32)[:, None], counted[None, :]))
    return tf.cast(tf.bitwise.right_shift(mixed, tf.constant(8, tf.uint32)), tf.float32) * (1.0 / (1 << 24))


def _murmur(mixed: tf.Tensor) -> tf.Tensor:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = tf.bitwise.bitwise_xor(mixed, tf.bitwise.right_shift(mixed, tf.constant(shift, tf.uint32)))
        mixed = mixed * tf.constant(factor, tf.uint32)
    return tf.bitwise.bitwise_xor(mixed, tf.bitwise.right_shift(mixed, tf.constant(16, tf.uint32)))


def local_average(name: str, start: np.ndarray) -> keras.Variable:
    """Return a variable that each worker updates by itself: "on_read" keeps its assignments free of all-reduces."""
    return keras.Variable(
        start, trainable=False, autocast=False, aggregation="mean", synchronization="on_read", name=name
    )


@keras.saving.register_keras_serializable("fruitcnn")
class RowDropout(keras.layers.Layer):
    """Dropout whose mask belongs to the row: the same for any number of workers. Twin of keras.layers.Dropout."""

    def __init__(self, rate: float, stream: int, **kwargs: Any) -> None:
        """`rate` is the share of features set to zero; `stream` keeps several such layers apart."""
        super().__init__(**kwargs)
        self.rate, self.stream = rate, stream

    def call(self, features: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Map (N, features) to the same shape; in training the row keys come from `drawing_from`."""
        if not training or self.rate == 0:
            return features
        keys = _ROW_KEYS.get()
        assert keys is not None, "RowDropout in training needs drawing_from(keys)"
        kept = row_uniform(keys, features.shape[-1], self.stream) >= self.rate
        return tf.where(kept, features / tf.cast(1 - self.rate, features.dtype), tf.zeros_like(features))

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return super().get_config() | {"rate": self.rate, "stream": self.stream}


@keras.saving.register_keras_serializable("fruitcnn")
class GhostNormalization(keras.layers.Layer):
    """Batch normalisation over ghosts of `ghost_rows` rows each. Twin of keras.layers.BatchNormalization.

    The statistics of a ghost are the same whichever worker holds it, so no all-reduce is needed. The moving averages
    follow the mean over the ghosts of a batch and are linear in it: the mean of the workers' averages is exact
    (Hoffer, Hubara, Soudry 2017, "Train longer, generalize better", introduces ghosts).
    """

    def __init__(self, ghost_rows: int, momentum: float = 0.95, epsilon: float = 1e-3, **kwargs: Any) -> None:
        """`ghost_rows` must divide the rows of every call in training."""
        super().__init__(**kwargs)
        self.ghost_rows, self.momentum, self.epsilon = ghost_rows, momentum, epsilon

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the variables of a BatchNormalization, in its order."""
        shape: Any = (input_shape[-1],)
        self.gamma = self.add_weight(name="gamma", shape=shape, initializer="ones", autocast=False)
        self.beta = self.add_weight(name="beta", shape=shape, initializer="zeros", autocast=False)
        self.moving_mean = local_average("moving_mean", np.zeros(shape, np.float32))
        self.moving_variance = local_average("moving_variance", np.ones(shape, np.float32))

    def call(self, features: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Map (N, H, W, C) to the same shape; in training N must be whole ghosts."""
        if not training:
            scale = self.gamma * tf.math.rsqrt(self.moving_variance + self.epsilon)
            offset = self.beta - self.moving_mean * scale
            return features * tf.cast(scale, features.dtype) + tf.cast(offset, features.dtype)
        num_ghosts, rest = divmod(features.shape[0], self.ghost_rows)
        assert rest == 0, f"{features.shape[0]} rows are not whole ghosts of {self.ghost_rows}"
        ghosts = [
            tf.compat.v1.nn.fused_batch_norm(
                ghost, tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta), epsilon=self.epsilon
            )
            for ghost in tf.split(features, num_ghosts)
        ]
        self._follow(self.moving_mean, [mean for _, mean, _ in ghosts])
        self._follow(self.moving_variance, [variance for _, _, variance in ghosts])
        return tf.concat([normalised for normalised, _, _ in ghosts], 0)

    def _follow(self, moving: keras.Variable, values: list[tf.Tensor]) -> None:
        with nullcontext() if _STATISTICS.get() is not None else one_batch():
            _STATISTICS.get().setdefault(id(moving), (moving, self.momentum, []))[2].extend(values)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        own = {"ghost_rows": self.ghost_rows, "momentum": self.momentum, "epsilon": self.epsilon}
        return super().get_config() | own
