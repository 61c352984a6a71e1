"""parts.py and books.py: what a row says, and that books which do not balance are noticed."""

import dataclasses
import io
import json

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fruitcnn.books import PartBooks, add_up, imbalance
from fruitcnn.familiar import NO_LIMITS
from fruitcnn.parts import METADATA_KEY, PartError, Rows, encode, read_books, top, unsure_causes

LABELS = ["Apple", "Kiwi", "Pear"]
METADATA = {"run_id": "run", "part": 7, "model_hash": "m", "library_version": "0"}
COLUMNS = [
    "id",
    "sha256",
    "width",
    "height",
    "label",
    "confidence",
    "top_labels",
    "top_scores",
    "score",
    "status",
    "cause",
    "detail",
]  # DESIGN.md, "Predictions"


def make_rows() -> Rows:
    """Sure, unsure, rejected unread, rejected after reading."""
    probabilities = np.array([[0.1, 0.7, 0.2], [0.4, 0.3, 0.3], [1, 0, 0], [1, 0, 0]], np.float32)
    indices, scores = top(probabilities, 2)
    return Rows(
        ids=["a.jpg", "caf\udce9.jpg", "gone.jpg", "note.txt"],
        sha256=["a" * 64, "b" * 64, None, "c" * 64],
        widths=[100, 50, None, None],
        heights=[80, 60, None, None],
        causes=[None, None, "not-found", "not-an-image"],
        details=[None, None, "no longer there", "no known signature"],
        top_indices=indices,
        top_scores=scores,
        margins=scores[:, 0] - scores[:, 1],
        unlike=np.array([0.5, 2, 9, 9], np.float32),
        probabilities=None,
    )


def test_every_input_has_its_row_with_the_columns_of_the_contract() -> None:
    table = pq.read_table(io.BytesIO(encode(make_rows(), LABELS, 0.5, METADATA)))
    assert table.column_names == COLUMNS
    sure, unsure, gone, note = table.to_pylist()
    assert sure == {
        "id": "a.jpg", "sha256": "a" * 64, "width": 100, "height": 80, "label": "Kiwi",
        "confidence": pytest.approx(0.7), "top_labels": ["Kiwi", "Pear"],
        "top_scores": pytest.approx([0.7, 0.2]), "score": 0.5, "status": "ok", "cause": None, "detail": None,
    }  # fmt: skip
    assert (unsure["status"], unsure["label"], unsure["id"]) == ("unsure", "Apple", "caf\\udce9.jpg")
    assert (unsure["cause"], unsure["score"]) == ("low-confidence", 2)
    assert (gone["status"], gone["cause"], gone["sha256"]) == ("rejected", "not-found", None)
    for rejected in (gone, note):
        assert {rejected[name] for name in ("label", "confidence", "top_labels", "top_scores", "score", "width")} == {
            None
        }
    assert (note["cause"], note["sha256"]) == ("not-an-image", "c" * 64)


def test_all_probabilities_come_as_a_fixed_size_list_when_asked() -> None:
    probabilities = np.arange(12, dtype=np.float32).reshape(4, 3)
    rows = dataclasses.replace(make_rows(), probabilities=probabilities)
    column = pq.read_table(io.BytesIO(encode(rows, LABELS, 0, METADATA)))["probabilities"]
    assert str(column.type) == "fixed_size_list<element: float>[3]"
    assert column.to_pylist() == [[0, 1, 2], [3, 4, 5], None, None]


def test_the_same_rows_are_the_same_bytes_and_the_file_says_whose_it_is() -> None:
    data = encode(make_rows(), LABELS, 0.5, METADATA)
    assert data == encode(make_rows(), LABELS, 0.5, METADATA)
    assert json.loads(pq.read_schema(io.BytesIO(data)).metadata[METADATA_KEY]) == METADATA


