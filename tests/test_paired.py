"""paired.py: two predictions of the same pictures side by side; which labels change, and for whom."""

import numpy as np
import pyarrow as pa
import pytest

from fruitcnn import paired
from fruitcnn.paired import Flips, Part


def part(number: int, rows: list[tuple[str | None, str | None, str | None]]) -> Part:
    """A part of (truth, champion, challenger) rows."""
    truth, champion, label = (pa.array(column, pa.string()) for column in zip(*rows, strict=True))
    num = len(rows)
    table = pa.table({
        "id": [f"{number}-{row}" for row in range(num)], "sha256": ["0"] * num, "width": [9] * num,
        "height": [9] * num, "label": label, "confidence": [0.5] * num, "cause": pa.nulls(num, pa.string()),
        "detail": pa.nulls(num, pa.string()), "truth": truth, "champion": champion, "status": ["unsure"] * num,
        "champion_status": ["unsure" if old == "b" else "ok" for old in champion.to_pylist()],
    })  # fmt: skip
    return Part(number, table)


def test_flips_are_counted_by_pair_and_by_who_is_right() -> None:
    flips = Flips("nowhere")
    flips.add(part(0, [("a", "b", "a"), ("a", "a", "a"), ("a", "a", "b"), ("c", "b", "a"), (None, "b", "a")]))
    flips.add(part(1, [("a", "b", "a"), ("b", "b", "a"), ("b", "b", None)]))
    assert (flips.num, flips.num_rows) == (7, 8)
    assert flips.counts() == {"better": 2, "worse": 3, "neither": 1, "unknown": 1}
    assert flips.num_unsure == 6
    first, *others = flips.pairs()
    assert first[:6] == ("b", "a", 5, 2, 1, 1)
    assert [example.id for example in first.examples] == ["0-0", "0-3", "0-4", "1-0"]
    assert sorted((str(flip.old), str(flip.new), flip.num_worse) for flip in others) == [
        ("a", "b", 1),
        ("b", "None", 1),
    ]


def test_what_was_right_before_comes_before_what_changes_most() -> None:
    flips = Flips("nowhere")
    new = [("new", f"old {number}", "new") for number in range(paired.NUM_PAIRS) for _ in range(9)]
    flips.add(part(0, [*new, ("a", "a", "b"), ("c", "c", "a"), ("c", "c", "a")]))
    pairs = flips.pairs()
    assert len(pairs) == paired.NUM_PAIRS
    assert [(flip.old, flip.num_worse) for flip in pairs[:3]] == [("c", 2), ("a", 1), ("old 0", 0)]


def test_names_are_text_with_nothing_where_there_is_none() -> None:
    columns = [pa.chunked_array([["a", None]]), pa.chunked_array([["long name"]])]
    assert paired.names(columns).tolist() == ["a", "", "long name"]
    assert paired.names([]).tolist() == []


def test_drift_is_nothing_for_the_same_shape_and_large_for_another() -> None:
    draw = np.random.default_rng(0)

    def histogram(mean: float, num: int) -> list[int]:
        return np.histogram(np.clip(draw.normal(mean, 0.1, num), 0, 1), 20, (0, 1))[0].tolist()

    before = histogram(0.9, 5_000)
    assert paired.drift(before, before) == pytest.approx(0)
    assert paired.drift(before, histogram(0.9, 2_000)) < 0.05
    assert paired.drift(before, histogram(0.7, 2_000)) > 0.5
