"""classify.py: the same predictions however often, by however many and after whatever; and who is refused."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny_bundle import write_bundle

from fruitcnn import books, images, parquet, parts, predictions, storage
from fruitcnn.books import ClassifyError
from fruitcnn.classify import classify, dry_run, prepare
from fruitcnn.classify_config import ClassifyConfig
from fruitcnn.errors import UsageError
from fruitcnn.execute import share_out
from fruitcnn.manifest import Manifest, Split, StoredFile

NUM_PICTURES = 40


@contextmanager
def no_progress(title: str, total: int | None, unit: str, already: int = 0) -> Iterator[Callable[..., None]]:
    yield lambda done, note="": None


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_bundle(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory, jpeg_bytes: Callable[..., bytes]) -> str:
    """Forty pictures, three files that are none, one hidden file."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(NUM_PICTURES):
        (folder / f"{number:02d}.jpg").write_bytes(jpeg_bytes(number, 40 + number, 30))
    (folder / "cut.jpg").write_bytes(jpeg_bytes(0)[:400])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "note.txt").write_bytes(b"a note about the pictures")
    (folder / ".hidden").write_bytes(b"x")
    return str(folder)


@pytest.fixture
def config(model: str, pictures: str, tmp_path: Path) -> ClassifyConfig:
    return ClassifyConfig(model=model, images=pictures, predictions=str(tmp_path / "out"), part_images=8, batch_size=4)


def with_(config: ClassifyConfig, **changes: object) -> ClassifyConfig:
    return ClassifyConfig.model_validate(config.model_dump() | changes)


def part_hashes(predictions_uri: str) -> dict[str, str]:
    """Name -> sha256 of every part and plan file: what must not differ between runs."""
    files = [*storage.list_files(f"{predictions_uri}/parts"), *storage.list_files(f"{predictions_uri}/plan")]
    return {
        entry.uri.removeprefix(predictions_uri): hashlib.sha256(storage.read(entry.uri)).hexdigest() for entry in files
    }


def rows_by_id(predictions_uri: str) -> dict[str, dict[str, object]]:
    rows = [row for path in sorted(Path(predictions_uri, "parts").iterdir()) for row in pq.read_table(path).to_pylist()]
    found = {str(row["id"]): row for row in rows}
    assert len(found) == len(rows), "an id occurs twice"
    return found


# --- without Ray


def test_every_flag_has_a_description_and_the_defaults_agree_with_their_owners() -> None:
    fields = ClassifyConfig.model_fields
    assert all(field.description for field in fields.values())
    assert fields["max_pixels"].default == images.DEFAULT_MAX_PIXELS
    assert fields["part_images"].default % parquet.ROW_GROUP_ROWS == 0
    assert fields["batch_size"].default % parquet.ROW_GROUP_ROWS == 0


@pytest.mark.parametrize(("value", "limit"), [("25", 25), ("0", 0), ("50%", 500), ("0.1%", 1), ("100%", 1000)])
def test_max_rejected_is_a_number_or_a_share(value: str, limit: float, config: ClassifyConfig) -> None:
    assert with_(config, max_rejected=value).rejected_limit(1000) == limit


def test_a_share_of_rejected_inputs_is_exact(config: ClassifyConfig) -> None:
    """0.29 * 100 is less than 29: a job with just what is allowed would fail."""
    assert all(with_(config, max_rejected=f"{share}%").rejected_limit(100) == share for share in range(101))


def test_bf16_goes_with_openvino_and_is_a_run_of_its_own(config: ClassifyConfig) -> None:
    with pytest.raises(ValueError, match="wanted --runtime openvino or auto"):
        with_(config, precision="bf16", runtime="onnxruntime")
    assert config.row_settings("openvino") != config.row_settings("openvino-bf16")


@pytest.mark.parametrize("value", ["", "many", "-1", "101%", "1.5", "%"])
def test_max_rejected_refuses_anything_else(value: str, config: ClassifyConfig) -> None:
    with pytest.raises(ValueError, match="wanted a number of inputs, as in 25, or a share"):
        with_(config, max_rejected=value)


