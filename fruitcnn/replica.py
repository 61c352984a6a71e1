"""One worker's model, optimizer and compiled step, the same code for one worker and many; between models and train.

The loss of a step is the sum over the worker's rows divided by the GLOBAL batch, and the gradients are summed over the
workers before anything else is done with them (clipping, the check for overflow), so that the update is that of one
process on the union batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from fruitcnn.adamw import DividedAdamW, FusedAdamW
from fruitcnn.augment import augment
from fruitcnn.checkpoints import State
from fruitcnn.group import Group
from fruitcnn.layers import drawing_from, local_average, one_batch
from fruitcnn.models import build_model
from fruitcnn.optimizing import Rate, make_optimizer
from fruitcnn.recipe import TrainConfig
from fruitcnn.schedule import frozen_steps


def evaluation_rows(config: TrainConfig) -> int:
    """Return how many pictures are scored at once: those of a step, so that it takes no more memory."""
    return min(256, config.global_batch_size)


class Score(NamedTuple):
    """Loss and accuracy over `num_rows` rows."""

    loss: float
    accuracy: float
    num_rows: int


class Replica:
    """The part of the training that one worker holds."""

    def __init__(
        self,
        config: TrainConfig,
        num_classes: int,
        num_steps: int,
        group: Group,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        """Build model and optimizer as a part of `group`; `num_steps` shapes the learning-rate schedule."""
        self.config, self.num_classes, self.group = config, num_classes, group
        self._class_weights = None if class_weights is None else tf.constant(class_weights, tf.float32)
        if config.use_gpu:
            keras.mixed_precision.set_global_policy("mixed_float16")
        with group.strategy.scope():
            size = (config.input_px, config.input_px)
            ghosts = config.ghost_rows
            self.model = build_model(config.architecture, size, num_classes, seed=config.seed, ghost_rows=ghosts)
            self.rate = Rate(config, num_steps)
            self.optimizer = make_optimizer(config, self.rate)
            self.optimizer.build(self.model.trainable_variables)
            self._averaged = self._start_averages() if config.weight_averaging else []
        averages = [v for v in self.model.variables if v.synchronization == "on_read"]
        of_weights = zip(self.model.variables, self._averaged, strict=bool(self._averaged))
        # What differs between the workers until it is averaged over them.
        self._local = averages + [mean for source, mean in of_weights if source.synchronization == "on_read"]
        self.num_frozen_steps = frozen_steps(config, num_steps)
        self._divided, self._is_loaded = self._divide(), False
        # Of a network with weights of other pictures, first the last layer alone learns.
        learning = {True: self.model.layers[-2].trainable_variables, False: self.model.trainable_variables}
        self._steps = {
            is_frozen: _graph(self._distributed(partial(self._train_rows, variables)))
            for is_frozen, variables in learning.items()
        }
        self._score = _graph(self._distributed(self._score_rows))
        self._sum = _graph(self._distributed(self._sum_over_workers))
        self._values = _graph(self._distributed(self._local_values))

    def step(self, images: np.ndarray, labels: np.ndarray, keys: np.ndarray, number: int) -> tuple[Any, Any, Any]:
        """Take step `number` on this worker's rows; return its loss sum, its number of right answers and the seconds
        that summing the gradients took, waiting for the other workers included (scalars).

        `images` uint8 (n, H, W, 3), `labels` int64 (n,), `keys` int32 (n,) of sampling.row_keys.
        """
        if self._divided and not self._is_loaded:
            self._divided.load()
            self._is_loaded = True
        step = self._steps[number < self.num_frozen_steps]
        return step(tf.constant(images), tf.constant(labels), tf.constant(keys))

    def evaluate(self, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> Score:
        """Score this worker's rows of a split and add the other workers'; all workers must call it together.

        `batches` are images, uint8 (n, H, W, 3), and labels, int64 (n,), n at most evaluation_rows. With weight
        averaging it is the averaged weights that are scored.
        """
        sums = np.zeros(3)
        with self._with_averaged_weights():
            for images, labels in batches:
                sums += self._padded_score(images, labels)
        loss, num_right, num_rows = self.sum_over_workers(sums)
        return Score(loss / max(1, num_rows), num_right / max(1, num_rows), int(num_rows))

    def sum_over_workers(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return the element-wise sum of a small vector over all workers; all must call it together."""
        # A copy: what comes back may lie in memory that the next sum is written to.
        return np.array(self._sum(tf.constant(np.asarray(values, np.float64))))

    def is_finite(self) -> bool:
        """Whether no weight is infinite or no number; the loss need not show it: a ReLU on a CPU makes zeros of NaN."""
        return all(np.isfinite(np.asarray(variable.value)).all() for variable in self.model.trainable_variables)

    def average_statistics(self) -> None:
        """Set the moving averages to their mean over the workers, and collect what each holds of the optimizer's state;
        all must call it together.
        """
        if self._divided and self._is_loaded:
            self._divided.collect()
        if not self._local or self.group.size == 1:
            return
        values = self._own_values()
        local = [values[id(variable)] for variable in self._local]
        flat = self.sum_over_workers(np.concatenate(local)) / self.group.size
        pieces = np.split(flat.astype(np.float32), np.cumsum([len(value) for value in local])[:-1])
        for variable, piece in zip(self._local, pieces, strict=True):
            variable.assign(piece)

    def state(self, step: int) -> State:
        """Return weights, optimizer and step; call average_statistics first.

        With weight averaging `weights` are the averaged ones; those that training goes on from follow the optimizer's.
        """
        values = self._own_values()
        # A copy: a checkpoint is written while the next steps write to the memory of divided weights.
        copied = np.array if self._divided else np.asarray
        model = [copied(values[id(variable)]) for variable in self.model.variables]
        optimizer = [np.asarray(variable.value) for variable in self.optimizer.variables]
        if not self._averaged:
            return State(step, model, optimizer)
        return State(step, [values[id(variable)] for variable in self._averaged], optimizer + model)

    def restore(self, state: State) -> None:
        """Go on from `state`. Raises ValueError if it belongs to another model."""
        trained = [*self.optimizer.variables, *(self.model.variables if self._averaged else [])]
        for variables, values in ((self._averaged or self.model.variables, state.weights), (trained, state.optimizer)):
            if [tuple(v.shape) for v in variables] != [value.shape for value in values]:
                raise ValueError(f"checkpoint of step {state.step}: its arrays do not fit {self.config.architecture}")
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        self._is_loaded = False

    @property
    def is_divided(self) -> bool:
        """Whether the workers divide the optimizer's work among them."""
        return self._divided is not None

    def restart_averages(self) -> None:
        """Let the averaged weights begin at the weights of now, which were not drawn but given."""
        for variable, average in zip(self.model.variables, self._averaged, strict=bool(self._averaged)):
            average.assign(np.asarray(variable.value))

    def _divide(self) -> DividedAdamW | None:
        """Divide the optimizer's work among workers that share memory, where nobody asks for the whole gradient."""
        open_shares, is_adamw = self.group.open_shares, isinstance(self.optimizer, FusedAdamW)
        if not open_shares or not is_adamw or self.config.clip_norm or self.num_frozen_steps:
            return None
        variables = self.model.trainable_variables
        memory = open_shares([np.asarray(variable.value) for variable in variables])
        return DividedAdamW(self.optimizer, variables, memory)

    def _start_averages(self) -> list[keras.Variable]:
        return [local_average(f"average_{n}", np.asarray(v.value)) for n, v in enumerate(self.model.variables)]

    @contextmanager
    def _with_averaged_weights(self) -> Iterator[None]:
        if not self._averaged:
            yield
            return
        values = self._own_values()
        for variable, average in zip(self.model.variables, self._averaged, strict=True):
            variable.assign(values[id(average)])
        try:
            yield
        finally:
            for variable in self.model.variables:
                variable.assign(values[id(variable)])

    def _own_values(self) -> dict[int, np.ndarray]:
        """Return what this worker holds, by the id of the variable."""
        variables = [*self.model.variables, *self._averaged]
        return {id(v): np.asarray(value) for v, value in zip(variables, self._values(), strict=True)}

    def _distributed(self, function: Any) -> Any:
        return lambda *arguments: self.group.strategy.run(function, args=arguments)

    def _train_rows(
        self, variables: list[Any], images: tf.Tensor, labels: tf.Tensor, keys: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        num_parts = self.config.num_parts(images.shape[0], self.group.num_parts)
        split = zip(*(tf.split(each, num_parts) for each in (images, labels, keys)), strict=True)
        with one_batch():
            losses, rights, of_parts = zip(*(self._learn_from(variables, *part) for part in split), strict=True)
        own = [tf.add_n(each) for each in zip(*of_parts, strict=True)]
        if self._divided:
            seconds = self._divided.step(own)
        else:
            gradients, seconds = self._sum_gradients(own)
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        if self._averaged:
            self._follow_weights()
        return tf.add_n(losses), tf.add_n(rights), seconds

    def _learn_from(
        self, variables: list[Any], images: tf.Tensor, labels: tf.Tensor, keys: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """Return loss sum and number of right answers of some rows, and their part of the gradients."""
        with tf.GradientTape() as tape:
            with drawing_from(keys):
                probabilities = self.model(augment(images, keys, self.config.augmentation), training=True)
            losses = self._losses(labels, probabilities, self.config.label_smoothing)
            if self._class_weights is not None:
                losses *= tf.gather(self._class_weights, labels)
            loss = tf.reduce_sum(losses)
            scaled = self.optimizer.scale_loss(loss / self.config.global_batch_size)
        return loss, _num_right(labels, probabilities, tf.ones_like(loss)), tape.gradient(scaled, variables)

    def _sum_gradients(self, gradients: list[tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Return the gradients summed over the workers, and the seconds that took, float64."""
        if self.group.size == 1:
            return gradients, tf.zeros([], tf.float64)
        with tf.control_dependencies(gradients):
            began = tf.timestamp()
        with tf.control_dependencies([began]):
            own = [tf.identity(gradient) for gradient in gradients]
        summed = self.group.add(own)
        with tf.control_dependencies(summed):
            return summed, tf.timestamp() - began

    def _follow_weights(self) -> None:
        # Early on the average is over the few steps there are, not over the random start.
        step = tf.cast(tf.convert_to_tensor(self.optimizer.iterations), tf.float32)
        decay = tf.minimum(self.config.weight_averaging, (1 + step) / (10 + step))
        for variable, average in zip(self.model.variables, self._averaged, strict=True):
            average.assign(average + (1 - decay) * (tf.convert_to_tensor(variable) - average))

    def _score_rows(self, images: tf.Tensor, labels: tf.Tensor, real: tf.Tensor) -> tf.Tensor:
        of_parts = tf.split(images, self.config.num_parts(images.shape[0], self.group.num_parts))
        probabilities = tf.concat([self.model(part, training=False) for part in of_parts], 0)
        loss = tf.reduce_sum(self._losses(labels, probabilities, 0.0) * real)
        return tf.stack([loss, _num_right(labels, probabilities, real), tf.reduce_sum(real)])

    def _padded_score(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        missing = evaluation_rows(self.config) - len(labels)
        real = np.pad(np.ones(len(labels), np.float32), (0, missing))
        images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
        return np.asarray(
            self._score(tf.constant(images), tf.constant(np.pad(labels, (0, missing))), tf.constant(real))
        )

    def _losses(self, labels: tf.Tensor, probabilities: tf.Tensor, smoothing: float) -> tf.Tensor:
        targets = tf.one_hot(labels, self.num_classes) * (1 - smoothing) + smoothing / self.num_classes
        return keras.losses.categorical_crossentropy(targets, probabilities)

    def _sum_over_workers(self, values: tf.Tensor) -> tf.Tensor:
        return self.group.add([values])[0]

    def _local_values(self) -> list[tf.Tensor]:
        # Inside a replica an "on_read" variable gives this worker's own value; outside it would start an all-reduce.
        return [tf.identity(variable.value) for variable in (*self.model.variables, *self._averaged)]


def _graph(function: Any) -> Any:
    # Autograph, of which nothing here makes use, leaves a file in the temporary folder where a process is ended by Ray.
    return tf.function(function, reduce_retracing=True, autograph=False)


def _num_right(labels: tf.Tensor, probabilities: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    right = tf.equal(tf.argmax(probabilities, 1), labels)
    return tf.reduce_sum(tf.cast(right, tf.float32) * weights)
