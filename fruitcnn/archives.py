"""Reads zip and tar archives in place: lists their members, and fetches one member with one ranged read.

Used by sources.py (labelled archives) and by classify (archives of any size). An archive is never unpacked: a zip is
listed from its central directory, a tar by one pass over its headers, both locally and on S3. Only .tar.gz has no
random access: it is inflated once, sequentially, into the cache folder. A member holds its offset, so any process can
read it without listing the archive again; all functions are stateless and thread-safe.
"""

import gzip
import hashlib
import io
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from filelock import FileLock

from fruitcnn import cache, storage

SPARSE = -3
"""As a member's method: a file with holes, which has no bytes of its own to read in one piece."""

_ZIP_LOCAL_HEADER_BYTES = 30
_EXTRA_SLACK_BYTES = 64  # the local header's extra field may be longer than the central directory's
_READ_AHEAD_BYTES = 1 << 20
_INFLATE_CHUNK_BYTES = 4 << 20
_ENCRYPTED = 0x1
_DRIVE = re.compile(r"^[A-Za-z]:")
_WORTH_A_LOOK = re.compile(r"^$|^.:|^/|/$|//|\\|\.\.|(?:^|/)\.(?:/|$)|\0")  # one cheap pass over ordinary names


class ArchiveError(ValueError):
    """An archive that is cut off, unsafe or of a kind that cannot be read in place; says which and what to do."""


class Member(NamedTuple):
    """One regular file inside an archive: all that is needed to read it."""

    name: str  # '/'-separated, relative, without ".."
    size_bytes: int
    crc32: int | None  # None: the archive (tar) has none
    offset: int  # zip: of the local header; tar: of the data
    stored_bytes: int
    method: int | None  # zip compression method; None: plain bytes at the offset (tar)


def is_archive(uri: str) -> bool:
    """Whether the name ends as an archive that list_members reads (.zip .tar .tar.gz .tgz)."""
    return uri[-8:].lower().endswith((".zip", ".tar", ".tar.gz", ".tgz"))


def seekable(uri: str, cache_dir: str | None = None) -> str:
    """The URI with random access: the archive itself, or for .tar.gz the .tar inflated once into the cache folder."""
    return _inflated(uri, cache_dir) if _is_gzipped(uri) else uri


def list_members(uri: str, *, is_lenient: bool = False) -> Iterator[Member]:
    """Streams the regular files of a seekable .zip or .tar, in archive order.

    Folders, links and devices are passed over; of a name that occurs twice both are yielded (the later one counts when
    an archive is unpacked). Raises ArchiveError: cut off, not an archive, or a name that leaves the archive's root;
    StorageError: cannot be read. is_lenient: for those who read in place only and must account for every file: names
    that leave the root are yielded as they are, and sparse members of a tar too, with the method SPARSE.
    """
    with _RangedFile(uri) as raw, io.BufferedReader(raw, _READ_AHEAD_BYTES) as file:
        try:
            members = _zip_members if uri.lower().endswith(".zip") else _tar_members
            yield from members(file, is_lenient)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError) as error:
            if isinstance(error.__context__, storage.StorageError):  # zipfile takes what cannot be read for no zip
                raise error.__context__ from None
            raise ArchiveError(
                f"{uri} ({raw.size_bytes:,} bytes) is cut off or is not the archive its name says: {error}. "
                f"Copy or download it again"
            ) from error


def read_member(uri: str, member: Member) -> bytes:
    """The bytes of a member of a seekable archive: one ranged read, checked against size and CRC-32.

    Raises ArchiveError (encrypted, unknown compression, damaged) or StorageError.
    """
    if member.method is None:
        data = storage.read_range(uri, member.offset, member.stored_bytes)
    else:
        data = _inflate(uri, member, _zip_payload(uri, member))
    if len(data) != member.size_bytes or (member.crc32 is not None and zlib.crc32(data) != member.crc32):
        raise ArchiveError(f"{uri}!{member.name} is damaged: size or checksum differs from the archive's listing")
    return data


def safe_name(name: str) -> str:
    """A member name made relative and '/'-separated; raises ArchiveError where it would leave the archive's root."""
    if not _WORTH_A_LOOK.search(name):
        return name
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts or name[0] in "/\\" or _DRIVE.match(parts[0]) or ".." in parts or "\0" in name:
        raise ArchiveError(f"unsafe member name {name!r}: it leads out of the archive. Do not use this archive")
    return "/".join(parts)


