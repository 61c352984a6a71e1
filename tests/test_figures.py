"""figures.py: what is said of a model, against cases counted by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fruitcnn import figures
from fruitcnn.figures import Judged

LABELS = ["Apple Golden 1", "Apple Red", "Grape Blue", "Grapefruit Pink", "Limes", "Mandarine", "Clementine"]


def judged(*rows: tuple[float, bool, bool, bool]) -> Judged:
    """(confidence, right, stranger, answered) of each picture."""
    confidence, right, stranger, answered = (np.array(column) for column in zip(*rows, strict=True))
    return Judged(confidence.astype(np.float64), 1 - confidence, right, stranger, answered)


FOUR = judged(
    (0.9, True, False, True), (0.8, False, False, True), (0.3, True, False, False), (0.7, False, True, True)
)  # fmt: skip


@pytest.mark.parametrize(
    ("truth", "matches"),
    [("Apple", [0, 1]), ("Grape", [2]), ("Limes", [4]), ("Mandarine|Clementine", [5, 6]), ("NONE", []), ("App", [])],
)
def test_a_family_allows_whole_words_only(truth: str, matches: list[int]) -> None:
    assert figures.matching(truth, LABELS) == matches


def test_figures_of_a_case_counted_by_hand() -> None:
    found = figures.summarise(FOUR)
    assert (found["num_pictures"], found["num_strangers"]) == (4, 1)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["share_answered"] == pytest.approx(2 / 3)
    assert found["right_among_answered"] == 0.5
    assert found["wrong_and_sure"] == 0.5, "a stranger that is answered is wrong too"
    assert found["strangers_answered"] == 1
    assert found["calibration_error"] == pytest.approx((0.1 + 0.8 + 0.7) / 3)


def test_nothing_to_count_is_no_number() -> None:
    only_strangers = judged((0.5, False, True, False))
    found = figures.summarise(only_strangers)
    assert found["accuracy"] is found["calibration_error"] is found["right_among_answered"] is None
    assert found["strangers_answered"] == 0


def test_classes_and_wrong_answers_are_ranked() -> None:
    truth, labels = ["Pear", "Pear", "Fig", "NONE"], ["Pear", "Fig", "Fig", "Fig"]
    rows = {row["name"]: row for row in figures.per_class(truth, FOUR)}
    assert rows["Pear"] == {"name": "Pear", "num": 2, "right": 1, "answered": 2, "wrong_and_sure": 1}
    assert [row["name"] for row in figures.per_class(truth, FOUR)] == ["NONE", "Pear", "Fig"]
    wrong = figures.confusion(truth, labels, FOUR)
    assert {(row["truth"], row["label"], row["num"], row["answered"]) for row in wrong} == {
        ("Pear", "Fig", 1, 1), ("NONE", "Fig", 1, 1)
    }  # fmt: skip


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=300))
def test_risk_at_full_coverage_is_the_share_of_wrong_answers(rows: list[tuple[float, bool]]) -> None:
    found = judged(*((confidence, right, False, True) for confidence, right in rows))
    curve = figures.risk_coverage(found, found.confidence)
    assert curve[-1] == (1.0, pytest.approx(1 - found.right.mean()))
    assert [coverage for coverage, _ in curve] == sorted({coverage for coverage, _ in curve})
    assert sum(each.num for each in figures.calibration(found)) == len(rows)


def test_a_perfect_order_keeps_the_risk_at_nothing_until_only_wrong_ones_are_left() -> None:
    found = judged(*[(0.9, True, False, True)] * 8, *[(0.1, False, False, True)] * 2)
    assert [risk for coverage, risk in figures.risk_coverage(found, found.confidence) if coverage <= 0.8] == [0] * 8
    assert figures.calibration_error(figures.calibration(found)) == pytest.approx(0.1)
