"""A trained model and its training pictures -> the same model with a score, calibrated, and limits. For freezing.

Three kinds of rows: those that centres and covariance come from; rows held from these, which tell how far familiar
pictures lie; and the validation rows, held from the network, which tell how sure it may be. Everything is measured on
the pictures as they are and after a mild change each, so that a shifted or darker picture is still a familiar one.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fruitcnn import images
from fruitcnn.familiar import Labels, Limits, Statistics, choose_limits, fit_temperature, margins, measure, unlike
from fruitcnn.manifest import Manifest
from fruitcnn.parquet import read_rows
from fruitcnn.pixels import Block, blocks
from fruitcnn.recipe import Augmentation, TrainConfig
from fruitcnn.sampling import held_and_validation, row_keys, validation_mask

_TRAIN_ROWS_PER_CLASS = 128
_MAX_TRAIN_ROWS = 20_000
_MAX_VALIDATION_ROWS = 5_000
_ROWS_PER_CALL = 256

_HELD_SHARE = 0.25
"""Of every group's frames, a quarter of the turn: as far as the nearest familiar frame may well be."""

_MILD = Augmentation(flip=False, rotate_degrees=10, shift=0.05, zoom=0.05, brightness=0.2, tint=0.03, contrast=0.1)


class _Rows(NamedTuple):
    """What is known of the rows of the training split, without their pictures."""

    labels: Labels
    groups: list[str]
    paths: list[str]


class Calibrated(NamedTuple):
    """The model with the output `unlike`, what that is computed from, and the training pictures behind it."""

    model: Any
    statistics: Statistics
    limits: Limits
    pixels: npt.NDArray[np.uint8]


class _Found(NamedTuple):
    """n pictures (n, H, W, 3); features (2n, F), logits (2n, C), labels (2n,) of them, and of them mildly changed."""

    pixels: npt.NDArray[np.uint8]
    features: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
    labels: Labels


def calibrate(model: Any, dataset: str, manifest: Manifest, config: dict[str, Any], answer_share: float) -> Calibrated:
    """Give a plain Keras model what it needs to know when it does not know.

    config: of the training run, which says what was held from training. Reads at most 25,000 pictures, however large
    the data set is.
    """
    from fruitcnn import scored

    rows = _read_rows(dataset, manifest)
    recipe = TrainConfig(**config)
    not_seen, held_from_network = held_and_validation(rows.groups, rows.paths, rows.labels, recipe)
    held_from_centres = validation_mask(rows.groups, rows.paths, _HELD_SHARE, recipe.seed + 1)
    train = _per_class(rows.labels, ~held_from_network & ~not_seen)
    validation = _evenly(np.flatnonzero(held_from_network), _MAX_VALIDATION_ROWS)
    source = _Source(dataset, manifest, scored.features_model(model))
    familiar, unseen = source.find(train, rows.labels), source.find(validation, rows.labels)

    plain = slice(len(validation))
    temperature = fit_temperature(unseen.logits[plain], unseen.labels[plain])
    held = np.tile(held_from_centres[train], 2)
    # Of very few pictures none can be spared: then their own distances have to do.
    held = held if held.any() and not held.all() else np.zeros(len(held), bool)
    centres = scored.max_centres(model)
    partial = measure(familiar.features[~held], familiar.labels[~held], centres)
    tried = held if held.any() else np.ones(len(held), bool)
    limits = choose_limits(
        unlike(familiar.features[tried], partial, _softmax(familiar.logits[tried] / temperature)),
        margins(_softmax(unseen.logits / temperature)),
        answer_share,
        temperature=temperature,
        num_train_rows=len(train),
    )
    statistics = measure(familiar.features, familiar.labels, centres)
    with_score = scored.with_score(model)
    scored.set_statistics(with_score, statistics, temperature)
    return Calibrated(with_score, statistics, limits, familiar.pixels)


