"""One picture, uploaded -> one row, as classify would have written it. Between endpoints and the frozen model.

Bytes are decoded by images.decode in threads; the model is called by `predict`, which may put pictures of several
requests into one call. The columns, statuses and causes are those of the predictions (parts.py). Pure.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from fruitcnn import familiar, images
from fruitcnn.parts import LOW_CONFIDENCE, Floats, top, unsure_causes

Predict = Callable[[npt.NDArray[np.uint8]], Awaitable[tuple[Floats, np.float32]]]
"""uint8 (H, W, 3), one picture -> probabilities, float32 (classes,), and the score `unlike` of familiar.py."""


class Answer(BaseModel):
    """What became of one picture: the columns of the predictions."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="The file name it was sent under.")
    sha256: str = Field(description="Of the bytes that were sent.")
    width: int | None = Field(None, description="Of the upright original, px.")
    height: int | None = Field(None, description="Of the upright original, px.")
    label: str | None = Field(None, description="The most probable class; null if the picture was rejected.")
    confidence: float | None = Field(None, description="Its probability.")
    top_labels: list[str] = Field([], description="The most probable classes, best first.")
    top_scores: list[float] = Field([], description="Their probabilities.")
    score: float | None = Field(None, description="How unlike the training pictures it is; most of those are below 1.")
    status: Literal["ok", "unsure", "rejected"]
    cause: str | None = Field(
        None,
        description=f"Why it is unsure: {familiar.UNLIKE}, {familiar.AMBIGUOUS} or {LOW_CONFIDENCE}; why it was "
        f"rejected: one of {', '.join(images.CAUSES)}.",
    )
    detail: str | None = Field(None, description="The same in a line for people.")


class Rules(NamedTuple):
    """How answers are made: the settings that classify has under the same names."""

    labels: Sequence[str]
    input_px: tuple[int, int]
    top_k: int
    min_confidence: float
    max_pixels: int
    limits: familiar.Limits = familiar.NO_LIMITS


async def answer(name: str, data: bytes, rules: Rules, predict: Predict, pool: ThreadPoolExecutor) -> Answer:
    """Decode and classify one picture; whatever is wrong with it is in the answer, nothing is raised for it."""
    loop = asyncio.get_running_loop()
    digest, found = await loop.run_in_executor(pool, _decode, data, rules)
    if isinstance(found, images.ImageError):
        return Answer(id=name, sha256=digest, status="rejected", cause=found.cause, detail=found.detail)
    row, unlike = await predict(found.pixels)
    probabilities = row[np.newaxis]
    (indices,), (scores,) = top(probabilities, rules.top_k)
    margins, unlikes = familiar.margins(probabilities), np.array([unlike], np.float32)
    (cause,) = unsure_causes(scores[np.newaxis], margins, unlikes, rules.min_confidence, rules.limits)
    labels = [rules.labels[index] for index in indices]
    return Answer(
        id=name,
        sha256=digest,
        width=found.width_px,
        height=found.height_px,
        label=labels[0],
        confidence=float(scores[0]),
        top_labels=labels,
        top_scores=scores.tolist(),
        score=float(unlike),
        status="unsure" if cause else "ok",
        cause=cause,
    )


def _decode(data: bytes, rules: Rules) -> tuple[str, images.Decoded | images.ImageError]:
    digest = hashlib.sha256(data).hexdigest()
    try:
        return digest, images.decode(data, rules.input_px, rules.max_pixels)
    except images.ImageError as error:
        return digest, error
