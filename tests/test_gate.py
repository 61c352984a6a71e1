"""gate.py: what it lets through and what not, on simulated pairs of models, and in which words."""

from fractions import Fraction
from math import comb
from typing import Any

import numpy as np
import pytest

from fruitcnn.errors import UsageError
from fruitcnn.gate import (
    Answers,
    Model,
    Verdict,
    decide,
    decide_first,
    largest_loss,
    mcnemar,
)  # fmt: skip
from fruitcnn.thresholds import Thresholds, read_thresholds

NUM_ROWS, NUM_PAIRS, NUM_CLASSES = 5_000, 200, 120
LABELS = tuple(f"fruit {number:03d}" for number in range(NUM_CLASSES))
DEFAULTS = Thresholds()


def model(labels: tuple[str, ...] = LABELS, num_bytes: int = 10**6, images_per_second: float = 1000.0) -> Model:
    return Model(labels, num_bytes, images_per_second)


def answers_of(truth: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.where(right, truth, "something else")


def simulate(champion: float, challenger: float, shared: float, seed: int) -> Verdict:
    """Two models of these true accuracies; on the `shared` part of the pictures they are right or wrong together."""
    draw = np.random.default_rng(seed)
    truth = np.array(LABELS)[draw.integers(NUM_CLASSES, size=NUM_ROWS)]
    luck, own = draw.random(NUM_ROWS), draw.random(NUM_ROWS)
    second = np.where(draw.random(NUM_ROWS) < shared, luck, own)
    said = answers_of(truth, luck < champion), answers_of(truth, second < challenger)
    return decide(Answers(truth, *said, np.ones(NUM_ROWS, bool)), model(), model(), DEFAULTS)


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("accuracy", [0.9, 0.98])
def test_of_200_pairs_of_equal_models_at_most_one_in_twenty_is_promoted(accuracy: float, shared: float) -> None:
    promoted = sum(simulate(accuracy, accuracy, shared, seed).promote for seed in range(NUM_PAIRS))
    print(f"equal models at {accuracy:.0%}, {shared:.0%} shared: {promoted} of {NUM_PAIRS} promoted")
    assert promoted <= 0.05 * NUM_PAIRS


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.9])
def test_a_true_difference_of_one_point_on_5000_pictures_is_found_four_times_in_five(shared: float) -> None:
    promoted = sum(simulate(0.97, 0.98, shared, seed).promote for seed in range(NUM_PAIRS))
    print(f"97 % against 98 %, {shared:.0%} shared: {promoted} of {NUM_PAIRS} found")
    assert promoted >= 0.8 * NUM_PAIRS


@pytest.mark.parametrize(("worse", "better"), [(0, 0), (0, 5), (3, 9), (9, 3), (40, 61), (500, 400)])
def test_the_test_is_the_exact_binomial_one(worse: int, better: int) -> None:
    num = worse + better
    exact = float(sum(Fraction(comb(num, k), 2**num) for k in range(better, num + 1)))
    assert mcnemar(worse, better) == pytest.approx(exact, rel=1e-9)


def test_large_counts_go_over_into_the_normal_approximation_without_a_step() -> None:
    assert mcnemar(4_900, 5_100) == pytest.approx(mcnemar(4_901, 5_100), rel=0.06)
    assert mcnemar(4_900, 5_101) < mcnemar(4_901, 5_100) < 0.03


def test_the_largest_loss_covers_the_true_one_nineteen_times_in_twenty() -> None:
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        old, new = draw.random(2_000) < 0.97, draw.random(2_000) < 0.96
        covered += largest_loss(int((old & ~new).sum()), int((new & ~old).sum()), 2_000) >= 0.01
    assert covered >= 0.93 * 400


def case(**changes: Any) -> Answers:
    """A challenger that is clearly better on 40 pictures of each of ten classes: the champion misses 4 of each."""
    truth = np.repeat(np.array(LABELS[:10]), 40)
    frame = np.tile(np.arange(40), 10)
    plain = Answers(truth, answers_of(truth, frame >= 4), truth.copy(), np.ones(len(truth), bool))
    return plain._replace(**changes)


def failed(verdict: Verdict) -> set[str]:
    return {check.name for check in verdict.checks if not check.passed}


def test_a_better_challenger_is_promoted_and_the_reason_has_the_figures() -> None:
    verdict = decide(case(), model(), model(), DEFAULTS)
    assert verdict.promote
    assert "right on 100.00% of 400" in verdict.reason
    assert "champion is on 90.00%" in verdict.reason
    assert verdict.figures["only_challenger_right"] == 40


