"""Whether a challenger may replace the champion: evidence on the same pictures -> a verdict in words. Pure.

Both models answered the same held-out pictures, so what counts are the pictures on which only one of them is right
(McNemar's test): averages of two test sets would drown in the luck of the draw. A challenger must be better overall, or
not worse with more classes; no class may fall by more than a stated bound; and where the champion was judged on
pictures of its own time, it must not be worse on those, so that wrong labels in a new batch do not vote for
themselves. Between the predictions of both and retrain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from fruitcnn.thresholds import Thresholds
from fruitcnn.wording import plural

Bools = npt.NDArray[np.bool_]

_LARGEST_EXACT = 10_000
_NUM_NAMES = 5


class Answers(NamedTuple):
    """What is true of N pictures and what both said: arrays of N class names, "" where there is no answer."""

    truth: npt.NDArray[Any]
    champion: npt.NDArray[Any]
    challenger: npt.NDArray[Any]
    known: Bools
    """Whether the champion was judged on this picture already when it was chosen."""


class Model(NamedTuple):
    """What the gate must know of a model besides its answers."""

    labels: Sequence[str]
    num_bytes: int
    images_per_second: float


class Check(BaseModel):
    """One thing that was asked for, and what was found."""

    model_config = ConfigDict(frozen=True)

    name: str
    passed: bool
    words: str


class Verdict(BaseModel):
    """The decision, why, and what it stands on."""

    model_config = ConfigDict(frozen=True)

    promote: bool
    reason: str
    checks: tuple[Check, ...]
    figures: dict[str, Any]


def mcnemar(num_worse: int, num_better: int) -> float:
    """The probability of at least `num_better` of the discordant pictures in favour of one of two equal models.

    One-sided and exact; beyond 10,000 discordant pictures the normal approximation, continuity corrected.
    """
    num = num_worse + num_better
    if num == 0:
        return 1.0
    if num > _LARGEST_EXACT:
        return 0.5 * math.erfc((num_better - 0.5 - num / 2) / math.sqrt(num / 2))
    logs = [math.lgamma(num + 1) - math.lgamma(k + 1) - math.lgamma(num - k + 1) for k in range(num_better, num + 1)]
    return min(1.0, math.fsum(math.exp(each - num * math.log(2)) for each in logs))


def largest_loss(num_worse: int, num_better: int, num_rows: int) -> float:
    """Upper end of a one-sided 95 % interval for the accuracy lost, from the discordant pictures of num_rows."""
    if num_rows == 0:
        return 0.0
    loss = (num_worse - num_better) / num_rows
    spread = math.sqrt(max(0.0, num_worse + num_better - (num_worse - num_better) ** 2 / num_rows)) / num_rows
    return loss + 1.645 * spread


def decide(
    answers: Answers,
    champion: Model,
    challenger: Model,
    thresholds: Thresholds,
    problems: Sequence[str] = (),
) -> Verdict:
    """Compare a challenger with the champion. `problems`: what its frozen model could not prove, in words."""
    pairs = _Pairs(answers, champion.labels)
    new = sorted(set(challenger.labels) - set(champion.labels))
    checks = [
        _better(pairs, new, thresholds),
        _not_worse_where_known(pairs, thresholds),
        *_floors(pairs, thresholds),
        *_new_classes(answers, new, thresholds),
        *_vanished(champion, challenger, thresholds),
        *_size_and_speed(champion, challenger, thresholds),
        _proven(problems),
    ]
    figures = pairs.figures() | {"new_classes": new, "speed": challenger.images_per_second / champion.images_per_second}
    return _verdict(checks, figures | {"num_bytes": challenger.num_bytes})


def decide_first(
    truth: npt.NDArray[Any],
    answers: npt.NDArray[Any],
    challenger: Model,
    thresholds: Thresholds,
    problems: Sequence[str] = (),
) -> Verdict:
    """Judge the first model of a registry, of which there is nothing to compare with."""
    accuracy = float((truth == answers).mean()) if len(truth) else 0.0
    words = f"right on {accuracy:.2%} of {plural(len(truth), 'held-out picture')}"
    is_enough = len(truth) > 0 and accuracy >= thresholds.min_first_accuracy
    wanted = "" if is_enough else f", wanted {thresholds.min_first_accuracy:.0%}"
    checks = [Check(name="accuracy", passed=is_enough, words=words + wanted)]
    checks += [*_size(challenger, thresholds), _proven(problems)]
    return _verdict(checks, {"num_rows": len(truth), "accuracy": accuracy, "num_bytes": challenger.num_bytes})


class _Pairs:
    """The pictures of the champion's classes, and who is right on each."""

    def __init__(self, answers: Answers, labels: Sequence[str]) -> None:
        self.names, codes = np.unique(answers.truth, return_inverse=True)
        comparable = np.isin(self.names, list(labels))[codes]
        self.codes, self.known = codes[comparable], answers.known[comparable]
        self.old = (answers.champion == answers.truth)[comparable]
        self.new = (answers.challenger == answers.truth)[comparable]

    def counts(self, rows: Bools | slice = slice(None)) -> tuple[int, int]:
        """(pictures on which only the champion is right, only the challenger)."""
        old, new = self.old[rows], self.new[rows]
        return int((old & ~new).sum()), int((new & ~old).sum())

    def figures(self) -> dict[str, Any]:
        """What goes into the log."""
        worse, better = self.counts()
        return {
            "num_rows": len(self.codes),
            "champion_accuracy": _share(self.old),
            "challenger_accuracy": _share(self.new),
            "only_champion_right": worse,
            "only_challenger_right": better,
            "p": mcnemar(worse, better),
        }


