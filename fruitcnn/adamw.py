"""Keras's AdamW with one operation of TensorFlow for a variable's step, where Keras has fifteen; for replica.

Every worker of a group does the whole of it on its own cores: what it costs is not divided among them.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


class FusedAdamW(keras.optimizers.AdamW):
    """The variables, the state and, but for rounding, the numbers of keras.optimizers.AdamW; dense gradients only."""

    def _apply_weight_decay(self, variables: list[Any]) -> None:
        kept = 1 - tf.cast(self.learning_rate, tf.float32) * self.weight_decay

        def decay(strategy: tf.distribute.Strategy, values: list[Any]) -> None:
            for value in values:
                strategy.extended.update(value, lambda each: each.assign(each * kept), group=False)

        values = [variable.value for variable in variables if self._use_weight_decay(variable)]
        tf.__internal__.distribute.interim.maybe_merge_call(decay, self._distribution_strategy, values)

    def _backend_update_step(self, grads: list[Any], trainable_variables: list[Any], learning_rate: Any) -> None:
        # Once for all variables.
        step = tf.cast(tf.convert_to_tensor(self.iterations) + 1, tf.float32)
        self._powers = [tf.pow(beta, step) for beta in (self.beta_1, self.beta_2)]
        super()._backend_update_step(grads, trainable_variables, learning_rate)

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        """Update one variable and its two moments."""
        index = self._get_variable_index(variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=self._powers[0],
            beta2_power=self._powers[1],
            lr=learning_rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )
