"""adamw.py: the steps of Keras's AdamW, clipping and a changing rate included, from the same variables in its order."""

from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

from fruitcnn.adamw import FusedAdamW  # noqa: E402 - after the check that TensorFlow is there

SHAPES = [(64, 33), (33,), (3, 3, 4, 8)]


def after_steps(optimizer_class: Any, num_steps: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The weights at the start, and then weights and the optimizer's variables, after steps with drawn gradients."""
    draw = np.random.default_rng(0)
    weights = [keras.Variable(draw.standard_normal(shape), dtype="float32") for shape in SHAPES]
    start = [np.asarray(weight.value) for weight in weights]
    rate = keras.optimizers.schedules.CosineDecay(1e-2, 40)
    optimizer = optimizer_class(rate, weight_decay=0.5, epsilon=1e-5, global_clipnorm=30.0)
    optimizer.build(weights)

    @tf.function
    def step(*gradients: tf.Tensor) -> None:
        optimizer.apply_gradients(zip(gradients, weights, strict=True))

    for _ in range(num_steps):
        step(*(tf.constant(draw.standard_normal(shape), tf.float32) for shape in SHAPES))
    return start, [np.asarray(each.value) for each in (*weights, *optimizer.variables)]


def test_the_steps_are_those_of_keras_but_for_rounding() -> None:
    start, wanted = after_steps(keras.optimizers.AdamW, 30)
    _, found = after_steps(FusedAdamW, 30)
    for before, after in zip(start, wanted, strict=False):
        assert abs(after - before).max() > 0.03, "weights that hardly move would prove nothing"
    assert [array.shape for array in found] == [array.shape for array in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)
