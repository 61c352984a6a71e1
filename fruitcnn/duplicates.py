"""How many test pictures have a near-duplicate among the training pictures? By perceptual hash. Pure; for freezing.

Frames of a turning fruit that lie on both sides of a split are such: they let a network score by memory. What an
accuracy is worth then is said in words, the same in the model card and in the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

MAX_DISTANCE = 6
"""Bits, of 64, in which the hashes of near-duplicates differ at most."""

_ROWS_AT_A_TIME = 256


class NearDuplicates(BaseModel):
    """What was counted; part of model.json."""

    model_config = ConfigDict(frozen=True)

    num_test: int = Field(description="Test pictures looked at, spread over the split.")
    num_near: int = Field(description="Of them, those with a near-duplicate among the training pictures looked at.")
    num_train: int = Field(description="Training pictures looked at; of a large data set a part.")
    max_distance: int = Field(MAX_DISTANCE, description="Bits of 64 in which the perceptual hashes may differ.")


def hashes(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return the perceptual hash of each of N pictures, uint64 (N,), of pixels (N, H, W, 3)."""
    import imagehash
    from PIL import Image

    bits = [imagehash.phash(Image.fromarray(picture)).hash.ravel() for picture in pixels]
    return np.packbits(np.array(bits, bool).reshape(-1, 64), axis=1).view(np.uint64).ravel()


def count(test: npt.NDArray[np.uint8], train: npt.NDArray[np.uint8]) -> NearDuplicates:
    """Compare pictures, both uint8 (N, H, W, 3) of the same size; N >= 1 each."""
    asked, known = hashes(test), hashes(train)
    nearest = [
        np.bitwise_count(asked[start : start + _ROWS_AT_A_TIME, None] ^ known).min(axis=1)
        for start in range(0, len(asked), _ROWS_AT_A_TIME)
    ]
    num_near = int((np.concatenate(nearest) <= MAX_DISTANCE).sum())
    return NearDuplicates(num_test=len(test), num_near=num_near, num_train=len(train))


def worth(metrics: Mapping[str, Any], near: NearDuplicates | None) -> list[str]:
    """Return sentences on what the accuracy is worth; metrics: of model.json, by split."""
    said = []
    if near:
        said.append(
            f"Of {near.num_test:,} test pictures, {near.num_near:,} ({near.num_near / near.num_test:.0%}) have a "
            f"near-duplicate among {near.num_train:,} training pictures (perceptual hashes within {near.max_distance} "
            "of 64 bits)."
        )
    if unseen := metrics.get("leak_aware"):
        return [
            *said,
            f"leak_aware, {unseen['accuracy']:.2%} of {unseen['num_rows']:,} pictures, is the score on rotations that "
            "were held out of training: how well the network knows views that it never saw; test is mostly frames "
            "between frames that it did see.",
        ]
    return [
        *said,
        "Where frames of one turning object lie on both sides, the test score says how well the network knows these "
        "very objects; train with --hold-out-groups for the score on views that it never saw.",
    ]
