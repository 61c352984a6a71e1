"""actor.py, infer.py and fetch.py: one part from inputs to committed rows, with a small stand-in for the model."""

import hashlib
import threading
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fruitcnn import actor, fetch, images, infer, orders, parquet, storage
from fruitcnn.familiar import NO_LIMITS, Answers
from fruitcnn.inputs import Input, Listing
from fruitcnn.parquet import Row
from fruitcnn.parts import Rows
from fruitcnn.plan import write_plan

Pixels = npt.NDArray[np.uint8]


class BrightestChannel:
    """A model that anyone can check: the probabilities are the shares of red, green and blue."""

    labels = ("red", "green", "blue")
    input_px = (8, 8)

    def __init__(self, rows_per_call: int | None = None) -> None:
        self.rows_per_call = rows_per_call
        self.batches: list[Pixels] = []

    limits = NO_LIMITS

    def answer(self, pixels: Pixels) -> Answers:
        self.batches.append(pixels.copy())
        sums = pixels.sum((1, 2), dtype=np.float32) + 1
        return Answers(sums / sums.sum(1, keepdims=True), sums.sum(1))


def options(batch_size: int = 4, num_threads: int = 2, probabilities: bool = False) -> orders.Options:
    return orders.Options(
        batch_size=batch_size, top_k=2, probabilities=probabilities, min_confidence=0, max_pixels=10**6,
        num_threads=num_threads,
    )  # fmt: skip


def classify_part(inputs: Sequence[Input], model: BrightestChannel, chosen: orders.Options | None = None) -> Rows:
    return infer.Workers([model], chosen or options()).rows(inputs)


def classifier(predictions: str, images_uri: str, part_images: int = 4) -> actor.PartClassifier:
    plan = write_plan(predictions, Listing(images_uri), "model", {}, part_images, 10**9)
    return actor.PartClassifier(predictions, plan, [BrightestChannel()], options())


def rows_of(predictions: str, part: int = 0) -> list[dict[str, object]]:
    return pq.read_table(pa.BufferReader(storage.read(f"{predictions}/parts/part-{part:05d}.parquet"))).to_pylist()


@pytest.fixture
def folder(tmp_path: Path, jpeg_bytes: Callable[..., bytes]) -> str:
    """Nine pictures, and a file that is none in the middle."""
    (tmp_path / "in").mkdir()
    for number in range(9):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(jpeg_bytes(number, 20 + number, 30))
    (tmp_path / "in" / "4-note.txt").write_bytes(b"not a picture")
    return str(tmp_path / "in")


def test_a_row_says_what_the_model_said_of_those_bytes(folder: str) -> None:
    inputs = list(Listing(folder))
    rows = classify_part(inputs, BrightestChannel(), options(probabilities=True))
    for number, item in enumerate(inputs):
        data = Path(item.name).read_bytes()
        assert rows.ids[number] == item.name
        assert rows.sha256[number] == hashlib.sha256(data).hexdigest()
        if item.name.endswith(".txt"):
            assert (rows.causes[number], rows.widths[number]) == ("not-an-image", None)
            continue
        decoded = images.decode(data, (8, 8))
        (wanted,), (score,) = BrightestChannel().answer(decoded.pixels[None])
        assert rows.probabilities is not None
        assert np.array_equal(rows.probabilities[number], wanted)
        assert rows.unlike[number] == score
        assert rows.top_indices[number, 0] == wanted.argmax()
        assert (rows.widths[number], rows.heights[number]) == (decoded.width_px, decoded.height_px)


@given(num_threads=st.integers(1, 4), batch_size=st.sampled_from([1, 3, 64]))
def test_threads_and_batches_change_nothing(num_threads: int, batch_size: int) -> None:
    inputs = [Input("", f"/nowhere/{n}.jpg", 0, n, 0, None, None) for n in range(10)]
    rows = classify_part(inputs, BrightestChannel(), options(batch_size, num_threads))
    assert rows.ids == [item.name for item in inputs]
    assert set(rows.causes) == {"not-found"}


