"""report.py and what it stands on: figures that add up, a page that needs nothing from elsewhere, sections by data."""

import datetime
import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fruitcnn import charts, parquet, parts, storage, wording
from fruitcnn.books import RunManifest, StoredPart, Timing, add_up, part_path
from fruitcnn.errors import UsageError
from fruitcnn.inputs import Listing
from fruitcnn.manifest import Manifest, Split, StoredFile
from fruitcnn.manifest import publish as publish_dataset
from fruitcnn.plan import write_plan
from fruitcnn.predictions import publish as publish_run
from fruitcnn.recipe import TrainConfig
from fruitcnn.report import AugmentedPreview, write_report
from fruitcnn.scores import Pair, accuracy, class_scores, confused_pairs, count_by
from fruitcnn.tally import Kind, Tally

Jpeg = Callable[..., bytes]
ODD = '<b>Gala</b> & "Sons"'
CLASSES = ("Apple", ODD, "Kiwi")
NOW = datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC)
# (truth, label or None where rejected, confidence)
PREDICTED = [
    ("Apple", "Apple", 0.99),
    ("Apple", "Apple", 0.60),
    ("Apple", "Kiwi", 0.90),
    ("Apple", "Kiwi", 0.95),
    (ODD, "Apple", 0.40),
    (ODD, None, 0.0),
    ("Kiwi", "Kiwi", 0.97),
    ("Kiwi", "Kiwi", 0.98),
]


def table(rows: Sequence[tuple[str | None, str | None, float]], min_confidence: float = 0.5) -> pa.Table:
    """Rows of one part as the figures take them."""
    rejected = [label is None for _, label, _ in rows]
    sure = ["ok" if confidence >= min_confidence else "unsure" for *_, confidence in rows]
    return pa.table(
        {
            "id": pa.array([f"{number}.jpg" for number in range(len(rows))], pa.string()),
            "sha256": pa.array(["a" * 64] * len(rows), pa.string()),
            "width": pa.array([100] * len(rows), pa.int32()),
            "height": pa.array([100] * len(rows), pa.int32()),
            "label": pa.array([label for _, label, _ in rows], pa.string()),
            "confidence": pa.array([None if label is None else value for _, label, value in rows], pa.float32()),
            "status": pa.array(np.where(rejected, "rejected", sure).tolist(), pa.string()),
            "cause": pa.array(["truncated" if no else None for no in rejected], pa.string()),
            "detail": pa.array(["cut <off>" if no else None for no in rejected], pa.string()),
            "truth": pa.array([truth for truth, *_ in rows], pa.string()),
        }
    )


def tally_of(*tables: pa.Table) -> Tally:
    tally = Tally()
    for part, rows in enumerate(tables):
        tally.add(part, rows)
    return tally


# --- figures


def test_figures_of_a_case_counted_by_hand() -> None:
    tally = tally_of(table(PREDICTED[:3]), table(PREDICTED[3:]))
    assert accuracy(tally.kinds) == (4, 8)
    assert class_scores(tally.kinds, (*CLASSES, "Lemon")) == [
        (ODD, 2, 0, "Apple", 1),
        ("Apple", 4, 2, "Kiwi", 2),
        ("Kiwi", 2, 2, None, 0),
        ("Lemon", 0, 0, None, 0),
    ]
    assert confused_pairs(tally.kinds, 5) == [Pair("Apple", "Kiwi", 2, 4), Pair(ODD, "Apple", 1, 2)]
    assert confused_pairs(tally.kinds, 1) == [Pair("Apple", "Kiwi", 2, 4)]
    assert [(e.part, e.row, e.label) for e in tally.worst] == [(1, 0, "Kiwi"), (0, 2, "Kiwi"), (1, 1, "Apple")]
    assert count_by(tally.kinds, "status") == {"ok": 6, "unsure": 1, "rejected": 1}
    assert {group: counts.sum() for group, counts in tally.histograms.items()} == {"right": 4, "wrong": 3}


def test_pictures_chosen_are_the_surest_of_their_kind() -> None:
    tally = tally_of(table(PREDICTED))
    assert tally.slips["Apple", "Kiwi"].row == 3
    assert {name: example.row for name, example in tally.specimens.items()} == {"Apple": 0, "Kiwi": 7, ODD: 4}
    assert [(example.row, example.detail) for example in tally.rejected["truncated"]] == [(5, "cut <off>")]


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_the_surest_and_the_least_sure_of_each_label_are_kept(cut: int) -> None:
    tally = tally_of(table(PREDICTED[:cut]), table(PREDICTED[cut:]))
    found = {
        name: (PREDICTED[best.row + cut * best.part][2], PREDICTED[least.row + cut * least.part][2])
        for (name, best), least in zip(tally.surest.items(), tally.least_sure.values(), strict=True)
    }
    assert found == {"Apple": (0.99, 0.4), "Kiwi": (0.98, 0.9)}


