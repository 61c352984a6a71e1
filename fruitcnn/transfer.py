"""Networks that were trained on other pictures before: keras.applications as a start. Beside models; no Ray.

The backbone learns in two stages: first only the new last layer, for `--frozen-share` of the steps, then everything at
`--fine-tuning-rate` of the learning rate. Its BatchNormalization layers keep the statistics that came with the weights,
in both stages: they are those of many more pictures, and then nothing of a step depends on the number of workers.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from fruitcnn import cache, storage
from fruitcnn.errors import UsageError

IMAGENET = "imagenet"
_ENDINGS = (".h5",)
_SIZE_OF_WEIGHTS_PX = 224  # whatever the input of the new network: convolutions have no size


class _Application(NamedTuple):
    """A network of keras.applications, and (scale, offset) of the channels R, G, B, 0..255, that it was trained on."""

    name: str
    scale: tuple[float, ...]
    offset: tuple[float, ...]


_DEVIATIONS, _MEANS = (0.229, 0.224, 0.225), (0.485, 0.456, 0.406)
_APPLICATIONS = {
    "mobilenet_v2": _Application("MobileNetV2", (1 / 127.5,) * 3, (-1.0,) * 3),
    "efficientnet_v2_b0": _Application(
        "EfficientNetV2B0",
        tuple(1 / 255 / deviation for deviation in _DEVIATIONS),
        tuple(-mean / deviation for mean, deviation in zip(_MEANS, _DEVIATIONS, strict=True)),
    ),
}


def backbone(architecture: str, image: Any) -> tuple[Any, Any]:
    """Return (image, features): a Keras input like `image`, uint8 (N, H, W, 3), and what a fresh backbone makes of it,
    (N, F).
    """
    import keras

    application = _APPLICATIONS[architecture]
    scaled = keras.layers.Rescaling(application.scale, application.offset, name="scale")(image)
    copy = keras.models.clone_model(_source(architecture, input_tensor=scaled), clone_function=_plain)
    return copy.inputs[0], keras.layers.GlobalAveragePooling2D(name="pooled")(copy.outputs[0])


def start_from(weights: str, model: Any, architecture: str) -> None:
    """Give the backbone of a freshly built model the weights of `weights`: imagenet, or the URI of a file.

    UsageError if the file is not there or is not of this architecture.
    """
    source = _source(architecture, input_shape=(_SIZE_OF_WEIGHTS_PX, _SIZE_OF_WEIGHTS_PX, 3))
    try:
        if weights == IMAGENET:
            source = _from_the_internet(architecture)
        else:
            _load(source, weights)
    except UsageError:
        raise
    except (OSError, ValueError, KeyError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise UsageError(
            f"--weights {weights}: these are no weights for {architecture} ({first_line}); wanted the file of "
            f"keras.applications.{_APPLICATIONS[architecture].name}(include_top=False)"
        ) from error
    for layer in source.layers:
        if layer.weights:
            model.get_layer(layer.name).set_weights(layer.get_weights())


def require(weights: str) -> None:
    """UsageError if there can be no weights at this URI."""
    if weights in ("", IMAGENET):
        return
    with storage.argument("--weights"):
        uri = storage.normalise(weights)
        if not uri.endswith(_ENDINGS):
            raise UsageError(
                f"--weights {weights}: got another ending, wanted .h5 or .weights.h5, a file of Keras weights"
            )
        if not storage.exists(uri):
            raise UsageError(f"--weights {weights}: no such file; give imagenet, or the URI of a file of Keras weights")


def _source(architecture: str, **of_what: Any) -> Any:
    import keras

    more = {"include_preprocessing": False} if architecture == "efficientnet_v2_b0" else {}
    make = getattr(keras.applications, _APPLICATIONS[architecture].name)
    return make(include_top=False, weights=None, **of_what, **more)


def _from_the_internet(architecture: str) -> Any:
    """The application as Keras downloads it, into its own cache; one process of a machine at a time."""
    import keras

    folder = cache.folder()
    folder.mkdir(parents=True, exist_ok=True)
    make = getattr(keras.applications, _APPLICATIONS[architecture].name)
    with FileLock(folder / "imagenet.lock"):
        try:
            return make(include_top=False, weights=IMAGENET)
        except Exception as error:  # Keras raises no class of its own
            raise UsageError(
                f"--weights {IMAGENET}: {' '.join(str(error).split())[:300]}. Where there is no internet, download "
                f"that file elsewhere and give its path or URI instead"
            ) from error


def _load(source: Any, weights: str) -> None:
    with tempfile.TemporaryDirectory(prefix="fruitcnn-weights-") as folder:
        file = Path(folder) / storage.name(weights)
        file.write_bytes(storage.read(storage.normalise(weights)))
        with warnings.catch_warnings():
            # Of a file for another network, Keras names each layer before it fails: a hundred lines ahead of ours.
            warnings.filterwarnings("ignore", "Skipping nested container", UserWarning)
            source.load_weights(file)


def _plain(layer: Any) -> Any:
    """A fresh copy of a layer: statistics stay as they are, and nothing is dropped by chance."""
    from keras import layers

    if isinstance(layer, layers.Dropout):
        return layers.Identity(name=layer.name)
    copy = type(layer).from_config(layer.get_config())
    if isinstance(layer, layers.BatchNormalization):
        copy.trainable = False
    return copy
