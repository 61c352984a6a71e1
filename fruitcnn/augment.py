"""One batched projective transform and colour change in the training graph, drawn per row; between pixels and model.

Never part of a saved model. What is drawn for a row depends on its key alone (sampling.row_keys).
"""

from __future__ import annotations

import math

import tensorflow as tf

from fruitcnn.layers import row_uniform
from fruitcnn.recipe import Augmentation

_STREAM = 1


def augment(images: tf.Tensor, keys: tf.Tensor, recipe: Augmentation) -> tf.Tensor:
    """Return augmented pictures, float32 (N, H, W, 3) in 0..255, of uint8 `images` and int32 `keys` (N,).

    The surroundings of a moved picture are white, as Fruits-360's background is.
    """
    draws = _only_some(row_uniform(keys, 13, _STREAM), recipe.changed_share)
    if recipe.moves:
        pixels = _move(tf.cast(images, tf.float32), draws, recipe)
    else:
        pixels = tf.cast(_flip(images, keys) if recipe.flip else images, tf.float32)
    return _recolour(pixels, draws, recipe) if recipe.recolours else pixels


def _flip(images: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Mirror every second picture, by the first of its draws; whole pictures are copied, which costs little."""
    width, colours = images.shape[2:]
    # As one tall picture: TensorFlow mirrors that in whole pixels, and a batch of them in single bytes.
    mirrored = tf.reverse(tf.reshape(images, [-1, width, colours]), [1])
    both = tf.concat([images, tf.reshape(mirrored, tf.shape(images))], 0)
    is_mirrored = tf.cast(row_uniform(keys, 1, _STREAM)[:, 0] < 0.5, tf.int32)
    num_rows = tf.shape(images)[0]
    return tf.gather(both, tf.range(num_rows) + num_rows * is_mirrored)


def _only_some(draws: tf.Tensor, share: float) -> tf.Tensor:
    """Put what is drawn for all but `share` of the rows to the middle of its range, where nothing changes."""
    middle = tf.concat([draws[:, :1], tf.fill(tf.shape(draws[:, 1:]), 0.5)], 1)  # the first draw is the mirror's
    return tf.where(draws[:, -1:] < share, draws, middle) if share < 1 else draws


def _between(draw: tf.Tensor, low: float, high: float) -> tf.Tensor:
    return low + (high - low) * draw


def _move(pixels: tf.Tensor, draws: tf.Tensor, recipe: Augmentation) -> tf.Tensor:
    height, width = pixels.shape[1], pixels.shape[2]
    mirror = tf.where(draws[:, 0] < 0.5, -1.0, 1.0) if recipe.flip else tf.ones_like(draws[:, 0])
    angle = _between(draws[:, 1], -recipe.rotate_degrees, recipe.rotate_degrees) * (math.pi / 180)
    shear = tf.tan(_between(draws[:, 2], -recipe.shear_degrees, recipe.shear_degrees) * (math.pi / 180))
    zoom_x = 1 / _between(draws[:, 3], 1 - recipe.zoom, 1 + recipe.zoom)
    zoom_y = 1 / _between(draws[:, 4], 1 - recipe.zoom, 1 + recipe.zoom) if recipe.zoom_axes else zoom_x
    shift_x = _between(draws[:, 5], -recipe.shift, recipe.shift) * width
    shift_y = _between(draws[:, 6], -recipe.shift, recipe.shift) * height
    cos, sin = tf.cos(angle), tf.sin(angle)
    # Output pixel -> input pixel, about the centre: rotate, shear, zoom, mirror, then shift.
    a, b = mirror * zoom_x * cos, mirror * zoom_x * (shear * cos - sin)
    d, e = zoom_y * sin, zoom_y * (shear * sin + cos)
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    c = centre_x + shift_x - a * centre_x - b * centre_y
    f = centre_y + shift_y - d * centre_x - e * centre_y
    zero = tf.zeros_like(a)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels,
        transforms=tf.stack([a, b, c, d, e, f, zero, zero], 1),
        output_shape=tf.constant([height, width], tf.int32),
        fill_value=255.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )


def _recolour(pixels: tf.Tensor, draws: tf.Tensor, recipe: Augmentation) -> tf.Tensor:
    gain = _between(draws[:, 7:8], 1 - recipe.brightness, 1 + recipe.brightness)
    tint = _between(draws[:, 8:11], 1 - recipe.tint, 1 + recipe.tint)
    contrast = _between(draws[:, 11], 1 - recipe.contrast, 1 + recipe.contrast)[:, None, None, None]
    pixels = pixels * (gain * tint)[:, None, None, :]
    if recipe.contrast:
        mean = tf.reduce_mean(pixels, [1, 2, 3], keepdims=True)
        pixels = mean + (pixels - mean) * contrast
    return tf.clip_by_value(pixels, 0.0, 255.0)