def test_without_truth_there_is_no_accuracy_but_counts() -> None:
    tally = tally_of(table([(None, label, confidence) for _, label, confidence in PREDICTED]))
    assert accuracy(tally.kinds) == (0, 0)
    assert class_scores(tally.kinds) == []
    assert tally.worst == []
    assert set(tally.histograms) == {"ok", "unsure"}
    assert len(tally.sample) == 7


def test_only_rows_with_a_truth_are_drawn_where_there_are_any() -> None:
    tally = tally_of(table([(None, "Kiwi", 0.9)] * 40), table([("Apple", "Apple", 0.9)] * 3))
    assert {example.truth for example in tally.sample} == {"Apple"}


ROWS = st.lists(
    st.tuples(st.sampled_from(["A", "B", "C", None]), st.sampled_from(["A", "B", "C", None]), st.floats(0.25, 1)),
    max_size=60,
)


@settings(max_examples=50)
@given(ROWS, st.integers(1, 60))
def test_figures_do_not_depend_on_how_rows_are_cut_into_parts(
    rows: list[tuple[str | None, str | None, float]], size: int
) -> None:
    whole = tally_of(table(rows))
    cut = tally_of(*(table(rows[start : start + size]) for start in range(0, len(rows), size)))
    assert cut.kinds == whole.kinds
    assert {group: n.tolist() for group, n in cut.histograms.items()} == {
        group: n.tolist() for group, n in whole.histograms.items()
    }
    assert [e.confidence for e in cut.worst] == [e.confidence for e in whole.worst]
    assert {pair: e.confidence for pair, e in cut.slips.items()} == {p: e.confidence for p, e in whole.slips.items()}
    assert len(cut.sample) == len(whole.sample)


@settings(max_examples=50)
@given(ROWS)
def test_every_row_is_in_the_books_and_every_known_one_in_a_class(
    rows: list[tuple[str | None, str | None, float]],
) -> None:
    kinds = tally_of(table(rows)).kinds
    known = [truth for truth, *_ in rows if truth is not None]
    assert kinds.total() == len(rows)
    assert {score.name: score.num_rows for score in class_scores(kinds)} == Counter(known)
    right, num_rows = accuracy(kinds)
    assert (right, num_rows) == (sum(score.num_right for score in class_scores(kinds)), len(known))
    wrong = sum(pair.num for pair in confused_pairs(kinds, 100))
    assert right + wrong + sum(n for kind, n in kinds.items() if kind.truth and kind.label is None) == num_rows


def test_ties_are_settled_the_same_way_in_any_order() -> None:
    kinds = Counter({Kind("B", "A", "ok", None): 1, Kind("A", "C", "ok", None): 1, Kind("A", "B", "ok", None): 1})
    assert confused_pairs(kinds, 3) == confused_pairs(Counter(dict(reversed(kinds.items()))), 3)
    assert class_scores(kinds)[0] == ("A", 2, 0, "B", 1)


# --- words and drawings


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.98765, 1, "98.8 %"),
        (1.0, 2, "100.00 %"),
        (0.99996, 2, "> 99.99 %"),
        (0.00001, 1, "< 0.1 %"),
        (0.0, 1, "0.0 %"),
        (float("nan"), 1, "\N{EN DASH}"),
    ],
)
def test_per_cent_never_says_all_or_nothing_when_it_is_not(value: float, digits: int, text: str) -> None:
    assert wording.percent(value, digits).replace("\N{NO-BREAK SPACE}", " ") == text


def test_numbers_read_as_a_person_writes_them() -> None:
    said = [wording.count(1234567), wording.seconds(83), wording.seconds(4.21), wording.plural(1, "class")]
    said += [wording.plural(1200, "class"), wording.figure(0.05274), wording.figure(4081.6), wording.share(1, 0)]
    assert [text.replace("\N{NO-BREAK SPACE}", " ") for text in said] == [
        "1,234,567", "1 min 23 s", "4.2 s", "1 class", "1,200 classes", "0.0527", "4,082", "\N{EN DASH}",
    ]  # fmt: skip