def test_the_model_sees_the_same_batches_whoever_is_slow(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = list(Listing(folder))
    quick, slow = BrightestChannel(), BrightestChannel()
    classify_part(inputs, quick)
    pause = threading.Event()
    real = images.decode
    monkeypatch.setattr(images, "decode", lambda *args: (pause.wait(0.002 * len(args[0]) % 7 / 1000), real(*args))[1])
    classify_part(inputs, slow, options(num_threads=4))
    assert len(quick.batches) == len(slow.batches) == 3
    one, other = (sorted(batch.tobytes() for batch in model.batches) for model in (quick, slow))
    assert one == other


def test_equal_files_of_a_batch_are_inferred_once_and_all_have_their_row(
    tmp_path: Path, jpeg_bytes: Callable[..., bytes]
) -> None:
    contents = [jpeg_bytes(1), b"no picture", jpeg_bytes(1), jpeg_bytes(2), b"no picture", jpeg_bytes(1)]
    for number, data in enumerate(contents):
        (tmp_path / f"{number}.jpg").write_bytes(data)
    model = BrightestChannel()
    rows = classify_part(list(Listing(str(tmp_path))), model, options(batch_size=6, probabilities=True))
    assert [len(batch) for batch in model.batches] == [2]
    assert rows.ids == [f"{tmp_path}/{number}.jpg" for number in range(6)]
    assert rows.causes == [None, "not-an-image", None, None, "not-an-image", None]
    assert rows.sha256 == [hashlib.sha256(data).hexdigest() for data in contents]
    assert rows.probabilities is not None
    for number in (0, 2, 5, 3):
        (wanted,), _ = BrightestChannel().answer(images.decode(contents[number], (8, 8)).pixels[None])
        assert np.array_equal(rows.probabilities[number], wanted)


def repeated(folder: Path, jpeg_bytes: Callable[..., bytes], num: int) -> list[Input]:
    """Of three files, one no picture, so many copies one after the other."""
    for number in range(num):
        data = b"no picture" if number % 3 == 1 else jpeg_bytes(number % 3)
        (folder / f"{number:02d}.jpg").write_bytes(data)
    return list(Listing(str(folder)))


def test_what_repeats_in_later_parts_is_neither_decoded_nor_inferred(
    tmp_path: Path, jpeg_bytes: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, model, decoded = repeated(tmp_path, jpeg_bytes, 24), BrightestChannel(rows_per_call=4), []
    monkeypatch.setattr(infer.remembered, "is_steady", lambda *_: True)
    real = images.decode
    monkeypatch.setattr(images, "decode", lambda data, *rest: (decoded.append(data), real(data, *rest))[1])
    workers = infer.Workers([model], options(batch_size=6, num_threads=1, probabilities=True))
    parts = [workers.rows(inputs[:12]), workers.rows(inputs[12:])]
    assert [len(batch) for batch in model.batches] == [2]
    assert len(decoded) == 3
    assert workers.meter.take().num_repeats == 21
    for number, item in enumerate(inputs):
        rows, row = parts[number // 12], number % 12
        assert rows.ids[row] == item.name
        assert rows.causes[row] == ("not-an-image" if number % 3 == 1 else None)
        assert rows.probabilities is not None
        if number % 3 != 1:
            (wanted,), (unlike,) = BrightestChannel().answer(real(jpeg_bytes(number % 3), (8, 8)).pixels[None])
            assert np.array_equal(rows.probabilities[row], wanted)
            assert rows.unlike[row] == unlike


@pytest.mark.parametrize("rows_per_call", [None, 4])
def test_answers_that_are_not_steady_are_asked_for_anew_but_what_is_no_picture_is_remembered(
    rows_per_call: int | None, tmp_path: Path, jpeg_bytes: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infer.remembered, "is_steady", lambda *_: False)
    inputs, model = repeated(tmp_path, jpeg_bytes, 12), BrightestChannel(rows_per_call)
    workers = infer.Workers([model], options(batch_size=6, num_threads=1))
    workers.rows(inputs)
    assert [len(batch) for batch in model.batches] == [2, 2]
    assert workers.meter.take().num_repeats == 7


@given(st.lists(st.integers(-1, 2 * fetch.BATCH_BYTES), max_size=60), st.integers(1, 20))
def test_batches_cover_a_part_once_and_close_where_they_are_full(sizes: list[int], batch_size: int) -> None:
    inputs = [Input("", f"{number}", 0, size, 0, None, None) for number, size in enumerate(sizes)]
    cuts = list(fetch.cut_batches(inputs, batch_size))
    assert [index for start, stop in cuts for index in range(start, stop)] == list(range(len(inputs)))
    for start, stop in cuts:
        assert 1 <= stop - start <= batch_size
        assert sum(max(0, size) for size in sizes[start : stop - 1]) < fetch.BATCH_BYTES


def test_a_part_is_committed_once_and_the_loser_reports_the_winners_file(folder: str, any_prefix: str) -> None:
    first, second = classifier(any_prefix, folder), classifier(any_prefix, folder)
    won, lost = first.run(1), second.run(1)
    assert won.books == lost.books
    assert won.books is not None
    assert won.books.num_rows == 4
    names = [str(row["id"]).removeprefix(f"{folder}/") for row in rows_of(any_prefix, 1)]
    assert names == ["4-note.txt", "4.jpg", "5.jpg", "6.jpg"]


def test_two_runs_write_the_same_bytes(folder: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        classifier(str(tmp_path / name), folder).run(0)
    one, other = ((tmp_path / name / "parts" / "part-00000.parquet").read_bytes() for name in ("a", "b"))
    assert one == other


def test_one_two_or_four_actors_write_the_same_bytes(folder: str, tmp_path: Path) -> None:
    written = []
    for num_actors in (1, 2, 4):
        out = tmp_path / str(num_actors)
        actors = [classifier(str(out), folder, part_images=2) for _ in range(num_actors)]
        with ThreadPoolExecutor(num_actors) as pool:
            assert all(pool.map(lambda part, actors=actors: actors[part % len(actors)].run(part).books, range(5)))
        written.append([path.read_bytes() for path in sorted((out / "parts").iterdir())])
    assert written[0] == written[1] == written[2]
    assert len(written[0]) == 5


def test_what_vanished_since_the_plan_is_a_row(folder: str, tmp_path: Path) -> None:
    actor = classifier(str(tmp_path / "out"), folder)
    Path(folder, "2.jpg").unlink()
    outcome = actor.run(0)
    assert outcome.books is not None
    assert outcome.books.rejected_by_cause == {"not-found": 1}
    assert [row["status"] for row in rows_of(str(tmp_path / "out"))] == ["ok", "ok", "rejected", "ok"]


@pytest.mark.fault
def test_a_store_that_stays_away_fails_the_part_and_writes_nothing(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = classifier(str(tmp_path / "out"), folder)
    tries: list[str] = []

    def unavailable(uri: str) -> bytes:
        tries.append(uri)
        raise storage.UnavailableError(uri, "cannot reach the store")

    monkeypatch.setattr(fetch.storage, "read", unavailable)
    monkeypatch.setattr(fetch, "_is_of_this_object", lambda uri, error: False)
    monkeypatch.setattr("fruitcnn.actor.RETRY_SECONDS", (0.0, 0.0))
    outcome = actor.run(0)
    assert outcome.books is None
    assert "part 0 failed 3 times" in str(outcome.error)
    assert "cannot reach the store" in str(outcome.error)
    assert storage.is_empty(str(tmp_path / "out" / "parts"))


@pytest.mark.fault
def test_a_store_that_comes_back_costs_an_attempt(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = classifier(str(tmp_path / "out"), folder)
    real, failures = storage.read, iter([True])

    def once_unavailable(uri: str) -> bytes:
        if next(failures, False):
            raise storage.UnavailableError(uri, "busy")
        return real(uri)

    monkeypatch.setattr(fetch.storage, "read", once_unavailable)
    monkeypatch.setattr(fetch, "_is_of_this_object", lambda uri, error: False)
    monkeypatch.setattr("fruitcnn.actor.RETRY_SECONDS", (0.0, 0.0))
    books = actor.run(0).books
    assert books is not None
    assert books.num_ok == 4


@pytest.mark.fault
@pytest.mark.parametrize("is_witness_readable", [True, False])
def test_refusals_are_rows_only_while_something_else_can_be_read(
    is_witness_readable: bool, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = classifier(str(tmp_path / "out"), folder)
    actor.options = actor.options.model_copy(update={"witness": "s3://pictures/witness.jpg"})

    def refuse(uri: str, *_: int) -> bytes:
        if uri.endswith("witness.jpg") and is_witness_readable:
            return b"x"
        raise storage.PermissionDeniedError(uri, "refused (AccessDenied)")

    monkeypatch.setattr(fetch.storage, "read", refuse)
    monkeypatch.setattr(storage, "read_range", refuse)
    monkeypatch.setattr("fruitcnn.actor.RETRY_SECONDS", (0.0, 0.0))
    outcome = actor.run(0)
    if is_witness_readable:
        assert outcome.books is not None
        assert outcome.books.rejected_by_cause == {"access-denied": 4}
    else:
        assert "witness.jpg: refused" in str(outcome.error)


@pytest.mark.s3
def test_a_witness_is_an_object_that_can_be_read(s3_prefix: str) -> None:
    storage.write(f"{s3_prefix}/there.jpg", b"x")
    inputs = [Input("", f"{s3_prefix}/{name}", 0, 1, 0, None, None) for name in ("gone.jpg", "there.jpg")]
    assert fetch.find_witness(inputs) == f"{s3_prefix}/there.jpg"
    assert fetch.find_witness(inputs[:1]) is None
    assert fetch.find_witness([Input("", "/a.jpg", 0, 1, 0, None, None)]) is None


@pytest.mark.fault
def test_credentials_that_read_nothing_fail_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str, *_: int) -> bytes:
        raise storage.PermissionDeniedError(uri, "refused (AccessDenied)")

    monkeypatch.setattr(storage, "read_range", refuse)
    with pytest.raises(storage.PermissionDeniedError, match=r"s3://pictures/1\.jpg"):
        fetch.find_witness([Input("", "s3://pictures/1.jpg", 0, 1, 0, None, None)])


def test_a_local_file_that_cannot_be_read_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "folder.jpg").mkdir()
    inputs = [Input("", str(tmp_path / name), 0, 1, 0, None, None) for name in ("loop.jpg", "folder.jpg")]
    assert classify_part(inputs, BrightestChannel()).causes == ["unreadable", "unreadable"]


def test_a_huge_file_is_rejected_unread(tmp_path: Path) -> None:
    with (tmp_path / "film.jpg").open("wb") as file:
        file.truncate(fetch.MAX_INPUT_BYTES + 1)
    rows = classify_part(list(Listing(str(tmp_path))), BrightestChannel())
    assert rows.causes == ["too-large"]
    assert rows.sha256 == [None]


def test_members_of_a_zip_their_damage_and_their_encryption_are_rows(
    tmp_path: Path, jpeg_bytes: Callable[..., bytes]
) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number, name in enumerate(("good.jpg", "damaged.jpg", "secret.jpg")):
            archive.writestr(name, jpeg_bytes(number))
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        offsets = {info.filename: info.header_offset for info in archive.infolist()}
    raw[offsets["damaged.jpg"] + 200] ^= 0xFF
    central = raw.rfind(b"PK\x01\x02")
    raw[central + 8] |= 1  # the flag "encrypted" of the last member
    path.write_bytes(raw)
    rows = classify_part(list(Listing(str(path))), BrightestChannel())
    assert rows.ids == [f"{path}!{name}" for name in ("good.jpg", "damaged.jpg", "secret.jpg")]
    assert rows.causes == [None, "corrupt", "encrypted"]


def test_an_archive_that_cannot_be_listed_is_a_row_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 and then nothing")
    rows = classify_part(list(Listing(str(tmp_path))), BrightestChannel())
    assert rows.causes == ["unreadable"]
    assert "cut off or is not the archive" in str(rows.details[0])


def test_what_a_list_names_in_vain_was_never_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "list.txt").write_text(f"{tmp_path}/gone.jpg\n{tmp_path}/folder\n")
    rows = classify_part(list(Listing(str(tmp_path / "list.txt"))), BrightestChannel())
    assert rows.causes == ["not-found"] * 2
    assert all("no such file; a list names files" in str(detail) for detail in rows.details)


def test_an_archive_that_may_not_be_read_is_a_row_that_says_so_until_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "locked.zip", "w") as archive:
        archive.writestr("a.jpg", b"")
    real = storage.read_range

    def refuse(uri: str, *args: int) -> bytes:
        raise storage.PermissionDeniedError(uri, "refused")

    monkeypatch.setattr(storage, "read_range", refuse)
    inputs = list(Listing(str(tmp_path)))
    assert classify_part(inputs, BrightestChannel()).causes == ["access-denied"]
    monkeypatch.setattr(storage, "read_range", real)
    rows = classify_part(inputs, BrightestChannel())
    assert rows.causes == ["unreadable"]
    assert "a run of its own" in str(rows.details[0])


def test_rows_of_shards_are_read_by_position(tmp_path: Path, jpeg_bytes: Callable[..., bytes]) -> None:
    pictures = [jpeg_bytes(number % 5) for number in range(600)]
    digests = [hashlib.sha256(data).hexdigest() for data in pictures]
    rows = [Row(pictures[n], f"Test/Kiwi/{n}.jpg", 0, digests[n], "g") for n in range(600)]
    shard = str(tmp_path / "shards" / "test-00000.parquet")
    storage.write(shard, parquet.encode(rows, ["Kiwi"]))
    inputs = [Input(shard, "", row, 1, 0, None, None) for row in range(100, 600)]
    found = classify_part(inputs, BrightestChannel(), options(batch_size=64))
    assert found.ids == [f"{shard}!Test/Kiwi/{n}.jpg" for n in range(100, 600)]
    assert found.sha256 == digests[100:]
    assert set(found.causes) == {None}


@given(st.lists(st.tuples(st.sampled_from(["", "a.zip", "s"]), st.integers(0, 2**24)), max_size=80), st.integers(0, 10))
def test_chunks_cover_the_range_once_and_never_mix_containers(kinds: list[tuple[str, int]], first: int) -> None:
    inputs = [
        Input(container, "" if container == "s" else f"{row}", row, size, 0, None, None)
        for row, (container, size) in enumerate(kinds)
    ]
    cuts = list(fetch.chunks(inputs, first, len(inputs)))
    assert [index for start, stop in cuts for index in range(start, stop)] == list(range(first, len(inputs)))
    assert all(len({item.container for item in inputs[start:stop]}) == 1 for start, stop in cuts)


def test_an_outcome_survives_its_way_through_ray() -> None:
    outcome = orders.Outcome(part=3, error="gone")
    assert orders.Outcome.model_validate_json(outcome.model_dump_json()) == outcome
