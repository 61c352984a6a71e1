"""One worker's model, optimizer and compiled step, the same code for one worker and many; between models and train.

The loss of a step is the sum over the worker's rows divided by the GLOBAL batch, and apply_gradients sums over the
workers, so that the update is that of one process on the union batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from fruitcnn.augment import augment
from fruitcnn.checkpoints import State
from fruitcnn.layers import drawing_from
from fruitcnn.models import build_model
from fruitcnn.recipe import TrainConfig

_EVALUATION_ROWS = 256


class Score(NamedTuple):
    """Loss and accuracy over `num_rows` rows."""

    loss: float
    accuracy: float
    num_rows: int


class Replica:
    """The part of the training that one worker holds."""

    def __init__(self, config: TrainConfig, num_classes: int, num_steps: int, strategy: tf.distribute.Strategy) -> None:
        """Build model and optimizer inside `strategy`; `num_steps` shapes the learning-rate schedule."""
        self.config, self.num_classes, self.strategy = config, num_classes, strategy
        if config.use_gpu:
            keras.mixed_precision.set_global_policy("mixed_float16")
        with strategy.scope():
            size = (config.input_px, config.input_px)
            ghosts = config.ghost_rows
            self.model = build_model(config.architecture, size, num_classes, seed=config.seed, ghost_rows=ghosts)
            self.optimizer = make_optimizer(config, num_steps)
            self.optimizer.build(self.model.trainable_variables)
        self._averages = [v for v in self.model.non_trainable_variables if v.synchronization == "on_read"]
        self._step = tf.function(self._distributed(self._train_rows), reduce_retracing=True)
        self._score = tf.function(self._distributed(self._score_rows), reduce_retracing=True)
        self._sum = tf.function(self._distributed(self._sum_over_workers), reduce_retracing=True)
        self._weights = tf.function(self._distributed(self._local_weights))

    def step(self, images: np.ndarray, labels: np.ndarray, keys: np.ndarray) -> tuple[Any, Any]:
        """Take one step on this worker's rows; return its loss sum and its number of right answers (scalars).

        `images` uint8 (n, H, W, 3), `labels` int64 (n,), `keys` int32 (n,) of sampling.row_keys.
        """
        return self._step(tf.constant(images), tf.constant(labels), tf.constant(keys))

    def evaluate(self, images: np.ndarray, labels: np.ndarray) -> Score:
        """Score this worker's rows of a split and add the other workers'; all workers must call it together."""
        sums = np.zeros(3)
        for start in range(0, len(labels), _EVALUATION_ROWS):
            sums += self._padded_score(
                images[start : start + _EVALUATION_ROWS], labels[start : start + _EVALUATION_ROWS]
            )
        loss, num_right, num_rows = self.sum_over_workers(sums)
        return Score(loss / max(1, num_rows), num_right / max(1, num_rows), int(num_rows))

    def sum_over_workers(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return the element-wise sum of a small vector over all workers; all must call it together."""
        return np.asarray(self._sum(tf.constant(np.asarray(values, np.float64))))

    def average_statistics(self) -> None:
        """Set the moving averages to their mean over the workers; all must call it together."""
        if not self._averages or self.strategy.num_replicas_in_sync == 1:
            return
        local = self._local_averages()
        flat = self.sum_over_workers(np.concatenate(local)) / self.strategy.num_replicas_in_sync
        pieces = np.split(flat.astype(np.float32), np.cumsum([len(value) for value in local])[:-1])
        for variable, piece in zip(self._averages, pieces, strict=True):
            variable.assign(piece)

    def state(self, step: int) -> State:
        """Return weights, optimizer and step; call average_statistics first."""
        weights = [np.asarray(value) for value in self._weights()]
        return State(step, weights, [np.asarray(variable.value) for variable in self.optimizer.variables])

    def restore(self, state: State) -> None:
        """Go on from `state`. Raises ValueError if it belongs to another model."""
        for variables, values in ((self.model.variables, state.weights), (self.optimizer.variables, state.optimizer)):
            if [tuple(v.shape) for v in variables] != [value.shape for value in values]:
                raise ValueError(f"checkpoint of step {state.step}: its arrays do not fit {self.config.architecture}")
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)

    def _distributed(self, function: Any) -> Any:
        return lambda *arguments: self.strategy.run(function, args=arguments)

    def _train_rows(self, images: tf.Tensor, labels: tf.Tensor, keys: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            with drawing_from(keys):
                probabilities = self.model(augment(images, keys, self.config.augmentation), training=True)
            loss = tf.reduce_sum(self._losses(labels, probabilities, self.config.label_smoothing))
            share = loss / self.config.global_batch_size
            scaled = self.optimizer.scale_loss(share)
        gradients = tape.gradient(scaled, self.model.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.model.trainable_variables, strict=True))
        return loss, _num_right(labels, probabilities, tf.ones_like(loss))

    def _score_rows(self, images: tf.Tensor, labels: tf.Tensor, real: tf.Tensor) -> tf.Tensor:
        probabilities = self.model(images, training=False)
        loss = tf.reduce_sum(self._losses(labels, probabilities, 0.0) * real)
        return tf.stack([loss, _num_right(labels, probabilities, real), tf.reduce_sum(real)])

    def _padded_score(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        missing = _EVALUATION_ROWS - len(labels)
        real = np.pad(np.ones(len(labels), np.float32), (0, missing))
        images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
        return np.asarray(
            self._score(tf.constant(images), tf.constant(np.pad(labels, (0, missing))), tf.constant(real))
        )

    def _losses(self, labels: tf.Tensor, probabilities: tf.Tensor, smoothing: float) -> tf.Tensor:
        targets = tf.one_hot(labels, self.num_classes) * (1 - smoothing) + smoothing / self.num_classes
        return keras.losses.categorical_crossentropy(targets, probabilities)

    def _sum_over_workers(self, values: tf.Tensor) -> tf.Tensor:
        if self.strategy.num_replicas_in_sync == 1:
            return values
        # An argument of a graph lies on no device yet, and an all-reduce asks for one.
        placed = tf.identity(values)
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, placed)

    def _local_weights(self) -> list[tf.Tensor]:
        # Inside a replica an "on_read" variable gives this worker's own value; outside it would start an all-reduce.
        return [tf.identity(variable.value) for variable in self.model.variables]

    def _local_averages(self) -> list[np.ndarray]:
        values = dict(zip((id(v) for v in self.model.variables), self._weights(), strict=True))
        return [np.asarray(values[id(variable)]) for variable in self._averages]


def _num_right(labels: tf.Tensor, probabilities: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    right = tf.equal(tf.argmax(probabilities, 1), labels)
    return tf.reduce_sum(tf.cast(right, tf.float32) * weights)


def make_optimizer(config: TrainConfig, num_steps: int) -> Any:
    """Return the Keras optimizer of a run of `num_steps` steps, its schedule a function of the step alone."""
    rate: Any = config.learning_rate
    if config.schedule == "cosine":
        warmup = round(num_steps * config.warmup_share)
        decay = max(1, num_steps - warmup)
        start = 0.0 if warmup else rate
        rate = keras.optimizers.schedules.CosineDecay(start, decay, warmup_target=rate, warmup_steps=warmup)
    makers = {
        "adamw": lambda: keras.optimizers.AdamW(rate, weight_decay=config.weight_decay, epsilon=1e-5),
        "sgd": lambda: keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
        "rmsprop": lambda: keras.optimizers.RMSprop(rate),
    }
    optimizer = makers[config.optimizer]()
    return keras.optimizers.LossScaleOptimizer(optimizer) if config.use_gpu else optimizer