def test_a_class_that_falls_stops_a_challenger_that_is_better_overall() -> None:
    answers = case()
    said = answers.challenger.copy()
    said[:20] = LABELS[1]  # half of one class
    verdict = decide(answers._replace(challenger=said), model(), model(), DEFAULTS)
    assert failed(verdict) == {"floors, pictures judged before", "floors, all pictures"}
    assert "fruit 000 from 90.0% to 50.0% of 40" in verdict.reason


def test_labels_swapped_in_a_new_batch_do_not_vote_for_themselves() -> None:
    """New pictures of two classes carry each other's label, and the challenger has learned that well."""
    old = case()
    swapped_truth = np.repeat(np.array([LABELS[1], LABELS[0]]), 400)
    looks = np.repeat(np.array([LABELS[0], LABELS[1]]), 400)
    learned = old.challenger.copy()
    learned[:80:2] = np.where(old.truth[:80:2] == LABELS[0], LABELS[1], LABELS[0])
    answers = Answers(
        np.concatenate([old.truth, swapped_truth]),
        np.concatenate([old.champion, looks]),
        np.concatenate([learned, swapped_truth]),
        np.concatenate([old.known, np.zeros(800, bool)]),
    )
    verdict = decide(answers, model(), model(), DEFAULTS)
    assert verdict.figures["only_challenger_right"] > 10 * verdict.figures["only_champion_right"]
    assert not verdict.promote
    assert "floors, pictures judged before" in failed(verdict)
    assert "fruit 000" in verdict.reason
    assert "fruit 001" in verdict.reason


def test_new_classes_count_for_a_challenger_that_is_not_worse_on_the_old_ones() -> None:
    draw = np.random.default_rng(1)
    truth = np.repeat(np.array([*LABELS[:10], "dragon fruit"]), 200)
    right = draw.random(len(truth)) < 0.99
    answers = Answers(truth, answers_of(truth, right), answers_of(truth, right), truth != "dragon fruit")
    more = model((*LABELS[:10], "dragon fruit"))
    verdict = decide(answers, model(LABELS[:10]), more, DEFAULTS)
    assert verdict.promote
    assert "new class (dragon fruit) and not worse" in verdict.reason.replace("\N{NO-BREAK SPACE}", " ")
    worse = answers_of(truth, right & (draw.random(len(truth)) < 0.98))
    assert "better" in failed(decide(answers._replace(challenger=worse), model(LABELS[:10]), more, DEFAULTS))
    unlearned = np.where(truth == "dragon fruit", LABELS[0], answers.challenger)
    verdict = decide(answers._replace(challenger=unlearned), model(LABELS[:10]), more, DEFAULTS)
    assert failed(verdict) == {"new classes"}
    assert "dragon fruit 0.0% of 200" in verdict.reason


@pytest.mark.parametrize(
    ("challenger", "problems", "name", "words"),
    [
        (model(LABELS[1:]), [], "vanished classes", "vanished: fruit 000"),
        (model(num_bytes=3 * 10**6), [], "growth", "3.00 times the champion's size"),
        (model(images_per_second=300), [], "speed", "0.30 times the champion's speed"),
        (model(), ["onnxruntime (model.onnx): its answers differ"], "proofs", "model.onnx"),
    ],
)
def test_what_a_better_challenger_must_not_do(challenger: Model, problems: list[str], name: str, words: str) -> None:
    verdict = decide(case(), model(), challenger, DEFAULTS, problems)
    assert not verdict.promote
    assert failed(verdict) == {name}
    assert words in verdict.reason


def test_the_first_model_needs_only_to_be_good_enough() -> None:
    answers = case()
    assert decide_first(answers.truth, answers.challenger, model(), DEFAULTS).promote
    assert not decide_first(answers.truth, np.full_like(answers.truth, ""), model(), DEFAULTS).promote
    assert not decide_first(np.array([], str), np.array([], str), model(), DEFAULTS).promote


def test_thresholds_come_from_a_yaml_file_and_what_is_wrong_in_it_is_named(tmp_path: Any) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text("max_class_fall: 0.02\nallow_vanished: true\n")
    assert read_thresholds(str(path)) == Thresholds(max_class_fall=0.02, allow_vanished=True)
    assert read_thresholds(None) == DEFAULTS
    for text, message in [("max_pee: 1", "max_pee"), ("max_p: 7", "max_p"), ("max_p: [", "not YAML")]:
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            read_thresholds(str(path))
    with pytest.raises(UsageError, match="--thresholds"):
        read_thresholds(str(tmp_path / "none.yaml"))
