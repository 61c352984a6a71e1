"""Where labelled pictures come from: folder, zip, tar, s3 prefix, Kaggle data set or drawn fruit -> one Source.

The first step of the flow; shards.py takes its records and reads them. Opening a source lists it and reads no picture.
Archives are read in place (archives.py); which folders hold what, layout.py decides; downloads are kaggle_source.py's.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from fruitcnn import archives, kaggle_source, storage, synthetic
from fruitcnn.layout import (
    Listed,
    Record,
    SourceError,
    check_classes,
    find_root,
    group_of,
    is_hidden,
    plain_records,
    split_records,
)

__all__ = ["Record", "Source", "SourceError", "open_source"]

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):")
_SYNTHETIC = re.compile(r"^synthetic(?::(\d+)x(\d+))?$")
_WANTED = "a folder, .zip, .tar, .tar.gz, s3://bucket/prefix, kaggle:OWNER/NAME or synthetic[:CLASSESxFRAMES]"
_OURS = {
    "shards/train-00000.parquet": "a data set already, as jobs.train --dataset takes it",
    "parts/part-00000.parquet": "predictions of jobs.classify",
}
_MIN_FRAMES = 12  # fewer leave a rotation without a test frame


class _Reader(Protocol):
    def __call__(self, record: Record) -> bytes: ...


@dataclass(frozen=True)
class Source:
    """A listed source of labelled pictures. Pickles; a process that gets it opens what it needs by itself."""

    uri: str
    records: list[Record]  # sorted by path
    classes: list[str]  # sorted
    fingerprint: str  # sha256 over the sorted (path, size, CRC-32 where the archive has one)
    num_ignored: int  # files that are no records: outside the class folders, hidden, or system files
    _reader: _Reader = field(repr=False)

    def read(self, record: Record) -> bytes:
        """The record's bytes as they are stored. Thread-safe. Raises SourceError (damaged) or StorageError."""
        try:
            return self._reader(record)
        except archives.ArchiveError as error:
            raise SourceError(str(error)) from error


def open_source(
    uri: str,
    *,
    root: str | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    allow_class_mismatch: bool = False,
    cache_dir: str | None = None,
) -> Source:
    """List a source.

    uri: a local path or s3:// URI of a folder, .zip, .tar or .tar.gz; kaggle:OWNER/NAME; synthetic[:CLASSESxFRAMES].
    root: the folder inside the source to use, where several hold data sets.
    test_fraction, seed: for sources without a test split (layout.plain_records) and, the seed, for drawn fruit.
    cache_dir: for downloads and inflated archives; default FRUITCNN_CACHE or ~/.cache/fruitcnn.
    Raises SourceError (what was got, wanted, and the next step) or StorageError (URI and cause).
    """
    if uri == "synthetic" or uri.startswith("synthetic:"):
        return _open_synthetic(uri, seed)
    listing = _list(uri, cache_dir)
    files = [Listed(path, size) for path, size, _ in listing.files if not is_hidden(path)]
    found, has_splits = find_root((file.path for file in files), root, uri)
    records = list(split_records(files, found)) if has_splits else plain_records(files, found, test_fraction, seed)
    records.sort(key=lambda record: record.path)
    classes = check_classes(records, uri, allow_class_mismatch, has_splits)
    prefix = f"{found}/" if found else ""
    checksums = {path[len(prefix) :]: crc for path, _, crc in listing.files if crc is not None}
    return Source(
        uri=listing.uri,
        records=records,
        classes=classes,
        fingerprint=_fingerprint((r.path, r.size_bytes, checksums.get(r.path)) for r in records),
        num_ignored=len(listing.files) - len(records),
        _reader=listing.reader(prefix, records),
    )


class _Listing(NamedTuple):
    """All files of a source, and how to make the reader for those that become records."""

    uri: str
    files: list[tuple[str, int, int | None]]  # path, size, CRC-32
    reader: Callable[[str, list[Record]], _Reader]


def _list(uri: str, cache_dir: str | None) -> _Listing:
    if uri.startswith("kaggle:"):
        name = uri.removeprefix("kaggle:")
        kaggle_source.download(name, cache_dir)
        return _list_archive(uri, partial(kaggle_source.cached, name, cache_dir))
    scheme = _SCHEME.match(uri)
    if scheme and scheme[1].lower() not in ("s3", "file"):
        raise SourceError(f"--source: unknown scheme {scheme[1]!r} in {uri}; wanted {_WANTED}")
    uri = storage.normalise(uri)
    if archives.is_archive(uri) and storage.exists(uri):
        return _list_archive(uri, partial(archives.seekable, uri, cache_dir))
    return _list_folder(uri)