def test_charts_take_their_colours_from_the_page_and_name_nothing_outside() -> None:
    curve = charts.Curve([0, 100, 200], [1.0, float("nan"), 0.01], True)
    for svg in (charts.loss_curves([curve]), charts.accuracy_curves([curve]), charts.histogram({"ok": np.arange(20)})):
        assert "var(--" in svg
        assert "#0101" not in svg
        assert "http" not in svg
        assert "<style" not in svg
        assert ' id="figure' not in svg


# --- the page


def make_dataset(dataset: str, jpeg: Jpeg, truths: Sequence[str]) -> list[parquet.Row]:
    """A data set with a Test split of one picture a truth, in two shards; two pictures have the same bytes."""
    rows = []
    for number, truth in enumerate(truths):
        data = jpeg(max(1, number), 60, 40)
        digest = hashlib.sha256(data).hexdigest()
        rows.append(parquet.Row(data, f"Test/{truth}/{number}!.jpg", CLASSES.index(truth), digest, truth))
    files = []
    for index, some in enumerate((rows[:3], rows[3:])):
        data = parquet.encode(some, CLASSES)
        path = f"shards/test-{index:05d}.parquet"
        storage.write(storage.join(dataset, path), data)
        digest = hashlib.sha256(data).hexdigest()
        files.append(StoredFile(path=path, num_rows=len(some), num_bytes=len(data), sha256=digest))
    manifest = Manifest(
        version=1, classes=CLASSES, splits={"test": Split(shards=tuple(files))}, num_rejected_by_cause={},
        source="https://example.org/<fruits>", source_fingerprint="f", listings=(), config={"max_pixels": 10**6},
        library_version="0", created_at=NOW,
    )  # fmt: skip
    publish_dataset(dataset, manifest)
    return rows


def make_predictions(
    predictions: str,
    images: str,
    split: str | None,
    known: Mapping[str, tuple[str | None, str | None, float]],
    finish: bool = True,
) -> None:
    """What classify would have left: known maps the end of an id to (sha256, label, confidence)."""
    plan = write_plan(predictions, Listing(images, split), "m" * 64, {"images": images, "max_pixels": 10**6}, 3, 10**9)
    names = list(known)
    books, stored, start = [], [], 0
    for part, size in enumerate(plan.part_inputs()):
        some = names[start : start + size]
        start += size
        labels = [known[name][1] for name in some]
        causes = [None if label else "truncated" for label in labels]
        rows = parts.Rows(
            some, [known[name][0] for name in some], [60] * size, [40] * size, causes,
            [cause and "ends <early>" for cause in causes],
            np.array([[CLASSES.index(label or CLASSES[0])] for label in labels]),
            np.array([[known[name][2]] for name in some], np.float32),
            np.ones(size, np.float32), np.zeros(size, np.float32), None,
        )  # fmt: skip
        data = parts.encode(rows, CLASSES, 0.5, {"run_id": plan.run_id, "part": part})
        storage.write(storage.join(predictions, part_path(part)), data)
        books.append(parts.read_books(part, data, plan.run_id, size))
        stored.append(StoredPart(path=part_path(part), num_rows=size, num_bytes=len(data), sha256=books[-1].sha256))
    if finish:
        timing = Timing(attempt=1, finished_at=NOW, total_seconds=1, classify_seconds=1, num_inputs=plan.num_inputs)
        manifest = RunManifest(
            run_id=plan.run_id, model="model", model_hash="m" * 64, settings=plan.settings, config={},
            books=add_up(plan.num_inputs, books), num_hidden=0, num_repeated=0, parts=tuple(stored),
            versions={"ray": "2.60.0"}, timing=timing,
        )  # fmt: skip
        publish_run(predictions, manifest)


