"""The learning rate of a step, and the optimizer of a run, in TensorFlow. Between schedule and replica."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from fruitcnn.adamw import FusedAdamW
from fruitcnn.recipe import TrainConfig
from fruitcnn.schedule import frozen_steps, warmup_steps


class Rate(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate of a step: it rises from zero, then stays or falls; `scale` is what a plateau cuts it to."""

    def __init__(self, config: TrainConfig, num_steps: int) -> None:
        """Call it inside the strategy: `scale` is a variable."""
        self.peak, self.is_cosine = config.learning_rate, config.schedule == "cosine"
        self.num_warmup = warmup_steps(config, num_steps)
        self.num_falling = max(1, num_steps - self.num_warmup)
        self.num_frozen, self.fine_tuning = frozen_steps(config, num_steps), config.fine_tuning_rate
        self.scale = tf.Variable(1.0, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)

    def __call__(self, step: Any) -> tf.Tensor:
        """Return the rate of `step`, float32 scalar."""
        step = tf.cast(step, tf.float32)
        rate = self.peak * self.scale
        if self.is_cosine:
            done = tf.clip_by_value((step - self.num_warmup) / self.num_falling, 0.0, 1.0)
            rate *= 0.5 * (1 + tf.cos(math.pi * done))
        if self.num_warmup:
            rate *= tf.minimum(1.0, step / self.num_warmup)
        return self._fine_tuning(step, rate) if self.num_frozen else rate

    def _fine_tuning(self, step: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
        # The optimizer has seen no gradient of these layers before: they begin gently as well.
        rises = tf.minimum(1.0, (step - self.num_frozen + 1) / max(1, self.num_warmup))
        return tf.where(step < self.num_frozen, rate, rate * self.fine_tuning * rises)


def make_optimizer(config: TrainConfig, rate: Any) -> Any:
    """Return the Keras optimizer of a run; it takes gradients that are summed over the workers already."""
    clipped = {"global_clipnorm": config.clip_norm or None}
    makers = {
        "adamw": lambda: FusedAdamW(rate, weight_decay=config.weight_decay, epsilon=1e-5, **clipped),
        "sgd": lambda: keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, **clipped),
        "rmsprop": lambda: keras.optimizers.RMSprop(rate, **clipped),
    }
    optimizer = makers[config.optimizer]()
    # Keras sums them after clipping, each worker's own by its own norm: too late.
    optimizer._all_reduce_sum_gradients = list
    return keras.optimizers.LossScaleOptimizer(optimizer) if config.use_gpu else optimizer
