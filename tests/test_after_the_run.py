"""What is done with finished predictions: rejected inputs again, CSV, folders by label; and looks before the run."""

import csv
import hashlib
import itertools
import multiprocessing
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from test_classify import no_progress, part_hashes, rows_by_id, with_
from tiny_bundle import write_bundle

from fruitcnn import actor, calibrate, exports, images, infer, orders, storage
from fruitcnn.books import ClassifyError
from fruitcnn.budget import RESERVED_BYTES, Budget, left_for_pictures
from fruitcnn.classify import classify, dry_run
from fruitcnn.classify_config import ClassifyConfig
from fruitcnn.errors import UsageError
from fruitcnn.familiar import NO_LIMITS
from fruitcnn.inputs import Listing
from jobs.classify import main


@pytest.fixture
def config(tmp_path: Path, jpeg_bytes: Callable[..., bytes]) -> ClassifyConfig:
    """Twenty pictures in parts of five, two of them damaged, one no picture; and a model."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:02d}.jpg").write_bytes(jpeg_bytes(number))
    (folder / "03.jpg").write_bytes(jpeg_bytes(3)[:300])
    (folder / "12.jpg").write_bytes(jpeg_bytes(12)[:300])
    (folder / "17.jpg").write_bytes(b"not a picture")
    return ClassifyConfig(
        model=write_bundle(tmp_path / "model"),
        images=str(folder),
        predictions=str(tmp_path / "out"),
        part_images=5,
        batch_size=2,
    )


def test_rejected_inputs_are_taken_again_and_nothing_else_changes(
    config: ClassifyConfig, jpeg_bytes: Callable[..., bytes]
) -> None:
    first = classify(config, no_progress)
    assert first.books.rejected_by_cause == {"not-an-image": 1, "truncated": 2}
    before, files = rows_by_id(config.predictions), part_hashes(config.predictions)
    mended = Path(config.images, "03.jpg")
    mended.write_bytes(jpeg_bytes(3))
    Path(config.images, "17.jpg").write_bytes(jpeg_bytes(17))

    again = classify(with_(config, retry_rejected=True, cause=("truncated",)), no_progress)
    assert again.books.rejected_by_cause == {"not-an-image": 1, "truncated": 1}
    assert (again.num_retried, again.books.num_ok, again.books.num_listed) == (2, 18, 20)
    after = rows_by_id(config.predictions)
    assert {name for name, row in after.items() if row != before[name]} == {str(mended)}
    assert after[str(mended)]["sha256"] == hashlib.sha256(jpeg_bytes(3)).hexdigest()
    untouched = ["/parts/part-00001.parquet", "/parts/part-00003.parquet"]
    assert [part_hashes(config.predictions)[name] for name in untouched] == [files[name] for name in untouched]
    assert {f"/{part.path}": part.sha256 for part in again.parts} == {
        name: digest for name, digest in part_hashes(config.predictions).items() if name.startswith("/parts")
    }

    everything = classify(with_(config, retry_rejected=True), no_progress)
    assert everything.books.rejected_by_cause == {"truncated": 1}
    assert classify(config, no_progress) == everything, "the plain command finds a finished run"


def test_a_retry_that_was_killed_leaves_a_run_that_the_plain_command_closes(
    config: ClassifyConfig, jpeg_bytes: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    classify(config, no_progress)
    for number in (3, 12):
        Path(config.images, f"{number:02d}.jpg").write_bytes(jpeg_bytes(number))
    real = actor.PartClassifier.retry

    def dies(self: actor.PartClassifier, part: int) -> object:
        if part == 2:
            raise KeyboardInterrupt
        return real(self, part)

    with monkeypatch.context() as patch:
        patch.setattr(actor.PartClassifier, "retry", dies)
        with pytest.raises(KeyboardInterrupt):
            classify(with_(config, retry_rejected=True), no_progress)
    assert not storage.exists(f"{config.predictions}/manifest.json")
    closed = classify(config, no_progress)
    assert closed.books.num_listed == 20
    finished = classify(with_(config, retry_rejected=True), no_progress)
    assert finished.books.rejected_by_cause == {"not-an-image": 1}


def test_a_retry_of_an_unfinished_run_is_refused(config: ClassifyConfig) -> None:
    classify(config, no_progress)
    Path(config.predictions, "manifest.json").unlink()
    Path(config.predictions, "parts", "part-00001.parquet").unlink()
    with pytest.raises(UsageError, match="is not finished; the same command without --retry-rejected"):
        classify(with_(config, retry_rejected=True), no_progress)


def test_cause_needs_a_retry(config: ClassifyConfig) -> None:
    with pytest.raises(ValueError, match="--cause: got truncated without --retry-rejected"):
        with_(config, cause=("truncated",))


def test_a_cause_that_nothing_is_rejected_for_is_refused(config: ClassifyConfig) -> None:
    classify(config, no_progress)
    with pytest.raises(UsageError, match=r"--cause: got truncatd, wanted .*truncated"):
        classify(with_(config, retry_rejected=True, cause=("empty", "truncatd")), no_progress)


def test_beyond_max_rejected_books_and_report_are_there_all_the_same(
    config: ClassifyConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ClassifyError, match=r"--max-rejected 2: 3 of 20 inputs rejected"):
        main(with_(config, max_rejected="2"))
    said = capsys.readouterr().out
    assert "listed" in said
    assert "3 (not-an-image 1, truncated 2)" in said
    assert Path(config.predictions, "report.html").exists()


def test_the_report_says_of_every_picture_that_its_answer_does_not_stand(
    config: ClassifyConfig, tmp_path: Path
) -> None:
    """A confidence of 99 % under a picture that is unlike all that was learnt would be read as an answer."""
    strict = write_bundle(tmp_path / "strict", limits=NO_LIMITS.model_copy(update={"min_margin": 1.0}))
    main(with_(config, model=strict))
    page = Path(config.predictions, "report.html").read_text()
    drawn, pairs = re.findall(r"<figure>(?:(?!</figure>).)*unsure: ambiguous", page, re.DOTALL), page.count('"pair"')
    assert pairs > 0
    assert len(drawn) == 16 + 2 * pairs


def test_a_part_that_was_lost_since_is_noticed_and_comes_back(config: ClassifyConfig) -> None:
    classify(config, no_progress)
    before = part_hashes(config.predictions)
    Path(config.predictions, "parts/part-00001.parquet").unlink()
    with Path(config.predictions, "parts/part-00002.parquet").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ClassifyError, match=r"2\Wparts lost or changed .*part-00001\.parquet: delete .*manifest\.json"):
        classify(config, no_progress)
    Path(config.predictions, "parts/part-00002.parquet").unlink()
    Path(config.predictions, "manifest.json").unlink()
    classify(config, no_progress)
    assert part_hashes(config.predictions) == before


def test_csv_says_what_parquet_says(config: ClassifyConfig) -> None:
    manifest = classify(with_(config, probabilities=True), no_progress)
    folder = exports.write_csv(config.predictions, manifest)
    lines = [line for path in sorted(Path(folder).iterdir()) for line in csv.DictReader(path.open())]
    rows = rows_by_id(config.predictions)
    assert [line["id"] for line in lines] == list(rows)
    for line in lines:
        row = rows[line["id"]]
        assert line["status"] == row["status"]
        assert line["label"] == (row["label"] or "")
        assert line["top_labels"] == "|".join(row["top_labels"] or [])  # type: ignore[arg-type]


def test_a_retry_renews_the_csv_that_is_there(config: ClassifyConfig, jpeg_bytes: Callable[..., bytes]) -> None:
    main(with_(config, csv=True))
    Path(config.images, "17.jpg").write_bytes(jpeg_bytes(17))
    main(with_(config, retry_rejected=True))
    texts = [path.read_text() for path in Path(config.predictions, "csv").iterdir()]
    assert sum("not-an-image" in text for text in texts) == 0
    assert sum("truncated" in text for text in texts) == 2


@pytest.mark.parametrize("by", ["link", "copy"])
def test_pictures_are_put_into_folders_by_label(config: ClassifyConfig, tmp_path: Path, by: exports.By) -> None:
    manifest = classify(with_(config, min_confidence=0.4), no_progress)
    Path(config.images, "05.jpg").rename(tmp_path / "elsewhere.jpg")
    target = tmp_path / "sorted"
    for _ in range(2):
        done = exports.organise(config.predictions, manifest, str(target), by)
        assert done == exports.Organised(19, 1)
    copies = [line for path in sorted((target / "copies").glob("*.csv")) for line in csv.DictReader(path.open())]
    rows = rows_by_id(config.predictions)
    assert [line["id"] for line in copies] == list(rows)
    for line in copies:
        source, place, row = Path(line["id"]), line["target"], rows[line["id"]]
        if source.name == "05.jpg":
            assert place == ""
            continue
        folder = {"ok": row["label"], "unsure": f"_unsure/{row['label']}", "rejected": f"_rejected/{row['cause']}"}
        assert Path(place).parent == target / str(folder[str(row["status"])])
        assert Path(place).read_bytes() == source.read_bytes()
        assert os.path.samefile(place, source) == (by == "link")  # noqa: PTH121


def test_a_picture_that_a_retry_could_read_moves_to_its_label(
    config: ClassifyConfig, tmp_path: Path, jpeg_bytes: Callable[..., bytes]
) -> None:
    asked = with_(config, organise=str(tmp_path / "by"))
    main(asked)
    assert len(list((tmp_path / "by").glob("_rejected/truncated/03-*.jpg"))) == 1
    Path(config.images, "03.jpg").write_bytes(jpeg_bytes(3))
    main(with_(asked, retry_rejected=True))
    (place,) = (tmp_path / "by").rglob("03-*.jpg")
    assert "_rejected" not in str(place)
    assert len(list((tmp_path / "by").rglob("*.jpg"))) == 20


def test_a_folder_of_something_else_is_not_organised_into(config: ClassifyConfig, tmp_path: Path) -> None:
    asked = with_(config, organise=str(tmp_path / "by"))
    (tmp_path / "by").mkdir()
    (tmp_path / "by" / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"--organise .*holds mine\.jpg, wanted a new or an empty one"):
        main(asked)
    assert storage.is_empty(config.predictions)
    (tmp_path / "by" / "mine.jpg").unlink()
    main(asked)
    with pytest.raises(UsageError, match="holds the pictures of another run"):
        main(with_(asked, predictions=str(tmp_path / "other"), sample=5))


def test_folders_among_the_pictures_are_told_of(config: ClassifyConfig, capsys: pytest.CaptureFixture[str]) -> None:
    main(with_(config, organise=f"{config.images}/by-label"))
    assert capsys.readouterr().err.count("note: --organise lies inside --images") == 1


def test_of_a_symbolic_link_the_picture_is_organised(config: ClassifyConfig, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.jpg"
    elsewhere.write_bytes(Path(config.images, "00.jpg").read_bytes())
    for each in Path(config.images).iterdir():
        each.unlink()
    Path(config.images, "link.jpg").symlink_to("../elsewhere.jpg")
    manifest = classify(config, no_progress)
    exports.organise(config.predictions, manifest, str(tmp_path / "far" / "away"), "link")
    (placed,) = (tmp_path / "far" / "away").glob("*/*.jpg")
    assert placed.read_bytes() == elsewhere.read_bytes()
    elsewhere.unlink()
    assert not placed.is_symlink()
    assert placed.exists()


@pytest.mark.parametrize("name", ["n" * 251 + ".jpg", "é" * 125 + ".jpeg", "a." + "b" * 253, "c" * 255])
def test_the_longest_names_are_organised_too(config: ClassifyConfig, tmp_path: Path, name: str) -> None:
    Path(config.images, "00.jpg").rename(Path(config.images, name))
    manifest = classify(config, no_progress)
    assert exports.organise(config.predictions, manifest, str(tmp_path / "by"), "link").num_placed == 20
    assert [each.name for each in (tmp_path / "by").glob("*/*") if each.name.startswith(name[:100])]


def test_members_of_an_archive_are_organised_too(config: ClassifyConfig, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "all"), "zip", config.images)
    packed = with_(config, images=str(tmp_path / "all.zip"))
    manifest = classify(packed, no_progress)
    done = exports.organise(packed.predictions, manifest, str(tmp_path / "sorted"), "link")
    assert done == exports.Organised(20, 0)
    assert len(list((tmp_path / "sorted").rglob("*.jpg"))) == 20


def test_a_sample_is_a_run_of_its_own_always_of_the_same_inputs(config: ClassifyConfig) -> None:
    whole, some, again = (list(Listing(config.images, None, num)) for num in (None, 7, 7))
    assert some == again
    assert len(some) == 7
    assert [item for item in whole if item in some] == some
    assert list(Listing(config.images, None, 100)) == whole
    manifest = classify(with_(config, sample=7), no_progress)
    assert manifest.books.num_listed == 7
    with pytest.raises(UsageError, match="sample: that run has 7, this command says None"):
        classify(config, no_progress)


def test_a_dry_run_tries_a_sample_and_says_what_to_expect(config: ClassifyConfig) -> None:
    said = dry_run(config)
    assert said["inputs"] == 20
    assert "20\N{NO-BREAK SPACE}inputs" in said["tried"]
    assert said["bottleneck"].split()[0] in ("read", "decode", "model")
    assert storage.is_empty(config.predictions)


def options_of(num_threads: int) -> orders.Options:
    return orders.Options(
        batch_size=4, top_k=1, probabilities=False, min_confidence=0, max_pixels=10**6, num_threads=num_threads
    )


def test_the_forecast_is_the_measured_rate_over_all_inputs(
    config: ClassifyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "_CHUNK_SECONDS", 60.0)  # on a busy machine too all of them are one chunk
    models, options = infer.open_models(config.model, "openvino", 2), options_of(2)
    found = calibrate.forecast(1_000_000, 5.0, list(Listing(config.images)), models, options, 1, seconds=0.0)
    assert found.num_tried == 20
    assert found.total_seconds == pytest.approx(calibrate.START_SECONDS + 5 + 1_000_000 / found.images_per_second)


def test_a_trial_of_slow_pictures_takes_no_longer_than_it_may(
    config: ClassifyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of large PNGs one takes a second: a chunk of a thousand would keep its user waiting for longer than the run."""
    real, num_decoded = images.decode, itertools.count()

    def slowly(*args: Any) -> Any:
        next(num_decoded)
        end = time.thread_time() + 0.2
        while time.thread_time() < end:
            pass
        return real(*args)

    models, sample = infer.open_models(config.model, "openvino", 1), list(Listing(config.images)) * 100
    monkeypatch.setattr(images, "decode", slowly)
    monkeypatch.setattr(calibrate, "_STAGE_SECONDS", 1.0)
    found = calibrate.forecast(1_000_000, 5.0, sample, models, options_of(1), 1, seconds=1.0)
    assert next(num_decoded) < 60
    assert found.bottleneck == "decode"