class _Source:
    """Pictures of the training split, decoded and put through the network."""

    def __init__(self, dataset: str, manifest: Manifest, model: Any) -> None:
        self.dataset, self.max_pixels, self.input_px = dataset, manifest.max_pixels, model.input_shape[1:3]
        self.answers = [_compiled(model, change) for change in (None, _MILD)]
        self.blocks = blocks(manifest.split("train"))

    def find(self, rows: npt.NDArray[np.int64], labels: Labels) -> _Found:
        """What the network makes of these rows (rising), and of each one mildly changed."""
        pixels = self._decode(rows)
        keys = row_keys(0, np.zeros(len(rows), np.int64), rows)
        plain, changed = (_through(answer, pixels, keys) for answer in self.answers)
        features, logits = (np.concatenate(both) for both in zip(plain, changed, strict=True))
        return _Found(pixels, features, logits, np.tile(labels[rows], 2))

    def _decode(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        def decode(block: Block) -> list[npt.NDArray[np.uint8]]:
            inside = rows[(rows >= block.start) & (rows < block.start + block.num_rows)] - block.start
            if not len(inside):
                return []
            batches = list(read_rows(self.dataset, block.shard, ("image.bytes",), [block.row_group]))
            files = pa.Table.from_batches(batches).take(inside)["image"].combine_chunks().field("bytes").to_pylist()
            return [images.decode(data, self.input_px, self.max_pixels).pixels for data in files]

        with ThreadPoolExecutor() as pool:
            return np.stack([pixels for decoded in pool.map(decode, self.blocks) for pixels in decoded])


def _compiled(model: Any, change: Augmentation | None) -> Any:
    """Return a function of pictures uint8 (N, H, W, 3) and keys int32 (N,), for any N: the model's outputs for the
    pictures, changed as `change` says.
    """
    import tensorflow as tf

    from fruitcnn.augment import augment

    def answer(pictures: Any, drawn: Any) -> Any:
        changed = tf.cast(tf.round(augment(pictures, drawn, change)), tf.uint8) if change else pictures
        return model(changed, training=False)

    signature = [tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8), tf.TensorSpec((None,), tf.int32)]
    return tf.function(answer, signature, autograph=False)


def _through(
    answer: Any, pixels: npt.NDArray[np.uint8], keys: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(features, logits) of pixels (N, H, W, 3), in calls of bounded size."""
    found = []
    for start in range(0, len(pixels), _ROWS_PER_CALL):
        outputs = answer(pixels[start : start + _ROWS_PER_CALL], keys[start : start + _ROWS_PER_CALL])
        found.append((outputs["features"].numpy(), outputs["logits"].numpy()))
    features, logits = zip(*found, strict=True)
    return np.concatenate(features), np.concatenate(logits)


def _read_rows(dataset: str, manifest: Manifest) -> _Rows:
    rows = _Rows(np.zeros(0, np.int64), [], [])
    labels: list[int] = []
    for shard in manifest.split("train").shards:
        for batch in read_rows(dataset, shard.path, columns=["label", "group", "image.path"]):
            labels += batch["label"].to_pylist()
            rows.groups.extend(batch["group"].to_pylist())
            rows.paths.extend(batch["image"].field("path").to_pylist())
    return rows._replace(labels=np.array(labels, np.int64))


def _per_class(labels: Labels, may_be: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Rows of every class where may_be holds, rising: as many of each as the whole allows, evenly spread."""
    num_classes = max(1, len(np.unique(labels)))
    each = max(2 * 4, min(_TRAIN_ROWS_PER_CLASS, _MAX_TRAIN_ROWS // num_classes))
    chosen = [_evenly(np.flatnonzero((labels == label) & may_be), each) for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def _evenly(rows: npt.NDArray[np.int64], wanted: int) -> npt.NDArray[np.int64]:
    """`wanted` of the rows, or all, evenly spread."""
    number = min(len(rows), wanted)
    return rows[np.arange(number) * len(rows) // max(1, number)]


def _softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (exponents / exponents.sum(axis=1, keepdims=True)).astype(np.float32)