def _share(right: Bools) -> float:
    return float(right.mean()) if len(right) else 0.0


def _better(pairs: _Pairs, new: Sequence[str], thresholds: Thresholds) -> Check:
    worse, better = pairs.counts()
    p = mcnemar(worse, better)
    found = (
        f"right on {_share(pairs.new):.2%} of {plural(len(pairs.codes), 'picture')} where the champion is on "
        f"{_share(pairs.old):.2%} (only the challenger right {better:,}, only the champion {worse:,}, p {p:.2g})"
    )
    if len(pairs.codes) and better > worse and p <= thresholds.max_p:
        return Check(name="better", passed=True, words=found)
    if not new:
        return Check(name="better", passed=False, words=f"not shown to be better: {found}, wanted {thresholds.max_p:g}")
    loss = largest_loss(worse, better, len(pairs.codes))
    if loss <= thresholds.max_loss:
        words = f"{plural(len(new), 'new class')} ({_names(new)}) and not worse: {found}"
        return Check(name="better", passed=True, words=words)
    words = f"{plural(len(new), 'new class')}, but it may be worse by {loss:.2%}, wanted at most "
    return Check(name="better", passed=False, words=f"{words}{thresholds.max_loss:.2%}: {found}")


def _not_worse_where_known(pairs: _Pairs, thresholds: Thresholds) -> Check:
    worse, better = pairs.counts(pairs.known)
    p = mcnemar(better, worse)
    words = (
        f"on the {plural(int(pairs.known.sum()), 'picture')} that the champion was judged on: "
        f"{_share(pairs.new[pairs.known]):.2%}, the champion {_share(pairs.old[pairs.known]):.2%}"
    )
    if p > thresholds.max_p:
        return Check(name="as good where judged before", passed=True, words=words)
    return Check(name="as good where judged before", passed=False, words=f"worse {words} (p {p:.2g})")


def _floors(pairs: _Pairs, thresholds: Thresholds) -> Iterator[Check]:
    """One check of all classes, over the pictures known before and over all of them."""
    for what, rows in (("pictures judged before", pairs.known), ("all pictures", np.ones_like(pairs.known))):
        fallen = [
            f"{name} from {old:.1%} to {new:.1%} of {num:,}" for name, old, new, num in _fallen(pairs, rows, thresholds)
        ]
        words = f"no class fell by more than {thresholds.max_class_fall:.0%} on {what}"
        if fallen:
            words = f"{plural(len(fallen), 'class')} fell by more than {thresholds.max_class_fall:.0%} on {what}: "
            words += _names(fallen)
        yield Check(name=f"floors, {what}", passed=not fallen, words=words)