def test_the_processes_that_work_beside_a_forecast_end_with_it(config: ClassifyConfig) -> None:
    sample, before = list(Listing(config.images)), set(multiprocessing.active_children())
    with calibrate.companions(1, config.model, "openvino", sample, options_of(1)):
        (other,) = set(multiprocessing.active_children()) - before
        assert other.is_alive()
    assert not other.is_alive()


def test_more_nodes_take_less_until_what_they_share_is_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    found = calibrate.Estimate(1_000, 500.0, 0.0, 1 << 20, {"model": 0.002})
    rows = calibrate.on_nodes(found, 50_000_000, 25_000, 50.0, num_processes=2, is_stored=True)
    assert list(rows) == ["2 nodes", "10 nodes", "100 nodes"]
    assert "h (compute" in rows["2 nodes"]  # 50 million at twice 500 a second
    assert rows["100 nodes"].startswith("2.5 h (store")  # 5,500 requests a second


def test_the_manifest_holds_the_prediction_beside_the_time(config: ClassifyConfig) -> None:
    timing = classify(config, no_progress).timing
    assert timing.predicted_seconds is not None
    assert timing.effort.num_inputs == timing.num_inputs
    assert timing.ceiling_per_second is not None
    assert timing.ceiling_per_second == pytest.approx(
        timing.num_cpus * timing.num_inputs / (timing.effort.prepare_seconds + timing.effort.model_seconds)
    )
    assert timing.predicted_seconds > 0


def test_every_part_names_the_model_that_made_it(config: ClassifyConfig) -> None:
    manifest = classify(config, no_progress)
    for part in manifest.parts:
        metadata = pq.read_schema(Path(config.predictions, part.path)).metadata[b"fruitcnn"]
        assert manifest.model_hash.encode() in metadata


def test_large_pictures_get_what_the_process_has_not_taken_already() -> None:
    left = left_for_pictures(8 << 30)
    assert (6 << 30) < left < (8 << 30) - RESERVED_BYTES
    assert left_for_pictures(1 << 20) == 1 << 18


def test_a_budget_is_never_exceeded_and_everyone_gets_a_turn() -> None:
    budget, held, most, done = Budget(100), [0], [0], []
    lock = threading.Lock()

    def work(num_bytes: int) -> None:
        with budget.hold(num_bytes):
            with lock:
                held[0] += min(num_bytes, 100)
                most[0] = max(most[0], held[0])
            time.sleep(0.001)
            with lock:
                held[0] -= min(num_bytes, 100)
        done.append(num_bytes)

    threads = [threading.Thread(target=work, args=(size,)) for size in (10, 60, 70, 500, 40, 100) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(done) == len(threads)
    assert most[0] <= 100