def make_run(run: str, dataset: str) -> None:
    config = TrainConfig(dataset=dataset, run=run, num_workers=2)
    facts = {"config": config.model_dump(mode="json"), "classes": CLASSES, "num_train_rows": 1234}
    storage.write_json(storage.join(run, "config.json"), facts)
    lines = [
        {"kind": kind, "step": step, "images_seen": 64 * step, "loss": 1 / step, "accuracy": 1 - 1 / step, "seconds": 1}
        for kind in ("train", "validation")
        for step in (1, 2, 3, 3)
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n{"kind": "tra'
    storage.write(storage.join(run, "metrics.jsonl"), text.encode())
    result = {
        "best_checkpoint": "step-00000003", "images_per_second": 4081.6, "num_workers": 2,
        "validation": {"loss": 0.1, "accuracy": 0.75, "num_rows": 40}, "test": None,
        "seconds": {"training": 83.0}, "versions": {"keras": "3.15.1"},
    }  # fmt: skip
    storage.write_json(storage.join(run, "result.json"), result)


def make_work(work: str, jpeg: Jpeg, predicted: Sequence[tuple[str, str | None, float]] = PREDICTED) -> dict[str, str]:
    """Run, data set and predictions over its Test split; returns write_report's arguments."""
    where = {name: storage.join(work, name) for name in ("run", "dataset", "predictions")}
    make_run(where["run"], where["dataset"])
    rows = make_dataset(where["dataset"], jpeg, [truth for truth, *_ in predicted])
    known = {
        f"{where['dataset']}/shards/test-0000{number >= 3:d}.parquet!{row.path}": (row.id, label, confidence)
        for number, (row, (_, label, confidence)) in enumerate(zip(rows, predicted, strict=True))
    }
    make_predictions(where["predictions"], where["dataset"], "test", known)
    return where


def sections(html: str) -> list[str]:
    return re.findall(r'<section id="(\w+)">', html)


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).replace("\N{NO-BREAK SPACE}", " ").split())


def preview() -> AugmentedPreview:
    pixels = np.arange(3 * 8 * 8 * 3, dtype=np.uint8).reshape(3, 8, 8, 3)
    return AugmentedPreview(pixels, pixels[:, ::-1])


def test_the_whole_page_from_a_folder_and_from_s3(any_prefix: str, jpeg_bytes: Jpeg) -> None:
    report = storage.join(any_prefix, "report.html")
    where = make_work(any_prefix, jpeg_bytes)
    assert write_report(report, **where, augmented=preview()) == report
    html = storage.read(report).decode()
    assert sections(html) == [
        "augmentation", "curves", "sample", "pairs", "worst", "classes", "confidence", "books", "configuration",
    ]  # fmt: skip
    text = text_of(html)
    assert "Test accuracy 50.00 % 4 of 8 right" in text
    assert "8 listed = 6 ok + 1 unsure + 1 rejected" in text
    assert "Apple ✗ 2 of 4 taken for Kiwi" in text
    assert html.count('<figure class="right">') == 4
    assert html.count("data:image/jpeg") == html.count('<img src="data:image/jpeg')
    assert html.count("<img") == 3 * 2 + 7 + 3 + 2 * 2
    assert "no picture" not in html.replace('"no picture of', "")
    assert "best checkpoint, by validation, is the one after step 3" in text


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path, jpeg_bytes: Jpeg) -> None:
    where = make_work(str(tmp_path), jpeg_bytes)
    first, second = (Path(write_report(str(tmp_path / f"{n}.html"), **where)).read_bytes() for n in (1, 2))
    assert first == second


def test_the_page_loads_nothing_and_shows_odd_names_as_they_are(tmp_path: Path, jpeg_bytes: Jpeg) -> None:
    html = Path(
        write_report(str(tmp_path / "report.html"), **make_work(str(tmp_path), jpeg_bytes), augmented=preview())
    ).read_text()
    outside = re.findall(r'(?:src|href|srcset|poster|action)\s*=\s*"?(?!data:image/|#)[^"\s>]+', html)
    assert outside == []
    assert re.findall(r"url\((?!#)|@import|<link|<iframe|<script src", html) == []
    # The one address in the page is the name of the source, as text.
    assert set(re.findall(r"https?://[^\s<&]+", html)) == {"https://example.org/"}
    assert "<b>Gala" not in html
    assert "&lt;b&gt;Gala&lt;/b&gt; &amp; &#34;Sons&#34;" in html
    assert "ends &lt;early&gt;" in html


def test_the_page_can_be_read_without_seeing_it(tmp_path: Path, jpeg_bytes: Jpeg) -> None:
    html = Path(write_report(str(tmp_path / "r.html"), **make_work(str(tmp_path), jpeg_bytes))).read_text()
    assert all(re.search(r'alt="[^"]+"', tag) for tag in re.findall(r"<img [^>]*>", html))
    assert re.findall(r"<th(?! scope=)[ >][^>]*>", html) == []
    assert len(re.findall("<h1", html)) == 1
    assert '<html lang="en">' in html
    assert html.count('✗</span><span class="hidden">wrong:</span>') >= 3
    ids = re.findall(r' id="([^"]+)"', html)
    assert [name for name in set(ids) if ids.count(name) > 1 and not re.fullmatch(r"[mp][0-9a-f]{10}", name)] == []