def _fallen(pairs: _Pairs, rows: Bools, thresholds: Thresholds) -> list[tuple[str, float, float, int]]:
    """(class, accuracy of the champion, of the challenger, pictures) of the classes that fell too far, worst first."""
    wanted = (rows, rows & pairs.old, rows & pairs.new, rows & pairs.old & ~pairs.new, rows & pairs.new & ~pairs.old)
    num, old, new, only_old, only_new = (np.bincount(pairs.codes[each], minlength=len(pairs.names)) for each in wanted)
    lost = only_old - only_new
    # By luck alone some class of many always falls: a fall must be more than that.
    too_far = [
        place
        for place in np.flatnonzero((lost >= thresholds.min_lost_rows) & (lost > thresholds.max_class_fall * num))
        if mcnemar(int(only_new[place]), int(only_old[place])) <= thresholds.max_p
    ]
    found = [(str(pairs.names[i]), float(old[i] / num[i]), float(new[i] / num[i]), int(num[i])) for i in too_far]
    return sorted(found, key=lambda each: each[2] - each[1])


def _new_classes(answers: Answers, new: Sequence[str], thresholds: Thresholds) -> Iterator[Check]:
    if not new:
        return
    low = []
    for name in new:
        rows = answers.truth == name
        accuracy = _share(answers.challenger[rows] == name)
        if not rows.any():
            low.append(f"{name} has no held-out picture")
        elif accuracy < thresholds.min_new_class_accuracy:
            low.append(f"{name} {accuracy:.1%} of {int(rows.sum()):,}")
    words = f"{plural(len(new), 'new class')}: {_names(new)}"
    if low:
        words = f"new classes below {thresholds.min_new_class_accuracy:.0%}: {_names(low)}"
    yield Check(name="new classes", passed=not low, words=words)


def _vanished(champion: Model, challenger: Model, thresholds: Thresholds) -> Iterator[Check]:
    gone = sorted(set(champion.labels) - set(challenger.labels))
    if gone:
        words = f"{plural(len(gone), 'class')} of the champion vanished: {_names(gone)}"
        yield Check(name="vanished classes", passed=thresholds.allow_vanished, words=words)


def _size(challenger: Model, thresholds: Thresholds) -> Iterator[Check]:
    words = f"{challenger.num_bytes:,} bytes, at most {thresholds.max_bytes:,} allowed"
    yield Check(name="size", passed=challenger.num_bytes <= thresholds.max_bytes, words=words)


def _size_and_speed(champion: Model, challenger: Model, thresholds: Thresholds) -> Iterator[Check]:
    yield from _size(challenger, thresholds)
    growth = challenger.num_bytes / champion.num_bytes
    words = f"{growth:.2f} times the champion's size, at most {thresholds.max_growth:g} allowed"
    yield Check(name="growth", passed=growth <= thresholds.max_growth, words=words)
    speed = challenger.images_per_second / champion.images_per_second
    words = f"{speed:.2f} times the champion's speed, at least {thresholds.min_speed:g} wanted"
    yield Check(name="speed", passed=speed >= thresholds.min_speed, words=words)


def _proven(problems: Sequence[str]) -> Check:
    words = "; ".join(problems) or "every hash is right, and all runtimes give the golden answers"
    return Check(name="proofs", passed=not problems, words=words)


def _verdict(checks: Sequence[Check], figures: Mapping[str, Any]) -> Verdict:
    failed = [check.words for check in checks if not check.passed]
    reason = "; ".join(failed) if failed else checks[0].words
    return Verdict(promote=not failed, reason=reason, checks=tuple(checks), figures=dict(figures))


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NUM_NAMES} more" if len(names) > _NUM_NAMES else ""
    return ", ".join(names[:_NUM_NAMES]) + more
