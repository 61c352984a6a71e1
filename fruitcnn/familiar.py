"""How unlike its training pictures is a picture, and which answers stand? Statistics and limits. Pure; for answering.

Every picture has a feature vector, F numbers from all stages of the network. Of each class some centres are kept, of
all classes together one covariance around them (after Lee et al. 2018, "A simple unified framework for detecting
out-of-distribution samples", https://arxiv.org/abs/1807.03888, who keep one mean a class). The distance of a picture to
a class is the smallest squared Mahalanobis distance to one of its centres, in units of the class: 19 of 20 of its
training pictures are below 1. `unlike` is the distance and the network's doubt together, of the class where both are
least: a stranger is often near one class while the network takes it for another.

Many centres in few directions, and so many directions only as classes are far apart in: what was tried, on networks
trained without ten of Fruits-360's 120 classes, and what it told is in bench/README.md.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Cause = Literal["unlike-training", "ambiguous"]

UNLIKE, AMBIGUOUS = "unlike-training", "ambiguous"
_SHRINKAGE = 0.1
"""Share of the diagonal in the covariance: rare directions must not count without bound."""

_MAX_DIRECTIONS = 32
MAX_CENTRES = 24
"""Of a class; scored.py gives some networks fewer."""

DOUBT = 2.0
"""What is added to the distance where no class is probable at all; nothing where one is certain."""

_AMBIGUOUS_SHARE = 0.1
"""Of the familiar pictures that are not answered: the doubt counts in `unlike` already."""

_CLOSE = 0.2
"""Two classes that differ by more are not ambiguous, 0.6 against 0.4: of a thousand pictures the least margin may well
be a large one.
"""

_ROWS_PER_CENTRE = 8
_ORDINARY = 0.95
_PRIOR_ROWS = 20
_TEMPERATURES = (0.05, 20.0)
_NEVER = 1e30
_MAX_REACH = 100.0
"""Largest squared length of a centre, in units of its class. The model takes distances as differences of such lengths
in float32, and classes that hardly vary lie thousands of units apart: then rounding alone made formats differ by 0.1 %.
On Fruits-360 it is 18.
"""


class Answers(NamedTuple):
    """What a model says of N pictures: calibrated probabilities, float32 (N, classes), and unlike, float32 (N,)."""

    probabilities: Floats
    unlike: Floats


class Limits(BaseModel):
    """From where on a model does not answer: part of model.json. The figures are of the validation pictures."""

    model_config = ConfigDict(frozen=True)

    answer_share: float = Field(description="Share of familiar pictures that shall be answered, 0..1: what was asked.")
    max_unlike: float = Field(description="Unsure (unlike-training) above this distance to the training pictures.")
    min_margin: float = Field(description="Unsure (ambiguous) below this difference of the two greatest probabilities.")
    temperature: float = Field(description="The logits were divided by it: then a confidence is a share of right ones.")
    num_train_rows: int = Field(description="Training pictures that centres and covariance come from.")
    num_validation_rows: int = Field(description="Pictures, held from training, that temperature and margin come from.")


NO_LIMITS = Limits(
    answer_share=1, max_unlike=_NEVER, min_margin=0, temperature=1, num_train_rows=0, num_validation_rows=0,
)  # fmt: skip
"""Everything is answered: for a model without a score."""


class Statistics(NamedTuple):
    """Of F features, K directions and M centres: float64 origin (F,), matrix (F, K), centres (M, K), scales (M,), and
    int64 classes (M,), whose centre it is.

    For z = (features - origin) @ matrix the squared distance to centre m is |z - centres[m]|^2 / scales[m].
    """

    origin: Doubles
    matrix: Doubles
    centres: Doubles
    scales: Doubles
    classes: Labels


def measure(features: npt.NDArray[np.floating], labels: Labels, max_centres: int = MAX_CENTRES) -> Statistics:
    """Return the statistics of features (N, F) of training pictures with labels (N,), N >= 1."""
    features = features.astype(np.float64)
    origin = features.mean(axis=0)  # around it numbers stay small: float32 loses nothing
    features = features - origin
    names, classes = np.unique(labels, return_inverse=True)
    means = np.stack([features[classes == each].mean(axis=0) for each in range(classes.max() + 1)])
    matrix = _whitening(features - means[classes])
    matrix = matrix @ _spread(means @ matrix)
    projected = features @ matrix
    found = [_centres(projected[classes == each], max_centres) for each in range(len(means))]
    owners = np.repeat(np.arange(len(means)), [len(each) for each in found])
    centres = np.concatenate(found)
    nearest = np.empty(len(projected), np.int64)
    for each in range(len(means)):
        own, rows = np.flatnonzero(owners == each), np.flatnonzero(classes == each)
        nearest[rows] = own[_squared(projected[rows], centres[own]).argmin(axis=1)]
    finer = _whitening(projected - centres[nearest])
    matrix, centres, projected = matrix @ finer, centres @ finer, projected @ finer
    distances = ((projected - centres[nearest]) ** 2).sum(axis=1)
    scales = np.maximum(_class_scales(distances, classes)[owners], (centres**2).sum(axis=1) / _MAX_REACH)
    return Statistics(origin, matrix, centres, scales, names[owners])


def num_directions(num_features: int) -> int:
    """Return K, the number of directions that are kept of F features."""
    return min(num_features, _MAX_DIRECTIONS)


def unlike(features: npt.NDArray[np.floating], statistics: Statistics, probabilities: Floats) -> Doubles:
    """Return the score of features (N, F) and calibrated probabilities (N, classes), float64 (N,).

    The smallest over the classes of: the distance to it, and DOUBT where it is not probable at all, nothing where it is
    certain. It is the reference that the model's own arithmetic must meet.
    """
    doubt = DOUBT * (1 - probabilities[:, np.unique(statistics.classes)].astype(np.float64))
    return (distances(features, statistics) + doubt).min(axis=1)


def distances(features: npt.NDArray[np.floating], statistics: Statistics) -> Doubles:
    """Return the distance of features (N, F) to the nearest centre of each class that has any, in its units, float64
    (N, classes), the classes rising.
    """
    origin, matrix, centres, scales, classes = statistics
    of_centres = _squared((features.astype(np.float64) - origin) @ matrix, centres) / scales
    return np.stack([of_centres[:, classes == each].min(axis=1) for each in np.unique(classes)], axis=1)


def _whitening(residuals: Doubles) -> Doubles:
    """(F, F): times it, residuals (N, F) have about the unit matrix as covariance."""
    covariance = residuals.T @ residuals / len(residuals)
    # A feature that never varies (a dead filter) would count without bound once it does.
    diagonal = np.maximum(np.diag(covariance), 1e-4 * np.trace(covariance) / len(covariance) + 1e-12)
    shrunk = covariance * (1 - _SHRINKAGE)
    shrunk[np.diag_indices_from(shrunk)] = diagonal
    return np.linalg.cholesky(np.linalg.inv(shrunk))


def _spread(means: Doubles) -> Doubles:
    """(F, K): the directions, all or _MAX_DIRECTIONS, in which whitened class means (C, F) are furthest apart."""
    around = means - means.mean(axis=0)
    return np.linalg.eigh(around.T @ around)[1][:, -num_directions(means.shape[1]) :]


def _centres(points: Doubles, at_most: int) -> Doubles:
    """Some centres, (k, K), of a class's points (n, K): k-means, begun at points far apart."""
    number = max(1, min(at_most, len(points) // _ROWS_PER_CENTRE))
    centres = points.mean(axis=0, keepdims=True)
    if number == 1:
        return centres
    chosen = [int(_squared(points, centres)[:, 0].argmin())]
    while len(chosen) < number:
        chosen.append(int(_squared(points, points[chosen]).min(axis=1).argmax()))
    centres = points[chosen]
    for _ in range(20):
        nearest = _squared(points, centres).argmin(axis=1)
        centres = np.stack(
            [
                points[nearest == each].mean(axis=0) if (nearest == each).any() else centres[each]
                for each in range(number)
            ]
        )
    return centres


def _class_scales(distances: Doubles, classes: Labels) -> Doubles:
    """(C,): below it are 19 of 20 squared distances of a class; of few pictures, nearer to what it is for all."""
    of_all = np.quantile(distances, _ORDINARY)
    scales = []
    for each in range(classes.max() + 1):
        own = distances[classes == each]
        scales.append((len(own) * np.quantile(own, _ORDINARY) + _PRIOR_ROWS * of_all) / (len(own) + _PRIOR_ROWS))
    return np.maximum(np.array(scales), 1e-9)


def _squared(points: Doubles, centres: Doubles) -> Doubles:
    """Squared distances (N, M) of points (N, K) to centres (M, K)."""
    products = (points**2).sum(axis=1)[:, None] - 2 * points @ centres.T + (centres**2).sum(axis=1)
    return np.maximum(products, 0)


def fit_temperature(logits: npt.NDArray[np.floating], labels: Labels) -> float:
    """Return the temperature under which softmax(logits / temperature), (N, classes), best foretells labels (N,).

    Guo et al. 2017, "On calibration of modern neural networks", https://arxiv.org/abs/1706.04599. N pictures that are
    all right do not prove that every picture will be: half a wrong one is counted to them (Jeffreys).
    """
    logits = logits.astype(np.float64)
    doubt = 0.5 / (len(labels) + 1)

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        scaled -= scaled.max(axis=1, keepdims=True)
        hoped = (1 - doubt) * scaled[np.arange(len(labels)), labels] + doubt * scaled.mean(axis=1)
        return float((np.log(np.exp(scaled).sum(axis=1)) - hoped).mean())

    low, high = map(math.log, _TEMPERATURES)
    for _ in range(60):  # the loss has one minimum: golden-section search
        left, right = high - 0.618 * (high - low), low + 0.618 * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return math.exp((low + high) / 2)


def margins(probabilities: Floats) -> Floats:
    """Return the difference of the two greatest of each row, float32 (N,), of probabilities (N, classes)."""
    if probabilities.shape[1] < 2:
        return np.ones(len(probabilities), np.float32)
    greatest = np.partition(probabilities, -2, axis=1)[:, -2:]
    return greatest[:, 1] - greatest[:, 0]


def choose_limits(
    scores: npt.NDArray[np.floating],
    margin: npt.NDArray[np.floating],
    answer_share: float,
    *,
    temperature: float,
    num_train_rows: int,
) -> Limits:
    """Return the limits under which `answer_share` of familiar pictures is answered.

    scores (N,): of familiar pictures that centres and covariance did not come from; margin (M,): of pictures that the
    network was not trained on. Few pictures say little about the rare ones: the fewer, the wider the limit.
    """
    refused = 1 - answer_share
    strange, ambiguous = refused * (1 - _AMBIGUOUS_SHARE), refused * _AMBIGUOUS_SHARE
    max_unlike = float(np.quantile(scores, 1 - strange, method="higher")) * (1 + 1 / math.sqrt(len(scores)))
    min_margin = float(np.quantile(margin, ambiguous, method="lower")) / (1 + 1 / math.sqrt(len(margin)))
    min_margin = min(min_margin, _CLOSE)
    return Limits(
        answer_share=answer_share,
        max_unlike=max_unlike if refused else _NEVER,
        min_margin=min_margin if refused else 0.0,
        temperature=temperature,
        num_train_rows=num_train_rows,
        num_validation_rows=len(margin),
    )


def causes(unlike: Floats, margin: Floats, limits: Limits) -> npt.NDArray[np.object_]:
    """Return why each of N answers does not stand, object (N,): UNLIKE, AMBIGUOUS or None."""
    found = np.full(len(unlike), None, dtype=object)
    found[margin < np.float32(limits.min_margin)] = AMBIGUOUS
    # Written so that a score that is no number is unsure as well.
    found[~(unlike <= np.float32(limits.max_unlike))] = UNLIKE
    return found
