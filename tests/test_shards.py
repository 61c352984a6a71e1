"""What a data set promises: every file accounted for, the same bytes again, nothing done twice, growth, refusals."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fruitcnn import images, shards, storage
from fruitcnn.errors import UsageError
from fruitcnn.images import DEFAULT_MAX_PIXELS
from fruitcnn.manifest import DatasetError, Manifest, load_manifest, manifest_uri, publish
from fruitcnn.parquet import ROW_GROUP_ROWS, Row, encode, read_rows
from fruitcnn.shard_config import ShardConfig
from fruitcnn.sharding import ShardPlan, plan_shards, write_shard
from fruitcnn.shards import check_dataset, write_dataset
from fruitcnn.sources import Record, Source, SourceError, open_source
from jobs import shard as shard_job
from jobs.cli import run

Jpeg = Callable[..., bytes]


@contextmanager
def no_progress(title: str, total: int | None, unit: str, already: int = 0) -> Iterator[Callable[..., None]]:
    yield lambda done, note="": None


def make_source(folder: Path, jpeg: Jpeg, classes: str = "Apple Pear", per_class: int = 6) -> Path:
    """A Training/Test folder of small pictures, all different."""
    for split, count in (("Training", per_class), ("Test", max(1, per_class // 3))):
        for name in classes.split():
            for number in range(count):
                add(folder / split / name / f"r_{number}_100.jpg", jpeg)
    return folder


def add(path: Path, jpeg: Jpeg) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int(hashlib.sha256("/".join(path.parts[-3:]).encode()).hexdigest()[:6], 16)
    path.write_bytes(jpeg(seed, 24, 20))


def write(source: Path | str, dataset: Path | str, **settings: object) -> Manifest:
    config = ShardConfig(source=str(source), dataset=str(dataset), **{"shard_bytes": 4_000, **settings})
    return write_dataset(config, no_progress)


def all_rows(dataset: Path | str, manifest: Manifest) -> dict[str, tuple[bytes, str, str, str]]:
    """Path -> bytes, class name, id, group of every row."""
    rows: dict[str, tuple[bytes, str, str, str]] = {}
    for shard in manifest.shards():
        for batch in read_rows(str(dataset), shard.path):
            for row in batch.to_pylist():
                assert row["image"]["path"] not in rows, "a row twice"
                label = manifest.classes[row["label"]]
                rows[row["image"]["path"]] = (row["image"]["bytes"], label, row["id"], row["group"])
    return rows


def tree(dataset: Path) -> dict[str, int]:
    """Every file of a data set and when it was written."""
    return {str(p.relative_to(dataset)): p.stat().st_mtime_ns for p in dataset.rglob("*") if p.is_file()}


def rejected_rows(dataset: Path | str) -> list[dict[str, str | None]]:
    import io

    return pq.read_table(io.BytesIO(storage.read(storage.join(str(dataset), "rejected.parquet")))).to_pylist()


# --- the plan

RECORDS = st.lists(
    st.builds(
        Record,
        path=st.text("abcdefgh/0123", min_size=1, max_size=12),
        label=st.just("Apple"),
        split=st.sampled_from(["train", "test"]),
        group=st.just("Apple/"),
        size_bytes=st.integers(0, 2_000),
    ),
    unique_by=lambda record: record.path,
    max_size=40,
)


@given(RECORDS, st.integers(1, 5_000))
def test_a_plan_holds_every_record_once_and_no_shard_is_too_large(records: list[Record], shard_bytes: int) -> None:
    plans = plan_shards(records, shard_bytes, {})
    planned = [record for plan in plans for record in plan.records]
    assert sorted(planned, key=str) == sorted(records, key=str)
    for plan in plans:
        assert {record.split for record in plan.records} == {plan.split}
        assert sum(record.size_bytes for record in plan.records[:-1]) < shard_bytes or not shard_bytes


@given(RECORDS, st.randoms(use_true_random=False), st.integers(1, 5_000))
def test_a_plan_depends_on_the_listing_alone_not_on_its_order(
    records: list[Record], random: "object", shard_bytes: int
) -> None:
    mixed = list(records)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert plan_shards(records, shard_bytes, {}) == plan_shards(mixed, shard_bytes, {})


def test_every_block_of_rows_is_a_fair_mix_of_the_classes() -> None:
    records = [Record(f"Training/{c}/{n}.jpg", c, "train", f"{c}/", 100) for c in "ABCD" for n in range(1_000)]
    (plan,) = plan_shards(records, 10**9, {})
    for start in range(0, 3_840, ROW_GROUP_ROWS):
        labels = [record.label for record in plan.records[start : start + ROW_GROUP_ROWS]]
        assert all(35 < labels.count(name) < 95 for name in "ABCD")


# --- one shard


def test_the_same_rows_give_the_same_bytes_in_row_groups_of_256(jpeg_bytes: Jpeg, tmp_path: Path) -> None:
    rows = [Row(jpeg_bytes(n, 8, 8), f"Pear/{n}.jpg", n % 2, f"{n:064x}", "Pear/") for n in range(600)]
    data = encode(rows, ["Apple", "Pear"])
    assert data == encode(rows, ["Apple", "Pear"])
    storage.write(str(tmp_path / "s.parquet"), data)
    batches = list(read_rows(str(tmp_path), "s.parquet"))
    assert [batch.num_rows for batch in batches] == [256, 256, 88]
    assert [row["id"] for batch in batches for row in batch.to_pylist()] == [row.id for row in rows]
    some = list(read_rows(str(tmp_path), "s.parquet", ["image.path", "label"], row_groups=[2]))
    assert [row["image"] for row in some[0].to_pylist()] == [{"path": row.path} for row in rows[512:]]


def test_pictures_are_stored_as_they_are_without_a_second_compression(jpeg_bytes: Jpeg) -> None:
    data = jpeg_bytes(0, 64, 64)
    assert data in encode([Row(data, "a.jpg", 0, "0" * 64, "a/")], ["Apple", "Pear"])


class BrokenSource(Source):
    """A source whose reading fails as told."""

    def read(self, record: Record) -> bytes:
        raise {
            "damaged": SourceError("the member is damaged"),
            "gone": storage.NotFoundError(record.path, "not there"),
            "down": storage.UnavailableError(record.path, "no answer"),
        }[record.label]


@pytest.mark.parametrize("label", ["damaged", "gone"])
def test_a_file_that_cannot_be_read_is_rejected_without_id(label: str, tmp_path: Path) -> None:
    source = BrokenSource("mem", [], [label], "", 0, _reader=lambda record: b"")
    plan = ShardPlan("train-00000", (Record("x.jpg", label, "train", "x/", 1),))
    result = write_shard(source, plan, [label], str(tmp_path), str(tmp_path / "w"), DEFAULT_MAX_PIXELS)
    assert result.shard is None
    assert [(item.id, item.path, item.cause) for item in result.rejected] == [(None, "x.jpg", "unreadable")]


def test_a_store_that_fails_is_no_rejection_but_an_error(tmp_path: Path) -> None:
    source = BrokenSource("mem", [], ["down"], "", 0, _reader=lambda record: b"")
    plan = ShardPlan("train-00000", (Record("x.jpg", "down", "train", "x/", 1),))
    with pytest.raises(storage.UnavailableError):
        write_shard(source, plan, ["down"], str(tmp_path), str(tmp_path / "w"), DEFAULT_MAX_PIXELS)
    assert storage.is_empty(str(tmp_path))


# --- the whole data set


@pytest.mark.ray
def test_every_file_becomes_a_row_with_its_bytes_untouched(
    ray_session: None, any_prefix: str, tmp_path: Path, jpeg_bytes: Jpeg
) -> None:
    source = make_source(tmp_path / "in", jpeg_bytes)
    manifest = write(source, any_prefix)
    rows = all_rows(any_prefix, manifest)
    files = {str(p.relative_to(source)): p.read_bytes() for p in source.rglob("*.jpg")}
    assert {path: data for path, (data, *_) in rows.items()} == files
    for path, (data, label, row_id, group) in rows.items():
        assert label == path.split("/")[1]
        assert row_id == hashlib.sha256(data).hexdigest()
        assert group == f"{label}/r_"
    assert manifest.classes == ("Apple", "Pear")
    assert {name: split.num_rows for name, split in manifest.splits.items()} == {"train": 12, "test": 4}
    assert len(manifest.splits["train"].shards) > 1, "small shard_bytes make several shards"
    assert rejected_rows(any_prefix) == []
    assert check_dataset(any_prefix) == manifest == load_manifest(any_prefix, 1)
    assert not any("_work" in entry.uri for entry in storage.list_files(any_prefix))


@pytest.mark.ray
def test_the_same_source_again_changes_nothing(ray_session: None, tmp_path: Path, jpeg_bytes: Jpeg) -> None:
    source, dataset = make_source(tmp_path / "in", jpeg_bytes), tmp_path / "out"
    first = write(source, dataset)
    before = tree(dataset)
    assert write(source, dataset) == first
    assert tree(dataset) == before


@pytest.mark.ray
def test_two_data_sets_of_one_source_have_the_same_shards(ray_session: None, tmp_path: Path, jpeg_bytes: Jpeg) -> None:
    source = make_source(tmp_path / "in", jpeg_bytes)
    one, two = write(source, tmp_path / "one"), write(source, tmp_path / "two")
    assert one.splits == two.splits
    assert one.listings == two.listings


@pytest.mark.ray
def test_a_folder_and_its_zip_make_the_same_shards(ray_session: None, tmp_path: Path, jpeg_bytes: Jpeg) -> None:
    source = make_source(tmp_path / "in", jpeg_bytes)
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for path in sorted(source.rglob("*.jpg")):
            archive.write(path, f"fruits/{path.relative_to(source)}")
    assert write(source, tmp_path / "one").splits == write(tmp_path / "in.zip", tmp_path / "two").splits


@pytest.mark.ray
def test_broken_pictures_are_listed_with_their_causes(ray_session: None, tmp_path: Path, jpeg_bytes: Jpeg) -> None:
    source = make_source(tmp_path / "in", jpeg_bytes, per_class=30)
    whole = jpeg_bytes(1, 30, 30)
    broken = {"empty": b"", "not-an-image": b"plain text, no picture", "truncated": whole[: len(whole) // 2]}
    for cause, data in broken.items():
        (source / "Training" / "Pear" / f"{cause}.jpg").write_bytes(data)
    (source / "Training" / "Pear" / "large.jpg").write_bytes(jpeg_bytes(2, 40, 40))
    manifest = write(source, tmp_path / "out", max_pixels=1_000)
    assert manifest.num_rejected_by_cause == {"empty": 1, "not-an-image": 1, "too-large": 1, "truncated": 1}
    rejected = {str(row["path"]): row for row in rejected_rows(tmp_path / "out")}
    assert {row["cause"] for row in rejected.values()} == set(manifest.num_rejected_by_cause)
    for cause, data in broken.items():
        row = rejected[f"Training/Pear/{cause}.jpg"]
        assert (row["cause"], row["id"]) == (cause, hashlib.sha256(data).hexdigest())
        assert row["detail"]
    num_files = sum(1 for _ in source.rglob("*.jpg"))
    assert len(all_rows(tmp_path / "out", manifest)) + len(rejected) == num_files
    assert manifest.splits["train"].num_rows == 60


@pytest.mark.ray
def test_too_many_broken_pictures_fail_the_job_and_a_higher_limit_finishes_it(
    ray_session: None, tmp_path: Path, jpeg_bytes: Jpeg
) -> None:
    source, dataset = make_source(tmp_path / "in", jpeg_bytes), tmp_path / "out"
    for number in range(4):
        (source / "Training" / "Pear" / f"r_{number}_100.jpg").write_bytes(b"text")
    with pytest.raises(DatasetError, match=r"4 of 16 files were rejected \(not-an-image 4\), more than --max-rejected"):
        write(source, dataset)
    assert not storage.exists(manifest_uri(str(dataset))), "no manifest, no data set"
    assert len(rejected_rows(dataset)) == 4, "the message sends people here"
    before = tree(dataset)
    assert write(source, dataset, max_rejected=0.5).num_rejected_by_cause == {"not-an-image": 4}
    assert all(time == before[path] for path, time in tree(dataset).items() if path.startswith("shards/"))


@pytest.mark.ray
def test_a_source_without_a_usable_picture_is_refused(ray_session: None, tmp_path: Path, jpeg_bytes: Jpeg) -> None:
    source = make_source(tmp_path / "in", jpeg_bytes)
    for path in source.rglob("*.jpg"):
        path.write_bytes(b"text")
    with pytest.raises(DatasetError, match=r"all 16 files of .* were rejected \(not-an-image 16\)"):
        write(source, tmp_path / "out")


@pytest.mark.ray
def test_one_class_left_is_refused(ray_session: None, tmp_path: Path, jpeg_bytes: Jpeg) -> None:
    source = make_source(tmp_path / "in", jpeg_bytes)
    for path in source.rglob("Pear/*.jpg"):
        path.write_bytes(b"text")
    with pytest.raises(DatasetError, match=r"only one class \(Apple\)"):
        write(source, tmp_path / "out", max_rejected=0.9)


# --- restarts


@pytest.mark.ray
@pytest.mark.fault
def test_a_run_killed_in_the_middle_is_finished_not_redone(ray_session: None, tmp_path: Path, jpeg_bytes: Jpeg) -> None:
    import ray

    source, dataset = make_source(tmp_path / "in", jpeg_bytes, per_class=12), tmp_path / "out"
    script = f"""if True:
        import os, signal, ray
        from contextlib import contextmanager
        from fruitcnn.shard_config import ShardConfig
        from fruitcnn.shards import write_dataset
        @contextmanager
        def kill_after_the_first(title, total, unit, already=0):
            yield lambda done, note="": os.kill(os.getpid(), signal.SIGKILL)
        ray.init(address={ray.get_runtime_context().gcs_address!r}, log_to_driver=False)
        config = ShardConfig(source={str(source)!r}, dataset={str(dataset)!r}, shard_bytes=4_000)
        write_dataset(config, kill_after_the_first)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not (dataset / "manifest.json").exists()
    reports = {path.stem for path in dataset.glob("shards/_work/*/*.json")} - {"plan"}
    assert reports, "at least one shard was finished"
    before = tree(dataset)
    manifest = write(source, dataset)
    after = tree(dataset)
    assert all(after[f"shards/{name}.parquet"] == before[f"shards/{name}.parquet"] for name in reports)
    assert manifest.splits == write(source, tmp_path / "never killed").splits
    assert not (dataset / "shards" / "_work").exists()


