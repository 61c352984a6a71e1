"""archives.py promises: members are listed and read in place, whole or refused, and nothing leaves the root."""

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fruitcnn import archives, cache, storage
from fruitcnn.archives import ArchiveError, list_members, read_member, safe_name, seekable

FILES = {f"folder with space/{n}_100.jpg": np.random.default_rng(n).bytes(3_000 + n) for n in range(30)}
FILES["folder with space/zeros.bin"] = bytes(50_000)
FILES["empty.txt"] = b""


def make_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.mkdir("folder with space")
        for name, data in files.items():
            archive.writestr(name, data)
    return str(path)


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> str:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


MAKERS: dict[str, Callable[[Path], str]] = {
    "deflated.zip": lambda path: make_zip(path, FILES),
    "STORED.ZIP": lambda path: make_zip(path, FILES, zipfile.ZIP_STORED),
    "plain.tar": lambda path: make_tar(path, FILES),
    "packed.tar.gz": lambda path: make_tar(path, FILES, "w:gz"),
    "packed.tgz": lambda path: make_tar(path, FILES, "w:gz"),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FRUITCNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", MAKERS)
def test_every_kind_is_listed_and_read_in_place(name: str, tmp_path: Path) -> None:
    assert archives.is_archive(name)
    uri = seekable(MAKERS[name](tmp_path / name))
    members = list(list_members(uri))
    assert {member.name: read_member(uri, member) for member in members} == FILES
    assert {member.name: member.size_bytes for member in members} == {name: len(data) for name, data in FILES.items()}


@pytest.mark.s3
@pytest.mark.parametrize("name", MAKERS)
def test_the_same_on_s3(name: str, tmp_path: Path, s3_prefix: str) -> None:
    uri = storage.join(s3_prefix, name)
    storage.write(uri, Path(MAKERS[name](tmp_path / name)).read_bytes())
    uri = seekable(uri)
    assert {member.name: read_member(uri, member) for member in list_members(uri)} == FILES


@pytest.mark.parametrize("error", [storage.PermissionDeniedError, storage.UnavailableError])
@pytest.mark.parametrize("name", MAKERS)
def test_what_the_store_says_is_not_taken_for_a_damaged_archive(
    name: str, error: type[storage.StorageError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zipfile says "File is not a zip file" of whatever fails: a throttled bucket would cost a good archive."""
    uri = MAKERS[name](tmp_path / name)

    def refuse(uri: str, start: int, length: int) -> bytes:
        raise error(uri, "refused")

    monkeypatch.setattr(storage, "read_range", refuse)
    with pytest.raises(error, match="refused"):
        list(list_members(seekable(uri)))


def test_listing_a_zip_fetches_its_directory_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = {f"{n}.bin": np.random.default_rng(n).bytes(100_000) for n in range(60)}
    uri = make_zip(tmp_path / "big.zip", big)
    fetched: list[int] = []
    read_range = storage.read_range

    def count(uri: str, start: int, length: int) -> bytes:
        data = read_range(uri, start, length)
        fetched.append(len(data))
        return data

    monkeypatch.setattr(storage, "read_range", count)
    members = list(list_members(uri))
    assert len(members) == 60
    assert sum(fetched) < 0.5 * storage.size_bytes(uri)
    fetched.clear()
    assert read_member(uri, members[7]) == big["7.bin"]
    assert len(fetched) == 1
    assert fetched[0] < 101_000


def test_links_and_folders_are_no_members(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("real.jpg", b"x")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"odd{kind!r}")
            info.type, info.linkname = kind, "../../etc/passwd"
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("real.jpg"))
    for name in ("a.zip", "a.tar"):
        assert [member.name for member in list_members(str(tmp_path / name))] == ["real.jpg"]


@pytest.mark.parametrize(
    "name", ["../up.jpg", "a/../../up.jpg", "/etc/up.jpg", "C:/up.jpg", "C:up.jpg", "..\\up.jpg", "\\up.jpg"]
)
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_a_member_that_leaves_the_root_is_refused_by_name(
    name: str, make: Callable[[Path, dict[str, bytes]], str], tmp_path: Path
) -> None:
    uri = make(tmp_path / f"bad.{make.__name__[-3:]}", {"good.jpg": b"x", name: b"x"})
    with pytest.raises(ArchiveError, match="unsafe member name"):
        list(list_members(uri))


@given(st.text(alphabet=st.sampled_from("ab./\\:\0"), max_size=12) | st.text(max_size=20))
def test_a_safe_name_is_relative_and_stays_inside(name: str) -> None:
    try:
        safe = safe_name(name)
    except ArchiveError:
        return
    assert not safe.startswith("/")
    assert not {"..", "."} & set(safe.split("/"))
    assert "\\" not in safe
    assert "\0" not in safe
    assert safe_name(safe) == safe


def test_backslashes_of_old_windows_zips_are_folders() -> None:
    assert safe_name("Training\\Apple 1\\0_100.jpg") == "Training/Apple 1/0_100.jpg"
    assert safe_name("./Training//Apple 1/./0_100.jpg") == "Training/Apple 1/0_100.jpg"


@pytest.mark.parametrize("name", ["deflated.zip", "plain.tar", "packed.tar.gz"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_cut_off_archive_is_refused(name: str, share: float, tmp_path: Path, own_cache: Path) -> None:
    path = tmp_path / name
    MAKERS[name](path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ArchiveError, match="cut off"):
        list(list_members(seekable(str(path))))
    assert not [left for left in own_cache.rglob("*") if left.suffix in (".tar", ".part")]


def test_a_tar_cut_between_two_members_is_noticed_too(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    make_tar(path, {"a.jpg": bytes(512), "b.jpg": bytes(512), "c.jpg": b"x"})
    path.write_bytes(path.read_bytes()[: 2 * 1024])
    with pytest.raises(ArchiveError, match="end mark is missing"):
        list(list_members(str(path)))


@pytest.mark.parametrize("name", ["deflated.zip", "STORED.ZIP"])
def test_a_flipped_byte_in_a_zip_member_is_noticed(name: str, tmp_path: Path) -> None:
    uri = MAKERS[name](tmp_path / name)
    member = list(list_members(uri))[5]
    data = bytearray(Path(uri).read_bytes())
    data[member.offset + 30 + len(member.name) + 1_000] ^= 0xFF
    Path(uri).write_bytes(data)
    with pytest.raises(ArchiveError, match=r"5_100.jpg is damaged"):
        read_member(uri, member)


def test_a_member_larger_than_it_says_is_refused_without_inflating_it(tmp_path: Path) -> None:
    uri = make_zip(tmp_path / "bomb.zip", {"a.jpg": bytes(50_000_000)})
    member = next(list_members(uri))._replace(size_bytes=1_000)
    with pytest.raises(ArchiveError, match="damaged"):
        read_member(uri, member)


def test_other_compression_is_refused_with_the_next_step(tmp_path: Path) -> None:
    uri = make_zip(tmp_path / "a.zip", {"a.jpg": bytes(500)}, zipfile.ZIP_LZMA)
    with pytest.raises(ArchiveError, match=r"compression method 14.*Pack the zip again"):
        read_member(uri, next(list_members(uri)))


def test_a_gzipped_tar_is_inflated_once_and_anew_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    make_tar(path, FILES, "w:gz")
    first = Path(seekable(str(path)))
    stamp = first.stat().st_mtime_ns
    assert Path(seekable(str(path))) == first
    assert first.stat().st_mtime_ns == stamp
    make_tar(path, FILES | {"new.jpg": b"new"}, "w:gz")
    assert "new.jpg" in {member.name for member in list_members(seekable(str(path)))}


def test_a_cache_folder_that_cannot_be_written_is_said_of_the_folder_not_of_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_only: Path
) -> None:
    """As permission denied, every good .tar.gz would be a rejected row."""
    uri = make_tar(tmp_path / "a.tar.gz", FILES, "w:gz")
    monkeypatch.setenv("FRUITCNN_CACHE", str(read_only / "cache"))
    with pytest.raises(storage.StorageError, match=r"read-only file system: .*FRUITCNN_CACHE names another") as caught:
        seekable(uri)
    assert type(caught.value) is storage.StorageError


def test_the_cache_folder_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.folder(str(tmp_path / "given")) == tmp_path / "given"
    assert cache.folder() == tmp_path / "cache"
    monkeypatch.delenv("FRUITCNN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg" / "fruitcnn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.folder() == Path.home() / ".cache" / "fruitcnn"


@pytest.mark.fruits
def test_the_sample_zip_is_listed_whole(fruits_zip: Path) -> None:
    members = list(list_members(str(fruits_zip)))
    assert len(members) == 15_409 + 5_194 + 1
    assert read_member(str(fruits_zip), members[-1])[:2] == b"\xff\xd8"
