"""inputs.py: what --images may name, and that nothing in it is dropped in silence."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fruitcnn import archives, inputs, parquet, sorting, storage
from fruitcnn.errors import UsageError
from fruitcnn.inputs import UNKNOWN_BYTES, Listing
from fruitcnn.sorting import sort_unique


def fill(folder: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


def ids(listing: Listing) -> list[str]:
    return [item.id.removeprefix(listing.images) for item in listing]


def test_every_regular_file_of_a_folder_is_an_input_whatever_its_name(tmp_path: Path) -> None:
    listing = Listing(fill(tmp_path, {"b/x.jpg": b"12", "a.txt": b"1", "LICENSE": b"", "b/film.mp4": b"123"}))
    assert ids(listing) == ["/LICENSE", "/a.txt", "/b/film.mp4", "/b/x.jpg"]


def test_hidden_and_system_files_are_passed_over_and_counted(tmp_path: Path) -> None:
    files = {".git/config": b"x", "a/.DS_Store": b"x", "Thumbs.db": b"x", "__MACOSX/a.jpg": b"x", "a.jpg": b"x"}
    listing = Listing(fill(tmp_path / ".hidden-root", files))
    assert ids(listing) == ["/a.jpg"]
    assert listing.num_hidden == 4


@pytest.mark.parametrize(
    ("path", "is_hidden"),
    [("/a/b.jpg", False), ("/a/.b.jpg", True), (".git/a", True), ("a/../b", False), ("a/./b", False), ("a/...", True),
     ("a.", False), ("a/..b", True), ("x/__MACOSX/y", True), ("__MACOSXX/y", False), ("aThumbs.db", False),
     ("a/Thumbs.db", True), ("Thumbs.db/a", True), ("..", False), ("a/.", False), ("a\n/.b", True)],
)  # fmt: skip
def test_hidden_is_what_starts_with_a_dot_or_belongs_to_a_system(path: str, is_hidden: bool) -> None:
    assert inputs._is_hidden(path) is is_hidden


def test_a_prefix_lists_the_same_locally_and_on_s3(any_prefix: str) -> None:
    for name in ("b.jpg", "a/1.jpg", "a/.hidden", "c d.png"):
        storage.write(storage.join(any_prefix, name), b"data")
    listing = Listing(any_prefix)
    assert ids(listing) == ["/a/1.jpg", "/b.jpg", "/c d.png"]
    assert listing.num_hidden == 1


def test_one_file_is_one_input(tmp_path: Path) -> None:
    fill(tmp_path, {"a.jpg": b"123", "b.jpg": b"1"})
    assert [(item.id, item.size_bytes) for item in Listing(str(tmp_path / "a.jpg"))] == [(str(tmp_path / "a.jpg"), 3)]


def test_a_folder_without_files_is_not_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got a folder without files, wanted at least one"):
        list(Listing(str(tmp_path)))


def test_nothing_there_is_refused_with_the_uri(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere: nothing is there"):
        list(Listing(str(tmp_path / "nowhere")))


def zip_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tar_bytes(members: dict[str, bytes], mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


MEMBERS = {"z.jpg": b"z" * 500, "a/1.jpg": b"one", ".hidden": b"h"}
MAKERS: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "x.zip": zip_bytes,
    "x.tar": lambda members: tar_bytes(members, "w"),
    "x.tar.gz": lambda members: tar_bytes(members, "w:gz"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_members_of_an_archive_are_inputs_in_its_own_order_and_readable(name: str, tmp_path: Path) -> None:
    uri = str(tmp_path / name)
    storage.write(uri, MAKERS[name](MEMBERS))
    listing = Listing(uri)
    inputs = list(listing)
    assert [item.id for item in inputs] == [f"{uri}!z.jpg", f"{uri}!a/1.jpg"]
    assert [archives.read_member(archives.seekable(uri), item.member) for item in inputs] == [b"z" * 500, b"one"]
    assert listing.num_hidden == 1


def test_archives_among_files_are_read_in_place(tmp_path: Path) -> None:
    listing = Listing(fill(tmp_path, {"b.jpg": b"b", "a.zip": zip_bytes({"m.jpg": b"m"}), "c.zip": b"no zip"}))
    assert ids(listing) == ["/a.zip!m.jpg", "/b.jpg", "/c.zip"]


def test_a_member_name_that_repeats_keeps_ids_unique(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jpg", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.jpg", b"2")
    found = ids(Listing(fill(tmp_path, {"x.zip": buffer.getvalue()})))
    assert len(found) == len(set(found)) == 2


def test_a_text_list_names_inputs_once_each(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# pictures\n/p/b.jpg\n\n  /p/a.jpg \n/p/b.jpg\ns3://pictures/y z.jpg\n")
    listing = Listing(str(tmp_path / "list.txt"))
    assert [(item.id, item.size_bytes) for item in listing] == [
        ("/p/a.jpg", UNKNOWN_BYTES),
        ("/p/b.jpg", UNKNOWN_BYTES),
        ("s3://pictures/y z.jpg", UNKNOWN_BYTES),
    ]
    assert listing.num_repeated == 1


def test_a_list_that_windows_wrote_loses_no_name_to_its_mark(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("/p/b.jpg\r\n/p/ä.jpg\r\n".encode("utf-8-sig"))
    assert [item.id for item in Listing(str(tmp_path / "list.txt"))] == ["/p/b.jpg", "/p/ä.jpg"]
    (tmp_path / "list.txt").write_bytes("/p/b.jpg\r\n".encode("utf-16"))
    with pytest.raises(UsageError, match="got a list in UTF-16, wanted UTF-8"):
        list(Listing(str(tmp_path / "list.txt")))


@pytest.mark.parametrize("column", ["uri", "id", "whatever"])
def test_a_parquet_list_names_inputs(column: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"number": [1, 2], column: ["/p/b.jpg", "/p/a.jpg"]}), tmp_path / "list.parquet")
    assert [item.id for item in Listing(str(tmp_path / "list.parquet"))] == ["/p/a.jpg", "/p/b.jpg"]


def test_a_parquet_list_without_a_column_of_uris_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": ["a"], "y": ["b"]}), tmp_path / "list.parquet")
    with pytest.raises(UsageError, match="got the text columns x, y, wanted one of uri, id"):
        list(Listing(str(tmp_path / "list.parquet")))


def test_split_belongs_to_data_sets(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--split test"):
        Listing(fill(tmp_path, {"a.jpg": b"a"}), split="test")


@settings(max_examples=80)
@given(st.lists(st.tuples(st.text(max_size=4), st.integers(0, 9)), max_size=60), st.integers(1, 5))
def test_sorting_in_runs_equals_sorting_in_memory(items: list[tuple[str, int]], run_names: int) -> None:
    repeated: list[None] = []
    # Small, so that runs of runs are merged and a run is read in several blocks.
    with mock.patch.multiple(sorting, MERGED_RUNS=3, _BATCH_NAMES=2):
        found = list(sort_unique(items, lambda: repeated.append(None), run_names))
    assert [name for name, _ in found] == sorted({name for name, _ in items})
    assert len(found) + len(repeated) == len(items)
    assert set(found) <= set(items)


def test_row_groups_of_shards_are_what_the_plan_counts_on() -> None:
    assert parquet.ROW_GROUP_ROWS == 256