@pytest.mark.parametrize(
    ("node_cpus", "num_actors", "num_parts", "shared"),
    [
        ([2], None, 100, (2, 1)),
        ([2], 1, 100, (1, 2)),
        ([2], 2, 100, (2, 1)),
        ([2], 9, 100, (2, 1)),
        ([16], None, 100, (16, 1)),
        ([16], 4, 100, (4, 4)),
        ([16], None, 1, (1, 16)),
        ([2, 2], None, 100, (4, 1)),
        ([0, 8, 4], None, 100, (12, 1)),
        ([0, 8, 4], 3, 100, (3, 4)),
        ([], None, 1, (1, 1)),
    ],
)
def test_actors_share_the_nodes_and_all_find_room(
    node_cpus: list[int], num_actors: int | None, num_parts: int, shared: tuple[int, int]
) -> None:
    assert share_out(node_cpus, num_actors, num_parts) == shared


def test_a_dry_run_says_what_there_is_and_writes_nothing(config: ClassifyConfig) -> None:
    said = dry_run(config)
    listed = {"kind": "files", "inputs": 43, "parts": 6, "hidden files": 1, "listed again": 0}
    assert {name: said[name] for name in listed} == listed
    assert said["tried"].startswith("43\N{NO-BREAK SPACE}inputs, ")
    assert {"predicted time", "predicted memory", "bottleneck"} <= said.keys()
    assert storage.is_empty(config.predictions)


