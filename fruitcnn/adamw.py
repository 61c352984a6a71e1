"""Keras's AdamW with one operation of TensorFlow for a variable's step, where Keras has fifteen; for replica.

It is the same work however few rows of a batch a worker holds. The workers of a node therefore divide the weights among
them, whatever variable these belong to: each makes the step of its share, and all of them see the new weights.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fruitcnn.shared_sum import SharedShares


class FusedAdamW(keras.optimizers.AdamW):
    """The variables, the state and, but for rounding, the numbers of keras.optimizers.AdamW; dense gradients only."""

    def _apply_weight_decay(self, variables: list[Any]) -> None:
        kept = self.kept()

        def decay(strategy: tf.distribute.Strategy, values: list[Any]) -> None:
            for value in values:
                strategy.extended.update(value, lambda each: each.assign(each * kept), group=False)

        values = [variable.value for variable in variables if self._use_weight_decay(variable)]
        tf.__internal__.distribute.interim.maybe_merge_call(decay, self._distribution_strategy, values)

    def _backend_update_step(self, grads: list[Any], trainable_variables: list[Any], learning_rate: Any) -> None:
        # Once for all variables.
        self._powers = self.powers()
        super()._backend_update_step(grads, trainable_variables, learning_rate)

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        """Update one variable and its two moments."""
        index = self._get_variable_index(variable)
        moments = (self._momentums[index].value, self._velocities[index].value)
        self.move(variable, moments, gradient, learning_rate, self._powers)

    def move(
        self, weights: tf.Variable, moments: Any, gradient: tf.Tensor, learning_rate: tf.Tensor, powers: Any
    ) -> None:
        """Let `weights` and their two moments take the step of now."""
        tf.raw_ops.ResourceApplyAdam(
            var=weights.handle,
            m=moments[0].handle,
            v=moments[1].handle,
            beta1_power=powers[0],
            beta2_power=powers[1],
            lr=learning_rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )

    def kept(self) -> tf.Tensor:
        """Return the share of a weight that the decay leaves."""
        return 1 - tf.cast(self.learning_rate, tf.float32) * self.weight_decay

    def powers(self) -> list[tf.Tensor]:
        """Return what the coming step divides by for the few steps there were."""
        step = tf.cast(tf.convert_to_tensor(self.iterations) + 1, tf.float32)
        return [tf.pow(beta, step) for beta in (self.beta_1, self.beta_2)]


class DividedAdamW:
    """One worker's part in the steps of an optimizer of variables that all workers hold alike.

    In its graph the variables become views of memory that the workers share, and the optimizer's own moments stay as
    they were until `collect`.
    """

    def __init__(self, optimizer: FusedAdamW, variables: list[Any], memory: SharedShares) -> None:
        """Build the share; `load` before the first step. `memory` is for arrays of the shapes of `variables`."""
        self._optimizer, self._variables, self._memory = optimizer, variables, memory
        share = np.zeros_like(memory.share_of([np.asarray(variable.value) for variable in variables]))
        self._weights, *self._moments = (tf.Variable(share, trainable=False) for _ in range(3))

    def load(self) -> None:
        """Go on from what variables and optimizer hold."""
        optimizer = self._optimizer
        pairs = zip(
            (self._weights, *self._moments),
            (self._variables, optimizer._momentums, optimizer._velocities),
            strict=True,
        )
        for share, variables in pairs:
            share.assign(self._memory.share_of([np.asarray(variable.value) for variable in variables]))

    def collect(self) -> None:
        """Give the optimizer the moments of all shares; all workers must call it together."""
        for share, variables in zip(
            self._moments, (self._optimizer._momentums, self._optimizer._velocities), strict=True
        ):
            for variable, array in zip(variables, self._memory.collect(share.numpy()), strict=True):
                variable.assign(array)

    def step(self, gradients: list[tf.Tensor]) -> tf.Tensor:
        """Take the step of the sum of all workers' gradients, in the graph; all must call it.

        Returns the seconds that the workers took to tell each other, waiting included, float64.
        """
        optimizer = self._optimizer
        with tf.control_dependencies(gradients):
            began = tf.timestamp()
        with tf.control_dependencies([began]):
            gradient = tf.numpy_function(self._memory.sum, [tf.identity(each) for each in gradients], tf.float32)
        with tf.control_dependencies([gradient]):
            seconds = tf.timestamp() - began
        gradient.set_shape(self._weights.shape)
        self._weights.assign(self._weights * optimizer.kept())
        optimizer.move(
            self._weights, self._moments, gradient, tf.cast(optimizer.learning_rate, tf.float32), optimizer.powers()
        )
        moved = tf.identity(self._weights)
        with tf.control_dependencies([moved]):
            began = tf.timestamp()
        with tf.control_dependencies([began]):
            whole = tf.numpy_function(self._memory.spread, [moved], [tf.float32] * len(self._variables))
        for variable, values in zip(self._variables, whole, strict=True):
            variable.assign(tf.ensure_shape(values, variable.shape))
        optimizer.iterations.assign_add(1)
        with tf.control_dependencies(whole):
            return seconds + tf.timestamp() - began