def _list_folder(uri: str) -> _Listing:
    start = len(uri.rstrip("/")) + 1
    files: list[tuple[str, int, int | None]] = [
        (entry.uri[start:], entry.size_bytes, None) for entry in storage.list_files(uri)
    ]
    if not files:
        raise SourceError(f"--source: {uri} {_nothing_there(uri)}; wanted {_WANTED}")
    if ours := [_OURS[path] for path, _, _ in files if path in _OURS]:
        raise SourceError(f"--source: {uri} is {ours[0]}, wanted labelled pictures")
    return _Listing(uri, files, lambda prefix, _: _FolderReader(storage.join(uri, prefix) if prefix else uri))


def _nothing_there(uri: str) -> str:
    if storage.is_s3(uri):
        return "holds no objects, or does not exist"
    if Path(uri).is_dir():
        return "is empty"
    return "is not an archive that can be read" if Path(uri).exists() else "does not exist"


def _list_archive(uri: str, locate: Callable[[], str]) -> _Listing:
    try:
        # Of a name that occurs twice the later one counts, as when the archive is unpacked.
        members = {member.name: member for member in archives.list_members(locate())}
    except archives.ArchiveError as error:
        raise SourceError(f"--source: {error}") from error
    if not members:
        raise SourceError(f"--source: {uri} is empty; wanted an archive with a folder per class")

    def reader(prefix: str, records: list[Record]) -> _Reader:
        return _ArchiveReader(locate, {record.path: members[prefix + record.path] for record in records})

    return _Listing(uri, [(m.name, m.size_bytes, m.crc32) for m in members.values()], reader)


@dataclass(frozen=True)
class _FolderReader:
    root_uri: str

    def __call__(self, record: Record) -> bytes:
        return storage.read(storage.join(self.root_uri, record.path))


class _ArchiveReader:
    def __init__(self, locate: Callable[[], str], members: dict[str, archives.Member]) -> None:
        """locate: finds the archive with random access, filling this machine's cache first; members: by record path."""
        self._locate, self._members = locate, members
        self._located: str | None = None

    def __reduce__(self) -> tuple[type["_ArchiveReader"], tuple[object, ...]]:
        return _ArchiveReader, (self._locate, self._members)  # another machine locates it anew

    def __call__(self, record: Record) -> bytes:
        if self._located is None:
            self._located = self._locate()
        return archives.read_member(self._located, self._members[record.path])


@dataclass(frozen=True)
class _SyntheticReader:
    num_frames: dict[str, int]  # by rotation prefix
    seed: int

    def __call__(self, record: Record) -> bytes:
        group, frame = group_of(record.path.rpartition("/")[2], record.label)
        prefix = group.rpartition("/")[2]
        return synthetic.frame_jpeg(record.label, prefix, frame, self.num_frames[prefix], self.seed)


def _open_synthetic(uri: str, seed: int) -> Source:
    match = _SYNTHETIC.match(uri)
    num_classes = int(match[1] or synthetic.DEFAULT_NUM_CLASSES) if match else 0
    num_frames = int(match[2] or synthetic.DEFAULT_NUM_FRAMES) if match else 0
    if num_classes < 2 or num_frames < _MIN_FRAMES:
        raise SourceError(
            f"--source: got {uri}; wanted synthetic or synthetic:CLASSESxFRAMES with at least 2 classes and "
            f"{_MIN_FRAMES} frames a class, e.g. synthetic:12x100"
        )
    frames = synthetic.frames_of(num_frames)
    classes = synthetic.class_names(num_classes)
    records = []
    for name in classes:
        for prefix, frame, _ in frames:
            split = synthetic.frame_split(frame)
            folder = "Training" if split == "train" else "Test"
            path = f"{folder}/{name}/{synthetic.frame_name(prefix, frame)}"
            records.append(Record(path, name, split, f"{name}/{prefix}", synthetic.NOMINAL_JPEG_BYTES))
    records.sort(key=lambda record: record.path)
    drawn_by = f"{synthetic.VERSION}/{seed}/{num_frames}"
    fingerprint = _fingerprint([(drawn_by, 0, None), *((r.path, r.size_bytes, None) for r in records)])
    reader = _SyntheticReader({prefix: count for prefix, _, count in frames}, seed)
    return Source(uri, records, classes, fingerprint, 0, reader)


def _fingerprint(listing: Iterable[tuple[str, int, int | None]]) -> str:
    digest = hashlib.sha256()
    for path, size_bytes, crc32 in listing:
        digest.update(f"{path}\0{size_bytes}\0{'' if crc32 is None else crc32}\n".encode())
    return digest.hexdigest()
