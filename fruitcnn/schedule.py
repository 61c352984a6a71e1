"""How the learning rate moves and when a run ends: functions of the step and of the validations so far. Before replica.

Nothing here has a state of its own, so a resumed run goes on as it would have. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fruitcnn.recipe import TrainConfig


def rate_scale(losses: Sequence[float], config: TrainConfig) -> float:
    """Return what the learning rate is multiplied with after validations of these losses: 1 unless on a plateau."""
    if config.schedule != "plateau":
        return 1.0
    best, num_waited, scale = math.inf, 0, 1.0
    for loss in losses:
        num_waited = 0 if loss < best else num_waited + 1
        best = min(best, loss)
        if num_waited == config.plateau_patience:
            scale, num_waited = scale * config.plateau_factor, 0
    return scale


def is_over(losses: Sequence[float], config: TrainConfig) -> bool:
    """Whether early stopping ends the run after validations of these losses."""
    if not config.early_stopping or not losses:
        return False
    return len(losses) - 1 - losses.index(min(losses)) >= config.early_stopping


def warmup_steps(config: TrainConfig, num_steps: int) -> int:
    """Return the number of steps over which the learning rate rises from zero."""
    return round(num_steps * config.warmup_share)


def frozen_steps(config: TrainConfig, num_steps: int) -> int:
    """Return the number of steps, the first ones, in which a network with --weights learns its last layer only."""
    return round(num_steps * config.frozen_share) if config.weights else 0


def balanced_weights(num_rows_by_class: Sequence[int]) -> list[float]:
    """Return the weight of each class: rows / (classes * its rows), so that the mean over the rows is 1.

    A class without rows gets weight 1: no row asks for it.
    """
    present = [number for number in num_rows_by_class if number]
    return [sum(present) / (len(present) * number) if number else 1.0 for number in num_rows_by_class]