def test_predictions_of_any_pictures_are_reported_without_truth(tmp_path: Path, jpeg_bytes: Jpeg) -> None:
    folder, predictions = tmp_path / "pictures", str(tmp_path / "predictions")
    folder.mkdir()
    known: dict[str, tuple[str | None, str | None, float]] = {}
    for number, label in enumerate(["Apple", "Kiwi", "Apple", None]):
        data = jpeg_bytes(number, 60, 40)
        path = folder / f"{number}.jpg"
        path.write_bytes(data)
        known[str(path)] = (hashlib.sha256(data).hexdigest(), label, 0.9 if number else 0.3)
    (folder / "2.jpg").write_bytes(b"changed since")
    make_predictions(predictions, str(folder), None, known)
    html = Path(write_report(f"{predictions}/report.html", predictions=predictions)).read_text()
    assert sections(html) == ["sample", "gallery", "classes", "confidence", "books", "configuration"]
    text = text_of(html)
    assert "Apple 90.0 % 30.0 %" in text, "the surest and the least sure apple"
    assert "accuracy" not in text.lower()
    assert "Apple 2 50.0 % 1 Kiwi 1 25.0 % 0" in text
    assert "truncated 1" in text
    assert html.count("<img") == 2 + 3
    assert html.count('class="gone"') == 1 + 1


def test_a_run_alone_is_reported(tmp_path: Path) -> None:
    make_run(str(tmp_path / "run"), "s3://bucket/dataset")
    html = Path(write_report(str(tmp_path / "report.html"), run=str(tmp_path / "run"))).read_text()
    assert sections(html) == ["curves", "configuration"]
    assert "1 min 23 s" in text_of(html)


def test_a_run_that_only_began_is_reported(tmp_path: Path) -> None:
    make_run(str(tmp_path), "dataset")
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "result.json").unlink()
    html = Path(write_report(str(tmp_path / "report.html"), run=str(tmp_path))).read_text()
    assert sections(html) == ["configuration"]


@pytest.mark.parametrize(
    ("label", "wanted"),
    [(None, ["books", "configuration"]), ("Apple", ["sample", "pairs", "worst", "classes", "confidence"])],
)
def test_all_rejected_and_all_named_alike(
    tmp_path: Path, jpeg_bytes: Jpeg, label: str | None, wanted: list[str]
) -> None:
    where = make_work(str(tmp_path), jpeg_bytes, [(truth, label, 0.9 if label else 0.0) for truth, *_ in PREDICTED])
    html = Path(write_report(str(tmp_path / "report.html"), **where)).read_text()
    assert set(wanted) <= set(sections(html))
    if label is None:
        assert not {"sample", "pairs", "worst", "confidence"} & set(sections(html))
        assert "0.00 % 0 of 8 right" in text_of(html)
    else:
        assert "Rejected, by cause" not in html


def test_without_mistakes_there_is_nothing_to_show_of_them(tmp_path: Path, jpeg_bytes: Jpeg) -> None:
    where = make_work(str(tmp_path), jpeg_bytes, [(truth, truth, 0.9) for truth, *_ in PREDICTED])
    html = Path(write_report(str(tmp_path / "report.html"), **where)).read_text()
    assert not {"pairs", "worst"} & set(sections(html))
    assert "100.00 %" in text_of(html)


def test_books_that_do_not_balance_are_said_to(tmp_path: Path) -> None:
    folder, predictions = tmp_path / "pictures", tmp_path / "predictions"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(b"x")
    known = {str(folder / f"{number}.jpg"): (None, "Apple", 0.9) for number in range(4)}
    make_predictions(str(predictions), str(folder), None, known, finish=False)
    (predictions / part_path(1)).unlink()
    html = Path(write_report(str(tmp_path / "report.html"), predictions=str(predictions))).read_text()
    text = text_of(html)
    assert "do not balance: 4 inputs were listed, 3 are accounted for. The run is not finished" in text


def test_nothing_to_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a run nor predictions"):
        write_report(str(tmp_path / "report.html"))
    assert not (tmp_path / "report.html").exists()


def test_importing_the_report_loads_no_heavy_module() -> None:
    heavy = "{'matplotlib', 'jinja2', 'ray', 'tensorflow', 'keras', 'boto3', 'pandas'}"
    code = f"import sys, fruitcnn.report; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