@pytest.mark.ray
def test_a_finished_shard_that_vanished_is_made_again(
    ray_session: None, tmp_path: Path, jpeg_bytes: Jpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, dataset = make_source(tmp_path / "in", jpeg_bytes), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_finish", stop)
        with pytest.raises(InterruptedError):
            write(source, dataset)
    before = tree(dataset)
    (dataset / "shards" / "train-00001.parquet").unlink()
    manifest = write(source, dataset)
    changed = {path for path, time in tree(dataset).items() if path.endswith(".parquet") and before.get(path) != time}
    assert changed == {"shards/train-00001.parquet", "rejected.parquet", "listings/000001.parquet"}
    assert check_dataset(str(dataset)) == manifest


def stop(*_: object) -> None:
    raise InterruptedError


@pytest.mark.ray
def test_a_run_killed_between_the_two_writes_of_the_manifest_is_finished(
    ray_session: None, tmp_path: Path, jpeg_bytes: Jpeg
) -> None:
    source, dataset = make_source(tmp_path / "in", jpeg_bytes), tmp_path / "out"
    first = write(source, dataset)
    (dataset / "manifest.json").unlink()
    assert write(source, dataset) == first
    assert load_manifest(str(dataset)) == first


@pytest.mark.ray
def test_a_source_that_grew_during_a_broken_run_starts_over(
    ray_session: None, tmp_path: Path, jpeg_bytes: Jpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, dataset = make_source(tmp_path / "in", jpeg_bytes, per_class=12), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_finish", stop)
        with pytest.raises(InterruptedError):
            write(source, dataset, shard_bytes=2_000)
    add(source / "Training" / "Pear" / "r_99_100.jpg", jpeg_bytes)
    manifest = write(source, dataset)
    assert {str(p.relative_to(dataset)) for p in dataset.glob("shards/**/*")} == {s.path for s in manifest.shards()}
    assert len(all_rows(dataset, manifest)) == 33


@pytest.mark.ray
def test_a_data_set_half_written_from_another_source_is_refused(
    ray_session: None, tmp_path: Path, jpeg_bytes: Jpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = make_source(tmp_path / "one", jpeg_bytes), make_source(tmp_path / "two", jpeg_bytes, "Kiwi Fig")
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_finish", stop)
        with pytest.raises(InterruptedError):
            write(one, tmp_path / "out")
    with pytest.raises(UsageError, match=r"half-written from .*one, not from .*two"):
        write(two, tmp_path / "out")


# --- growth


@pytest.mark.ray
def test_a_grown_source_adds_shards_and_old_versions_stay(
    ray_session: None, any_prefix: str, tmp_path: Path, jpeg_bytes: Jpeg
) -> None:
    source = make_source(tmp_path / "in", jpeg_bytes, "Banana Pear")
    first = write(source, any_prefix)
    old_rows = all_rows(any_prefix, first)
    make_source(source, jpeg_bytes, "Apple")  # sorts before the others: labels of old rows must not shift
    add(source / "Training" / "Pear" / "r_77_100.jpg", jpeg_bytes)
    second = write(source, any_prefix)
    assert (first.version, second.version) == (1, 2)
    assert second.classes == ("Banana", "Pear", "Apple")
    for split, old in first.splits.items():
        assert second.splits[split].shards[: len(old.shards)] == old.shards
    new_rows = all_rows(any_prefix, second)
    assert {path: row for path, row in new_rows.items() if path in old_rows} == old_rows
    assert set(new_rows) == {str(p.relative_to(source)) for p in source.rglob("*.jpg")}
    assert load_manifest(any_prefix, 1) == first
    assert all_rows(any_prefix, load_manifest(any_prefix, 1)) == old_rows
    assert write(source, any_prefix) == second, "and then nothing is new"


@pytest.mark.ray
def test_what_was_rejected_stays_on_the_books_when_the_source_grows(
    ray_session: None, tmp_path: Path, jpeg_bytes: Jpeg
) -> None:
    source, dataset = make_source(tmp_path / "in", jpeg_bytes, per_class=12), tmp_path / "out"
    (source / "Training" / "Pear" / "bad.jpg").write_bytes(b"text")
    write(source, dataset)
    (source / "Training" / "Apple" / "worse.jpg").write_bytes(b"")
    assert write(source, dataset).num_rejected_by_cause == {"empty": 1, "not-an-image": 1}
    assert [row["path"] for row in rejected_rows(dataset)] == ["Training/Apple/worse.jpg", "Training/Pear/bad.jpg"]


@pytest.mark.ray
def test_a_source_whose_old_files_vanished_or_changed_is_refused_by_name(
    ray_session: None, tmp_path: Path, jpeg_bytes: Jpeg
) -> None:
    source, dataset = make_source(tmp_path / "in", jpeg_bytes), tmp_path / "out"
    write(source, dataset)
    before = tree(dataset)
    (source / "Training" / "Pear" / "r_0_100.jpg").unlink()
    (source / "Training" / "Pear" / "r_1_100.jpg").write_bytes(b"another size")
    with pytest.raises(UsageError) as refusal:
        write(source, dataset)
    message = str(refusal.value)
    assert "1 files of it are gone: Training/Pear/r_0_100.jpg" in message
    assert "1 files of it changed: Training/Pear/r_1_100.jpg" in message
    assert "write this source to another --dataset" in message
    assert tree(dataset) == before


# --- refusals, nothing started


def test_a_folder_that_holds_other_things_is_refused(tmp_path: Path, jpeg_bytes: Jpeg) -> None:
    source = make_source(tmp_path / "in", jpeg_bytes)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("all of it")
    with pytest.raises(UsageError, match=r"--dataset: .*out is not empty and holds no data set of ours"):
        write(source, tmp_path / "out")
    assert tree(tmp_path / "out").keys() == {"thesis.txt"}


def test_a_data_set_inside_its_source_is_refused(tmp_path: Path, jpeg_bytes: Jpeg) -> None:
    source = make_source(tmp_path / "in", jpeg_bytes)
    with pytest.raises(UsageError, match="lies inside the source"):
        write(source, source / "dataset")


@pytest.mark.ray
def test_other_settings_and_lost_shards_are_refused(ray_session: None, tmp_path: Path, jpeg_bytes: Jpeg) -> None:
    source, dataset = make_source(tmp_path / "in", jpeg_bytes), tmp_path / "out"
    write(source, dataset)
    with pytest.raises(UsageError, match=r"--seed: got 7, wanted 0"):
        write(source, dataset, seed=7)
    (dataset / "shards" / "train-00001.parquet").unlink()
    with pytest.raises(UsageError, match=r"names shards/train-00001.parquet, not there"):
        write(source, dataset)


@pytest.mark.ray
def test_check_names_the_shard_with_one_flipped_byte(ray_session: None, tmp_path: Path, jpeg_bytes: Jpeg) -> None:
    source, dataset = make_source(tmp_path / "in", jpeg_bytes), tmp_path / "out"
    manifest = write(source, dataset)
    path = dataset / manifest.splits["test"].shards[0].path
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"1 of \d+ files are not what the manifest says: shards/test-00000.parquet"):
        check_dataset(str(dataset))


def test_no_manifest_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'no .*manifest.json.*run "python -m jobs.shard'):
        load_manifest(str(tmp_path))
    (tmp_path / "manifest.json").write_text('{"schema_version": 2}')
    with pytest.raises(UsageError, match="is not a manifest of schema version 1"):
        load_manifest(str(tmp_path))


@pytest.mark.ray
def test_of_two_runs_that_publish_one_wins(ray_session: None, tmp_path: Path, jpeg_bytes: Jpeg) -> None:
    manifest = write(make_source(tmp_path / "in", jpeg_bytes), tmp_path / "out")
    dataset = str(tmp_path / "out")
    later = manifest.model_copy(update={"created_at": manifest.created_at.replace(year=2099)})
    assert publish(dataset, later) == manifest, "the same contents: the first text stays"
    with pytest.raises(DatasetError, match="published by another run"):
        publish(dataset, manifest.model_copy(update={"classes": ("Fig", "Kiwi")}))
    assert load_manifest(dataset) == manifest
    assert hashlib.sha256((tmp_path / "out" / "manifest.json").read_bytes()).hexdigest() == manifest.sha256


# --- other people's readers


@pytest.mark.ray
def test_hugging_face_datasets_opens_it_with_pictures_and_class_names(
    ray_session: None, tmp_path: Path, jpeg_bytes: Jpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, dataset = make_source(tmp_path / "in", jpeg_bytes), tmp_path / "out"
    manifest = write(source, dataset)
    script = f"""if True:
        import datasets, json
        files = {{"train": {str(dataset / "shards" / "train-*.parquet")!r},
                  "test": {str(dataset / "shards" / "test-*.parquet")!r}}}
        found = datasets.load_dataset("parquet", data_files=files)
        row = found["train"][0]
        print(json.dumps([found["train"].features["label"].names, found["train"].num_rows, found["test"].num_rows,
                          type(row["image"]).__name__, row["image"].size,
                          found["train"].features["label"].int2str(row["label"]), row["id"], row["group"]]))
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr.decode()
    names, num_train, num_test, kind, size, label, row_id, group = json.loads(done.stdout.splitlines()[-1])
    assert (names, num_train, num_test) == (["Apple", "Pear"], 12, 4)
    assert (kind, size) == ("JpegImageFile", [24, 20])
    first = next(
        iter(all_rows(dataset, manifest.model_copy(update={"splits": {"train": manifest.splits["train"]}})).values())
    )
    assert (label, row_id, group) == first[1:]


@pytest.mark.ray
def test_shards_of_a_grown_data_set_name_all_classes_known_when_they_were_written(
    ray_session: None, tmp_path: Path, jpeg_bytes: Jpeg
) -> None:
    source, dataset = make_source(tmp_path / "in", jpeg_bytes, "Banana Pear"), tmp_path / "out"
    write(source, dataset)
    make_source(source, jpeg_bytes, "Apple")
    manifest = write(source, dataset)
    names = []
    for shard in (manifest.splits["train"].shards[0], manifest.splits["train"].shards[-1]):
        metadata = pq.read_schema(dataset / shard.path).metadata[b"huggingface"]
        names.append(json.loads(metadata)["info"]["features"]["label"]["names"])
    assert names == [["Banana", "Pear"], ["Banana", "Pear", "Apple"]]


@pytest.mark.ray
def test_duckdb_and_pandas_open_it(ray_session: None, tmp_path: Path, jpeg_bytes: Jpeg) -> None:
    import duckdb
    import pandas as pd

    dataset = tmp_path / "out"
    manifest = write(make_source(tmp_path / "in", jpeg_bytes), dataset)
    query = "select label, count(*), min(octet_length(image.bytes)) > 0 from '{}' group by label order by label"
    assert duckdb.sql(query.format(dataset / "shards" / "train-*.parquet")).fetchall() == [(0, 6, True), (1, 6, True)]
    frame = pd.concat(pd.read_parquet(dataset / shard.path) for shard in manifest.splits["train"].shards)
    assert list(frame.columns) == ["image", "label", "id", "group"]
    assert frame.image.iloc[0]["bytes"].startswith(b"\xff\xd8\xff")


# --- the job


def run_job(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        run(ShardConfig, shard_job.main, shard_job.__doc__, list(words))
    return int(end.value.code or 0)


@pytest.mark.ray
def test_the_job_says_what_there_is_now_and_that_nothing_is_new_the_second_time(
    ray_session: None, tmp_path: Path, jpeg_bytes: Jpeg, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--source", str(make_source(tmp_path / "in", jpeg_bytes)), "--dataset", str(tmp_path / "out")]
    assert run_job(*words) == 0
    table = capsys.readouterr().out
    for line in ("classes     2", "test rows   4", "train rows  12", "rejected    none", f"data set    {tmp_path}/out"):
        assert line in table
    assert "16 files" in table
    assert run_job(*words) == 0
    assert "nothing new in the source" in capsys.readouterr().out


def test_the_job_refuses_wrong_use_with_exit_code_2_and_one_line(
    tmp_path: Path, jpeg_bytes: Jpeg, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_source(tmp_path / "in", jpeg_bytes)
    assert run_job("--source", str(source), "--dataset", str(source)) == 2
    assert run_job("--source", str(tmp_path / "nothing"), "--dataset", str(tmp_path / "out")) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in errors] == ["--dataset", "--source"]
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
@pytest.mark.fruits
def test_the_fruits_360_sample_becomes_rows_whole(ray_session: None, tmp_path: Path, fruits_zip: Path) -> None:
    manifest = write(fruits_zip, tmp_path / "out", shard_bytes=64_000_000)
    assert {name: split.num_rows for name, split in manifest.splits.items()} == {"train": 15_409, "test": 5_194}
    assert len(manifest.classes) == 120
    assert manifest.num_rejected_by_cause == {}
    listed = {record.path for record in open_source(str(fruits_zip)).records}
    assert set(all_rows(tmp_path / "out", manifest)) == listed


def test_the_largest_picture_is_the_same_for_every_job() -> None:
    from fruitcnn.classify_config import ClassifyConfig

    limits = {config.model_fields["max_pixels"].default for config in (ShardConfig, ClassifyConfig)}
    assert limits == {images.DEFAULT_MAX_PIXELS}