def test_a_model_that_is_none_is_refused_before_anything_is_written(config: ClassifyConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--model .*there is no frozen model; run .*jobs\.freeze"):
        prepare(with_(config, model=str(tmp_path / "none")))
    assert storage.is_empty(config.predictions)


def test_a_foreign_folder_is_refused(config: ClassifyConfig) -> None:
    storage.write(f"{config.predictions}/thesis.doc", b"precious")
    with pytest.raises(UsageError, match=r"holds thesis\.doc and no plan\.json"):
        prepare(config)


@pytest.mark.parametrize("change", [{"top_k": 2}, {"batch_size": 8}, {"min_confidence": 0.5}, {"probabilities": True}])
def test_a_folder_of_another_run_is_refused(change: dict[str, object], config: ClassifyConfig) -> None:
    prepare(config)
    with pytest.raises(
        UsageError, match=rf"(?s)belongs to another run.*{next(iter(change)).replace('_', ' ')}: that run"
    ):
        prepare(with_(config, **change))


def test_a_folder_of_another_model_is_refused(config: ClassifyConfig, tmp_path: Path) -> None:
    prepare(config)
    with pytest.raises(UsageError, match="model hash: that run has"):
        prepare(with_(config, model=write_bundle(tmp_path / "other", sharpness=0.1)))


def test_what_changes_no_row_may_change_between_attempts(config: ClassifyConfig) -> None:
    first = prepare(config)
    assert prepare(with_(config, num_actors=3, max_rejected="5")).plan == first.plan


@pytest.mark.fault
def test_attempts_rise_and_an_older_one_gives_way(any_prefix: str) -> None:
    first = predictions.claim_attempt(any_prefix)
    predictions.require_newest(any_prefix, first)
    second = predictions.claim_attempt(any_prefix)
    assert (first, second) == (1, 2)
    predictions.require_newest(any_prefix, second)
    with pytest.raises(ClassifyError, match=r"attempt 1 .* stops: attempt 2 was started meanwhile"):
        predictions.require_newest(any_prefix, first)


@pytest.mark.fault
def test_many_starts_at_once_get_different_numbers(any_prefix: str) -> None:
    numbers: list[int] = []
    threads = [threading.Thread(target=lambda: numbers.append(predictions.claim_attempt(any_prefix))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == [1, 2, 3, 4]


# --- with Ray


@pytest.mark.ray
def test_every_input_gets_its_row_and_the_books_balance(
    config: ClassifyConfig, pictures: str, ray_session: None
) -> None:
    manifest = classify(config, no_progress)
    counted = manifest.books
    assert (counted.num_listed, counted.num_ok, counted.num_unsure, counted.num_rejected) == (43, 40, 0, 3)
    assert counted.rejected_by_cause == {"empty": 1, "not-an-image": 1, "truncated": 1}
    assert sum(counted.ok_by_label.values()) == 40
    assert (manifest.num_hidden, manifest.timing.attempt) == (1, 1)
    rows = rows_by_id(config.predictions)
    assert set(rows) == {f"{pictures}/{path.name}" for path in Path(pictures).iterdir() if path.name != ".hidden"}
    assert rows[f"{pictures}/05.jpg"]["width"] == 45
    assert {part.path: part.sha256 for part in manifest.parts} == {
        name[1:]: digest for name, digest in part_hashes(config.predictions).items() if name.startswith("/parts")
    }


@pytest.mark.ray
def test_a_finished_run_changes_nothing_and_gives_its_books(config: ClassifyConfig, ray_session: None) -> None:
    first = classify(config, no_progress)
    before = {path: path.stat().st_mtime_ns for path in Path(config.predictions).rglob("*")}
    assert classify(config, no_progress) == first
    assert {path: path.stat().st_mtime_ns for path in Path(config.predictions).rglob("*")} == before


@pytest.mark.ray
def test_one_actor_and_two_write_the_same_bytes(config: ClassifyConfig, tmp_path: Path, ray_session: None) -> None:
    other = with_(config, predictions=str(tmp_path / "two"), num_actors=2)
    one, two = classify(with_(config, num_actors=1), no_progress), classify(other, no_progress)
    assert one.books == two.books
    assert part_hashes(config.predictions) == part_hashes(other.predictions)


@pytest.mark.ray
@pytest.mark.s3
def test_s3_gives_the_predictions_of_the_folder(
    config: ClassifyConfig, pictures: str, s3_prefix: str, ray_session: None
) -> None:
    storage.upload_directory(pictures, f"{s3_prefix}/in")
    classify(config, no_progress)
    far = with_(config, images=f"{s3_prefix}/in", predictions=f"{s3_prefix}/out")
    manifest = classify(far, no_progress)
    near_rows = rows_by_id(config.predictions)
    storage.download_directory(f"{s3_prefix}/out", f"{config.predictions}-far")
    far_rows = rows_by_id(f"{config.predictions}-far")
    assert manifest.books.num_listed == len(near_rows)
    for name, row in near_rows.items():
        assert far_rows[name.replace(pictures, f"{s3_prefix}/in")] | {"id": ""} == row | {"id": ""}


@pytest.mark.ray
def test_the_test_split_of_a_data_set_is_classified_from_its_shards(
    config: ClassifyConfig, tmp_path: Path, jpeg_bytes: Callable[..., bytes], ray_session: None
) -> None:
    dataset = str(tmp_path / "dataset")
    write_dataset(dataset, {"test": [jpeg_bytes(n) for n in range(20)], "train": [jpeg_bytes(99)]})
    manifest = classify(with_(config, images=dataset, split="test"), no_progress)
    assert manifest.books.num_ok == 20
    assert set(rows_by_id(config.predictions)) == {f"{dataset}/shards/test-00000.parquet!{n}.jpg" for n in range(20)}


def write_dataset(uri: str, splits: dict[str, list[bytes]]) -> None:
    """A data set of one class and one shard a split, as shards.py writes it."""
    books_of_splits = {}
    for name, pictures in splits.items():
        rows = [
            parquet.Row(data, f"{n}.jpg", 0, hashlib.sha256(data).hexdigest(), "g") for n, data in enumerate(pictures)
        ]
        data = parquet.encode(rows, ["Kiwi"])
        path = f"shards/{name}-00000.parquet"
        storage.write(f"{uri}/{path}", data)
        stored = StoredFile(path=path, num_rows=len(rows), num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        books_of_splits[name] = Split(shards=(stored,))
    manifest = Manifest.model_validate(
        {
            "version": 1, "classes": ["Kiwi"], "splits": books_of_splits, "num_rejected_by_cause": {}, "source": "s",
            "source_fingerprint": "f", "listings": [], "config": {"max_pixels": 10**6}, "library_version": "0",
            "created_at": "2026-11-24T00:00:00Z",
        }
    )  # fmt: skip
    storage.write(f"{uri}/manifest.json", manifest.to_bytes())


@pytest.mark.ray
def test_too_many_rejected_fails_after_everything_is_written(config: ClassifyConfig, ray_session: None) -> None:
    with pytest.raises(ClassifyError, match=r"--max-rejected 2: 3 of 43 inputs rejected .* are complete"):
        classify(with_(config, max_rejected="2"), no_progress)
    assert classify(with_(config, max_rejected="3"), no_progress).books.num_rejected == 3


@pytest.mark.ray
def test_a_manifest_that_cannot_be_read_says_what_to_do(config: ClassifyConfig, ray_session: None) -> None:
    classify(config, no_progress)
    manifest = Path(config.predictions, "manifest.json")
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:100])
    with pytest.raises(ClassifyError, match=r"manifest\.json is no manifest of this version: delete it, and the same"):
        classify(config, no_progress)
    manifest.unlink()
    assert classify(config, no_progress).parts == books.RunManifest.model_validate_json(whole).parts


@pytest.mark.ray
@pytest.mark.fault
def test_lost_parts_are_made_again_and_others_left_alone(
    config: ClassifyConfig, tmp_path: Path, ray_session: None
) -> None:
    classify(config, no_progress)
    whole = part_hashes(config.predictions)
    Path(config.predictions, "manifest.json").unlink()
    lost = [Path(config.predictions, books.part_path(part)) for part in (0, 3)]
    for path in lost:
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in Path(config.predictions, "parts").iterdir()}
    manifest = classify(config, no_progress)
    assert part_hashes(config.predictions) == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (manifest.timing.attempt, manifest.timing.num_inputs) == (2, 16)


@pytest.mark.ray
@pytest.mark.fault
def test_a_part_of_another_run_is_noticed(config: ClassifyConfig, ray_session: None) -> None:
    classify(config, no_progress)
    Path(config.predictions, "manifest.json").unlink()
    first, second = (Path(config.predictions, books.part_path(part)) for part in (0, 1))
    second.write_bytes(first.read_bytes())
    with pytest.raises(parts.PartError, match=r"parts/part-00001\.parquet: got .* delete the file"):
        classify(config, no_progress)


# --- killed


def start(config: ClassifyConfig) -> subprocess.Popen[bytes]:
    """The job as a process of its own session, so that it can be killed whole: driver, Ray and actors."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in config.model_dump(exclude_defaults=True).items()]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.classify", *flags],
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment,
    )  # fmt: skip


def kill(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.ray
@pytest.mark.fault
@pytest.mark.timeout(240)
def test_a_job_killed_in_the_middle_and_started_again_ends_as_if_undisturbed(
    config: ClassifyConfig, model: str, jpeg_bytes: Callable[..., bytes], tmp_path: Path, ray_session: None
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(600):
        (folder / f"{number:04d}.jpg").write_bytes(jpeg_bytes(number % 50, 400, 300))
    job = with_(config, images=str(folder), part_images=4, num_actors=1)
    undisturbed = with_(job, predictions=str(tmp_path / "undisturbed"))
    classify(undisturbed, no_progress)

    process = start(job)
    try:
        wait_for(lambda: len(list(Path(job.predictions).glob("parts/*.parquet"))) >= 3, process)
    finally:
        kill(process)
    num_done = len(list(Path(job.predictions).glob("parts/*.parquet")))
    assert 3 <= num_done < 150, "the job was to be killed in the middle"
    manifest = classify(job, no_progress)
    assert manifest.timing.attempt == 2
    assert manifest.timing.num_inputs < 600
    assert part_hashes(job.predictions) == part_hashes(undisturbed.predictions)


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not happened():
        assert process.poll() is None, f"the job ended too early: {process.stderr.read() if process.stderr else b''!r}"
        time.sleep(0.02)
