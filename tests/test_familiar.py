"""familiar.py: what is far from all training pictures scores high, and limits answer the share that was asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fruitcnn import familiar
from fruitcnn.familiar import AMBIGUOUS, NO_LIMITS, UNLIKE, Statistics

RANDOM = np.random.default_rng(0)


def drawn(num_rows: int, num_features: int, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of classes that lie apart, each stretched alike, and their labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(num_rows) % num_classes
    centres = np.random.default_rng(99).normal(0, 4, (num_classes, num_features))
    stretch = np.linspace(0.1, 3, num_features)
    return centres[labels] + random.normal(0, 1, (num_rows, num_features)) * stretch, labels


def test_nineteen_of_twenty_training_pictures_are_below_one_and_strangers_far_above() -> None:
    features, labels = drawn(2000, 20, 5, 0)
    statistics = familiar.measure(features, labels)
    own = familiar.distances(features, statistics)[np.arange(2000), labels]
    assert np.mean(own <= 1) == pytest.approx(0.95, abs=0.02)
    unseen, labels = drawn(500, 20, 5, 1)
    assert np.mean(familiar.distances(unseen, statistics)[np.arange(500), labels] <= 1.5) > 0.9
    assert familiar.distances(RANDOM.normal(0, 20, (50, 20)), statistics).min() > 2


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 1000))
def test_any_few_pictures_give_finite_scores(num_rows: int, num_classes: int, seed: int) -> None:
    features, labels = drawn(num_rows, 6, num_classes, seed)
    features[:, 2] = 0.0  # a dead filter
    scores = familiar.distances(features, familiar.measure(features, labels))
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()


@pytest.mark.parametrize("apart", [1.0, 100.0, 10_000.0])
def test_float32_tells_the_score_however_far_apart_the_classes_lie(apart: float) -> None:
    """As a model computes it: a difference of squared lengths, which rounding would drown."""
    random = np.random.default_rng(0)
    labels = np.arange(200) % 3
    features = random.normal(0, 1, (200, 24)) + apart * random.normal(0, 1, (3, 24))[labels]
    origin, matrix, centres, scales, _ = statistics = familiar.measure(features, labels)
    whitened = (features @ matrix - origin @ matrix).astype(np.float32)
    near, reach = centres.astype(np.float32), (centres**2).sum(axis=1).astype(np.float32)
    distances = (whitened**2).sum(axis=1)[:, None] - 2 * whitened @ near.T + reach
    scores = (distances / scales.astype(np.float32)).min(axis=1)
    np.testing.assert_allclose(scores, familiar.distances(features, statistics).min(axis=1), atol=1e-3)


def test_a_distance_is_the_smallest_to_a_centre_of_the_class_in_its_units() -> None:
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 9.0]])
    statistics = Statistics(np.zeros(2), np.eye(2), centres, np.array([1.0, 4.0, 1.0]), np.array([0, 0, 3]))
    found = familiar.distances(np.array([[3.0, 0.0], [8.0, 0.0], [10.0, 2.0], [0.0, 8.0]]), statistics)
    assert found[:, 0].tolist() == [9.0, 1.0, 1.0, 41.0]
    assert found[3, 1] == 1


def test_a_picture_is_familiar_where_one_class_is_both_near_and_probable() -> None:
    statistics = Statistics(np.zeros(2), np.eye(2), np.array([[0.0, 0.0], [9.0, 0.0]]), np.ones(2), np.array([0, 1]))
    probabilities = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]], np.float32)
    assert familiar.unlike(np.array([[1.0, 0.0]] * 3), statistics, probabilities).tolist() == [1.0, 2.0, 3.0]


def test_a_model_too_sure_of_itself_is_cooled_until_confidence_is_accuracy() -> None:
    logits = RANDOM.normal(0, 1, (4000, 6))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([RANDOM.choice(6, p=row) for row in shares])
    assert familiar.fit_temperature(3 * logits, labels) == pytest.approx(3, rel=0.15)


@pytest.mark.parametrize("answer_share", [0.9, 0.99])
def test_limits_answer_the_share_that_was_asked_for(answer_share: float) -> None:
    scores, margin = RANDOM.gamma(2, 1, 20_000), RANDOM.beta(5, 1, 20_000)
    limits = familiar.choose_limits(scores, margin, answer_share, temperature=1, num_train_rows=1)
    found = familiar.causes(scores.astype(np.float32), margin.astype(np.float32), limits)
    assert np.mean(found == None) == pytest.approx(answer_share, abs=0.015)  # noqa: E711 - element by element


def test_one_picture_says_little_so_its_limits_are_wide() -> None:
    limits = familiar.choose_limits(np.ones(1), np.full(1, 0.4), 0.99, temperature=1, num_train_rows=1)
    assert (limits.max_unlike, limits.min_margin) == (2, 0.2)


def test_share_one_answers_everything() -> None:
    limits = familiar.choose_limits(np.ones(5), np.ones(5), 1.0, temperature=1, num_train_rows=1)
    huge, none = np.full(1, 1e20, np.float32), np.zeros(1, np.float32)
    assert familiar.causes(huge, none, limits).tolist() == [None]
    assert familiar.Limits.model_validate_json(limits.model_dump_json()) == limits


def test_unlike_comes_before_ambiguous_and_no_number_is_unlike() -> None:
    limits = NO_LIMITS.model_copy(update={"max_unlike": 1.0, "min_margin": 0.1})
    unlike = np.array([0.5, 0.5, 2, 2, np.nan], np.float32)
    margin = np.array([0.5, 0.05, 0.5, 0.05, 0.5], np.float32)
    assert familiar.causes(unlike, margin, limits).tolist() == [None, AMBIGUOUS, UNLIKE, UNLIKE, UNLIKE]
