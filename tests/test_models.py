"""models.py, layers.py, augment.py: training twins equal plain Keras; what is drawn for a row belongs to the row."""

from typing import Any

import numpy as np
import pytest

from fruitcnn.recipe import ARCHITECTURES, Augmentation

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

from fruitcnn.augment import augment  # noqa: E402 - after the check that TensorFlow is there
from fruitcnn.layers import GhostNormalization, RowDropout, drawing_from, row_uniform  # noqa: E402
from fruitcnn.models import build_model  # noqa: E402

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
KEYS = tf.constant(RNG.integers(-(2**31), 2**31, 8, dtype=np.int32))
EVERYTHING = Augmentation(
    rotate_degrees=25, shear_degrees=5, zoom=0.2, shift=0.1, brightness=0.2, tint=0.1, contrast=0.1
)


def numbers(layer: Any) -> list[tuple[int, ...]]:
    return [tuple(variable.shape) for variable in layer.variables if "seed" not in variable.path]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_training_twin_and_its_plain_network_answer_alike(architecture: str) -> None:
    size = (64, 64) if architecture == "vgg13" else (32, 32)
    twin = build_model(architecture, size, 5, seed=1, ghost_rows=4)
    plain = build_model(architecture, size, 5, seed=1)
    assert numbers(twin) == numbers(plain)
    values = [v for v in plain.variables if "seed" not in v.path]
    for theirs, ours in zip(twin.variables, values, strict=True):
        ours.assign(theirs)
    pictures = RNG.integers(0, 256, (3, *size, 3), dtype=np.uint8)
    np.testing.assert_allclose(twin(pictures, training=False), plain(pictures, training=False), atol=1e-5)


def test_the_reference_network_is_the_reference_network() -> None:
    # FACTS.md, the reference work, item 4: at 100x100 and 131 classes.
    assert build_model("custom_cnn", (100, 100), 131).count_params() == 6_717_539


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, again, other = (build_model("small_cnn", (32, 32), 5, seed=seed).get_weights() for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


def test_an_input_too_small_for_the_network_is_refused_with_a_way_out() -> None:
    with pytest.raises(ValueError, match="input_px: got 8x8, too small for lenet5"):
        build_model("lenet5", (8, 8), 5)


def test_one_ghost_over_the_whole_batch_is_batch_normalization() -> None:
    features = tf.constant(RNG.normal(3, 2, (16, 4, 4, 6)).astype(np.float32))
    ghost, batch = GhostNormalization(16, momentum=0.9), keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-3)
    np.testing.assert_allclose(ghost(features, training=True), batch(features, training=True), atol=1e-4)
    np.testing.assert_allclose(ghost.moving_mean, batch.moving_mean, atol=1e-5)


def test_a_ghost_is_normalised_alike_wherever_it_stands() -> None:
    features = tf.constant(RNG.normal(3, 2, (16, 4, 4, 6)).astype(np.float32))
    whole = GhostNormalization(4)(features, training=True)
    half = GhostNormalization(4)(features[8:], training=True)
    np.testing.assert_allclose(whole[8:], half, atol=1e-6)


def test_draws_are_uniform_and_independent_of_the_batch() -> None:
    keys = tf.constant(RNG.integers(-(2**31), 2**31, 4096, dtype=np.int32))
    draws = row_uniform(keys, 16, stream=3).numpy()
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.01
    assert np.histogram(draws, 10, (0, 1))[0].std() / draws.size < 0.002
    assert abs(np.corrcoef(draws, rowvar=False) - np.eye(16)).max() < 0.08
    np.testing.assert_array_equal(row_uniform(keys[100:110], 16, stream=3), draws[100:110])
    assert (row_uniform(keys, 16, stream=4).numpy() != draws).mean() > 0.99


def test_dropout_masks_belong_to_rows_and_keep_the_mean() -> None:
    layer, ones = RowDropout(0.25, stream=1), tf.ones((8, 4000))
    with drawing_from(KEYS):
        whole = layer(ones, training=True).numpy()
    with drawing_from(KEYS[5:]):
        part = layer(ones[5:], training=True).numpy()
    np.testing.assert_array_equal(whole[5:], part)
    assert abs(whole.mean() - 1) < 0.02
    np.testing.assert_array_equal(layer(ones, training=False), ones)


@pytest.mark.parametrize("recipe", [Augmentation(), EVERYTHING])
def test_augmentation_depends_on_the_row_and_not_on_its_neighbours(recipe: Augmentation) -> None:
    whole = augment(PICTURES, KEYS, recipe).numpy()
    part = augment(PICTURES[3:6], KEYS[3:6], recipe).numpy()
    np.testing.assert_allclose(whole[3:6], part, atol=1e-3)
    assert whole.shape == PICTURES.shape
    assert whole.min() >= 0
    assert whole.max() <= 255


def test_every_second_picture_is_mirrored_and_nothing_else() -> None:
    pictures = RNG.integers(0, 256, (400, 8, 6, 3), dtype=np.uint8)
    changed = augment(pictures, tf.constant(np.arange(400, dtype=np.int32)), Augmentation()).numpy()
    is_same, is_mirrored = ((changed == wanted).all((1, 2, 3)) for wanted in (pictures, pictures[:, :, ::-1]))
    assert (is_same ^ is_mirrored).all()
    assert 160 < is_mirrored.sum() < 240


def test_no_augmentation_changes_nothing() -> None:
    np.testing.assert_array_equal(augment(PICTURES, KEYS, Augmentation(flip=False)), PICTURES.astype(np.float32))


def test_only_the_stated_share_of_pictures_is_changed() -> None:
    keys = tf.constant(RNG.integers(-(2**31), 2**31, 400, dtype=np.int32))
    pictures = np.repeat(PICTURES[:1], 400, 0)
    some = augment(pictures, keys, EVERYTHING.model_copy(update={"changed_share": 0.3, "flip": False})).numpy()
    every = augment(pictures, keys, EVERYTHING.model_copy(update={"flip": False})).numpy()
    changed = abs(some - pictures).max(axis=(1, 2, 3)) > 0.01
    assert 0.2 < changed.mean() < 0.4
    np.testing.assert_array_equal(some[changed], every[changed], err_msg="those are changed as all would be")


def test_a_moved_picture_is_surrounded_by_white() -> None:
    black = np.zeros((8, 32, 32, 3), np.uint8)
    moved = augment(black, KEYS, Augmentation(flip=False, shift=0.5)).numpy()
    assert moved.max() == 255


def test_a_transform_of_nothing_returns_the_picture() -> None:
    still = augment(PICTURES, KEYS, Augmentation(flip=False, shift=1e-9)).numpy()
    np.testing.assert_allclose(still, PICTURES, atol=0.01)


def test_a_half_turn_really_turns() -> None:
    picture = np.full((1, 33, 33, 3), 255, np.uint8)
    picture[0, 4:9, 14:19] = 0
    centres = []
    for key in range(40):
        turned = augment(picture, tf.constant([key * 7919], tf.int32), Augmentation(flip=False, rotate_degrees=180))
        rows, columns = np.nonzero(turned[0, :, :, 0].numpy() < 128)
        centres.append((rows.mean() - 16, columns.mean() - 16))
    radii = np.hypot(*np.array(centres).T)
    np.testing.assert_allclose(radii, 10, atol=0.7)
    assert np.ptp(np.arctan2(*np.array(centres).T)) > 5
