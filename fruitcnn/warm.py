"""A frozen model -> the weights a new run starts with; between frozen and train.

Everything is taken over; of the last layer, the columns of the classes that both know, by name. Classes that the
frozen model does not know start as they would in a fresh run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fruitcnn import bundle
from fruitcnn.errors import UsageError
from fruitcnn.recipe import TrainConfig

_MODEL = "model.keras"


def require_fitting(config: TrainConfig, classes: Sequence[str]) -> None:
    """UsageError if config.initial_model is no frozen model that a run of `config` over `classes` can start from."""
    uri = config.initial_model
    with bundle.argument("--initial-model", uri):
        description, _ = bundle.read_description(uri)
    pairs = {
        "--architecture": (config.architecture, description.architecture),
        "--input-px": (config.input_px, description.input_px[0]),
    }
    for flag, (got, wanted) in pairs.items():
        if got != wanted:
            raise UsageError(f"{flag}: got {got}, wanted {wanted}, that of --initial-model {uri}")
    if not set(classes) & set(description.labels):
        raise UsageError(f"--initial-model {uri}: knows none of the classes of --dataset; leave it out")


def start_from(uri: str, model: Any, classes: Sequence[str]) -> None:
    """Give a freshly built training model the weights of the frozen model at `uri`.

    FrozenModelError if the frozen model is damaged or of another architecture.
    """
    import keras

    description, model_hash = bundle.read_description(uri)
    folder = bundle.fetch(uri, description, model_hash, [_MODEL], None)
    # Its hash is right, so it is the file that jobs.freeze wrote.
    found = [(v.name, np.asarray(v)) for v in keras.models.load_model(folder / _MODEL, compile=False).variables]
    head = {id(variable) for variable in model.layers[-2].variables}
    sources = iter(found)
    for variable in model.variables:
        fresh = np.asarray(variable.value)
        lead = fresh.shape[:-1] if id(variable) in head else fresh.shape
        wanted = (*lead, len(description.labels)) if id(variable) in head else fresh.shape
        # A frozen model may hold more than the network, such as what tells unlike pictures: that is passed over.
        values = next((each for name, each in sources if name == variable.name and each.shape == wanted), None)
        if values is None:
            raise bundle.FrozenModelError(f"{uri}: {_MODEL} has no {variable.path} of shape {wanted}")
        variable.assign(columns(values, description.labels, fresh, classes) if id(variable) in head else values)


def columns(values: np.ndarray, labels: Sequence[str], fresh: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """`fresh` (..., classes) with the columns of `values` (..., labels) for every class that is among the labels."""
    place = {label: index for index, label in enumerate(labels)}
    merged = fresh.copy()
    for index, name in enumerate(classes):
        if name in place:
            merged[..., index] = values[..., place[name]]
    return merged