def _zip_members(file: IO[bytes], is_lenient: bool) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            unix_type = info.external_attr >> 28
            if info.is_dir() or unix_type == 0xA or info.filename.endswith("\\"):  # folder, symbolic link
                continue
            method = info.compress_type if not info.flag_bits & _ENCRYPTED else -1
            name = info.filename if is_lenient else safe_name(info.filename)
            yield Member(name, info.file_size, info.CRC, info.header_offset, info.compress_size, method)


def _tar_members(file: IO[bytes], is_lenient: bool) -> Iterator[Member]:
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while (info := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header: memory would grow
            if info.isreg() and (is_lenient or not info.issparse()):
                name = info.name if is_lenient else safe_name(info.name)
                method = SPARSE if info.issparse() else None
                yield Member(name, info.size, None, info.offset_data, info.size, method)
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            # tarfile takes this for the end; a transfer that broke off between two members looks the same.
            raise tarfile.ReadError("its end mark is missing")


def _zip_payload(uri: str, member: Member) -> bytes:
    guess_bytes = _ZIP_LOCAL_HEADER_BYTES + len(member.name.encode()) + _EXTRA_SLACK_BYTES + member.stored_bytes
    block = storage.read_range(uri, member.offset, guess_bytes)
    if len(block) < _ZIP_LOCAL_HEADER_BYTES or block[:4] != b"PK\3\4":
        raise ArchiveError(f"{uri}!{member.name} is damaged: no local header at byte {member.offset}")
    name_bytes, extra_bytes = (int.from_bytes(block[at : at + 2], "little") for at in (26, 28))
    start = _ZIP_LOCAL_HEADER_BYTES + name_bytes + extra_bytes
    payload = block[start : start + member.stored_bytes]
    if len(payload) < member.stored_bytes:
        payload = storage.read_range(uri, member.offset + start, member.stored_bytes)
    return payload


def _inflate(uri: str, member: Member, payload: bytes) -> bytes:
    if member.method == zipfile.ZIP_STORED:
        return payload
    if member.method != zipfile.ZIP_DEFLATED:
        reason = "is encrypted" if member.method == -1 else f"uses compression method {member.method}"
        raise ArchiveError(f"{uri}!{member.name} {reason}: wanted stored or deflated members. Pack the zip again")
    try:
        # One byte beyond the stated size shows a member that lies about it, without inflating a bomb.
        return zlib.decompressobj(-15).decompress(payload, member.size_bytes + 1)
    except zlib.error as error:
        raise ArchiveError(f"{uri}!{member.name} is damaged: {error}") from error


def _is_gzipped(uri: str) -> bool:
    return uri.lower().endswith((".tar.gz", ".tgz"))


def _inflated(uri: str, cache_dir: str | None) -> str:
    """Path of the inflated copy, named by URI, size and gzip trailer (checksum, length): new archive, new copy."""
    with _RangedFile(uri) as raw:
        if not raw.size_bytes:  # gzip takes this for a whole file
            raise ArchiveError(f"{uri} is cut off: 0 bytes. Copy or download it again")
        trailer = storage.read_range(uri, max(raw.size_bytes - 8, 0), min(raw.size_bytes, 8))
        key = hashlib.sha256(f"{uri}\n{raw.size_bytes}\n{trailer.hex()}".encode()).hexdigest()[:16]
        target = cache.folder(cache_dir) / "inflated" / f"{key}.tar"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{target}.lock"):
                if not target.exists():
                    _inflate_gzip(uri, raw, target)
        except OSError as error:
            if isinstance(error, storage.StorageError):
                raise
            # Never as "permission denied", which would be said of the archive.
            why = f"{(error.strerror or str(error)).lower()}: {uri} cannot be inflated there"
            raise storage.StorageError(str(target.parent), f"{why}; FRUITCNN_CACHE names another folder") from error
    return str(target)


def _inflate_gzip(uri: str, raw: "_RangedFile", target: Path) -> None:
    part = target.with_suffix(".part")
    try:
        with gzip.open(io.BufferedReader(raw, _INFLATE_CHUNK_BYTES)) as source, part.open("wb") as out:
            while chunk := source.read(_INFLATE_CHUNK_BYTES):
                out.write(chunk)
        part.replace(target)  # only a whole copy ever carries the name that is looked for
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ArchiveError(f"{uri} is cut off or not a gzip file: {error}. Copy or download it again") from error
    finally:
        part.unlink(missing_ok=True)


class _RangedFile(io.RawIOBase):
    """A read-only file object over ranged reads of any URI."""

    def __init__(self, uri: str) -> None:
        self._uri, self._position = uri, 0
        self.size_bytes = storage.size_bytes(uri)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length = min(len(buffer), self.size_bytes - self._position)
        if length <= 0:
            return 0
        data = storage.read_range(self._uri, self._position, length)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
