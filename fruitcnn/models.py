"""Architectures by name -> Keras model, between the recipe and train; no Ray.

Every model takes uint8 pictures (N, H, W, 3) named "image" and returns float32 probabilities (N, num_classes) named
"probabilities": scaling to [0, 1] is its first layer. `ghost_rows` chooses the training twin of a model, whose batch
statistics and dropout masks do not depend on the number of workers; without it the same variables stand in plain Keras
layers, which is what gets frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fruitcnn.presets import PRETRAINED
from fruitcnn.recipe import ARCHITECTURES

Layer = Callable[[Any], Any]


class _Parts:
    """The layers an architecture is made of: training twins or plain Keras, in the order of creation."""

    def __init__(self, seed: int, ghost_rows: int | None) -> None:
        self.seed, self.ghost_rows, self.num_drawn, self.num_dropouts = seed, ghost_rows, 0, 0

    def initializer(self, kind: str) -> Any:
        """Return an initializer with a seed of its own: the same weights in every process."""
        from keras import initializers

        self.num_drawn += 1
        seed = self.seed * 1000 + self.num_drawn
        return (initializers.HeNormal if kind == "he" else initializers.GlorotUniform)(seed=seed)

    def conv(self, filters: int, size: int = 3, *, padding: str = "valid", activation: str | None = "relu") -> Layer:
        """Return a convolution; without activation it has no bias either, as a normalisation follows."""
        from keras import layers

        return layers.Conv2D(
            filters,
            size,
            padding=padding,
            activation=activation,
            use_bias=activation is not None,
            kernel_initializer=self.initializer("glorot" if activation else "he"),
        )

    def dense(self, units: int, activation: str | None = "relu") -> Layer:
        """Return a fully connected layer."""
        from keras import layers

        return layers.Dense(units, activation=activation, kernel_initializer=self.initializer("glorot"))

    def norm(self) -> Layer:
        """Return the batch normalisation of this twin."""
        from keras import layers

        if self.ghost_rows is None:
            return layers.BatchNormalization(epsilon=1e-3)
        from fruitcnn.layers import GhostNormalization

        return GhostNormalization(self.ghost_rows, epsilon=1e-3)

    def dropout(self, rate: float) -> Layer:
        """Return the dropout of this twin, with a stream of draws of its own."""
        from keras import layers

        if self.ghost_rows is None:
            return layers.Dropout(rate)
        from fruitcnn.layers import RowDropout

        self.num_dropouts += 1
        return RowDropout(rate, stream=1000 + self.num_dropouts)


def _custom_cnn(parts: _Parts) -> list[Layer]:
    """Return the reference work's own network: three convolutions without padding, then a dense layer of 1,024."""
    from keras import layers

    blocks = [layer for filters in (32, 32, 64) for layer in (parts.conv(filters), layers.MaxPooling2D())]
    return [*blocks, layers.Flatten(), parts.dense(1024), parts.dropout(0.5)]


def _vgg13(parts: _Parts) -> list[Layer]:
    """Return the reference work's VGG13; padded, since without padding it does not fit below 92 px."""
    from keras import layers

    stages = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512))
    blocks: list[Layer] = []
    for filters in stages:
        blocks += [*(parts.conv(number, padding="same") for number in filters), layers.MaxPooling2D()]
    return [*blocks, layers.Flatten(), parts.dense(1024), parts.dropout(0.5)]


def _lenet5(parts: _Parts) -> list[Layer]:
    """Return LeNet-5 (LeCun et al. 1998) with ReLU and max pooling."""
    from keras import layers

    blocks = [parts.conv(6, 5), layers.MaxPooling2D(), parts.conv(16, 5), layers.MaxPooling2D(), layers.Flatten()]
    return [*blocks, parts.dense(120), parts.dense(84)]


def _alexnet(parts: _Parts) -> list[Layer]:
    """Return AlexNet (Krizhevsky et al. 2012) for small pictures: no stride, a third of the filters."""
    from keras import layers

    blocks = [parts.conv(32, 5, padding="same"), layers.MaxPooling2D(), parts.conv(64, padding="same")]
    blocks += [layers.MaxPooling2D(), parts.conv(128, padding="same"), parts.conv(128, padding="same")]
    blocks += [parts.conv(96, padding="same"), layers.MaxPooling2D(), layers.Flatten()]
    return [*blocks, parts.dense(1024), parts.dropout(0.5), parts.dense(1024), parts.dropout(0.5)]


def _modern(widths: tuple[int, ...], last: int, *, average: bool, dropout: float) -> Callable[[_Parts], list[Layer]]:
    """Return conv-norm-relu-pool stages of `widths` filters, one of `last` filters without pooling, and a summary.

    The summary is a global average, or all places of the map: the latter learns faster and has more weights.
    """

    def architecture(parts: _Parts) -> list[Layer]:
        from keras import layers

        blocks: list[Layer] = []
        for filters in (*widths, last):
            blocks += [parts.conv(filters, padding="same", activation=None), parts.norm(), layers.ReLU()]
            blocks += [layers.MaxPooling2D()]
        blocks[-1] = layers.GlobalAveragePooling2D() if average else layers.Flatten()
        return [*blocks, *([parts.dropout(dropout)] if dropout else [])]

    return architecture


_BUILDERS: dict[str, Callable[[_Parts], list[Layer]]] = {
    "custom_cnn": _custom_cnn,
    "vgg13": _vgg13,
    "lenet5": _lenet5,
    "alexnet": _alexnet,
    "small_cnn": _modern((16, 32, 64), 128, average=False, dropout=0.0),
    "base_cnn": _modern((32, 64, 128), 256, average=True, dropout=0.2),
}
assert set(_BUILDERS) == set(ARCHITECTURES)


def build_model(
    architecture: str, input_px: tuple[int, int], num_classes: int, *, seed: int = 0, ghost_rows: int | None = None
) -> Any:
    """Return a keras.Model: uint8 (N, H, W, 3) -> float32 probabilities (N, num_classes).

    `input_px` is (height, width). The same seed gives the same weights in every process. Raises ValueError where the
    input is too small for the architecture.
    """
    import keras

    if architecture not in (*_BUILDERS, *PRETRAINED):
        raise ValueError(f"architecture: got {architecture!r}, wanted one of {', '.join((*_BUILDERS, *PRETRAINED))}")
    parts = _Parts(seed, ghost_rows)
    image = keras.Input((*input_px, 3), dtype="uint8", name="image")
    try:
        image, features = _features(architecture, image, parts)
    except ValueError as error:
        raise ValueError(
            f"input_px: got {input_px[0]}x{input_px[1]}, too small for {architecture}: try --input-px 64"
        ) from error
    logits = parts.dense(num_classes, activation=None)(features)
    probabilities = keras.layers.Activation("softmax", dtype="float32", name="probabilities")(logits)
    return keras.Model(image, probabilities, name=architecture)


def _features(architecture: str, image: Any, parts: _Parts) -> tuple[Any, Any]:
    """(input, features) of a network without its last layer; the input may be another one than `image`."""
    from keras import layers

    if architecture in PRETRAINED:
        from fruitcnn import transfer

        image, features = transfer.backbone(architecture, image)
        return image, parts.dropout(0.2)(features)
    features = layers.Rescaling(1 / 255, name="scale")(image)
    for layer in _BUILDERS[architecture](parts):
        features = layer(features)
    return image, features