def test_duckdb_opens_a_part(tmp_path) -> None:
    (tmp_path / "part.parquet").write_bytes(encode(make_rows(), LABELS, 0.5, METADATA))
    query = f"select status, count(*) from '{tmp_path}/part.parquet' group by 1 order by 1"
    assert duckdb.sql(query).fetchall() == [("ok", 1), ("rejected", 2), ("unsure", 1)]


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_top_k_agrees_with_a_full_sort(k: int, classes: int, seed: int) -> None:
    distinct = np.random.default_rng(seed).permuted(np.tile(np.arange(classes), (4, 1)), axis=1)
    probabilities = distinct.astype(np.float32)
    indices, scores = top(probabilities, k)
    wanted = np.argsort(-probabilities, axis=1)[:, :k]
    assert np.array_equal(indices, wanted)
    assert np.array_equal(scores, np.take_along_axis(probabilities, wanted, axis=1))


def test_of_equal_scores_the_lower_label_comes_first() -> None:
    indices, _ = top(np.array([[0.3, 0.3, 0.4]], np.float32), 3)
    assert indices.tolist() == [[2, 0, 1]]


def test_what_the_limits_say_comes_before_a_low_confidence() -> None:
    given = (
        np.array([[0.5, 0.3], [0.49, 0.3], [0.3, 0.29], [0.9, 0.05]], np.float32),
        np.array([0.2, 0.19, 0.01, 0.85], np.float32),
        np.array([1, 1, 1, 1.5], np.float32),
    )
    limits = NO_LIMITS.model_copy(update={"max_unlike": 1.2, "min_margin": 0.1})
    assert unsure_causes(*given, 0.5, limits).tolist() == [None, "low-confidence", "ambiguous", "unlike-training"]
    assert unsure_causes(*given, 0.0, NO_LIMITS).tolist() == [None] * 4, "no limits: everything is answered"


def test_the_books_of_a_part_count_its_rows() -> None:
    data = encode(make_rows(), LABELS, 0.5, METADATA)
    books = read_books(7, data, "run", 4)
    assert (books.num_rows, books.num_ok, books.num_unsure, books.num_rejected) == (4, 1, 1, 2)
    assert books.unsure_by_cause == {"low-confidence": 1}
    assert books.rejected_by_cause == {"not-an-image": 1, "not-found": 1}
    assert books.ok_by_label == {"Kiwi": 1}
    assert (books.num_bytes, books.path) == (len(data), "parts/part-00007.parquet")


@pytest.mark.parametrize(("part", "run_id", "num_rows"), [(8, "run", 4), (7, "other", 4), (7, "run", 5)])
def test_a_part_of_another_run_place_or_length_is_refused(part: int, run_id: str, num_rows: int) -> None:
    with pytest.raises(PartError, match=r"delete the file and run the same command again"):
        read_books(part, encode(make_rows(), LABELS, 0.5, METADATA), run_id, num_rows)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" * 10])
def test_what_is_no_parquet_is_no_part(data: bytes) -> None:
    with pytest.raises(PartError, match=r"part-00007\.parquet is no part of ours"):
        read_books(7, data, "run", 4)


def books_of(part: int, num_rows: int, num_ok: int | None = None) -> PartBooks:
    ok = num_rows if num_ok is None else num_ok
    return PartBooks(
        part=part, num_rows=num_rows, num_ok=ok, num_unsure=0, rejected_by_cause={}, ok_by_label={"Kiwi": ok},
        num_bytes=1, sha256="",
    )  # fmt: skip


def test_books_that_balance() -> None:
    parts = [books_of(0, 3), books_of(1, 2)]
    books = add_up(5, parts)
    assert imbalance(books, [3, 2], parts) is None
    assert books.ok_by_label == {"Kiwi": 5}


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ([books_of(0, 3)], "parts missing: [1]"),
        ([books_of(0, 3), books_of(1, 2), books_of(1, 2)], "parts too many: [1]"),
        ([books_of(0, 3), books_of(1, 1)], "part 1 holds 1 rows, planned 2"),
        ([books_of(0, 3), books_of(1, 2, num_ok=1)], "listed 5, ok + unsure + rejected 4"),
    ],
)
def test_books_that_do_not_balance_say_where(parts: list[PartBooks], problem: str) -> None:
    assert problem in str(imbalance(add_up(5, parts), [3, 2], parts))
