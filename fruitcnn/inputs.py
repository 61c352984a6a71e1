"""What `--images` names -> a stream of inputs, in an order that depends on their names alone. First step of classify.

A folder, an s3 prefix, one file, a .zip, .tar or .tar.gz, a .txt or .parquet list of URIs (archives among them),
or a data set written by shard (one of its splits). Every regular file is an input, whatever its name ends in: what is
no picture comes out as a rejected row, never as silence. Only hidden and system files (.git/, .DS_Store, Thumbs.db,
__MACOSX/) are passed over, and counted. Archives found in a folder or a list are read in place.
"""

import hashlib
import heapq
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from fruitcnn import archives, manifest, sorting, storage, uri_list
from fruitcnn.errors import UsageError

Kind = Literal["files", "archive", "list", "dataset"]

FOUND_AT_A_TIME = 10_000
UNKNOWN_BYTES = -1
"""Of names in a list, and of links that lead nowhere: their rows will say so."""

UNLISTED = -2
"""As `method` of an object: an archive whose members could not be listed."""
# A part that starts with a dot (but for "." and ".."), or a system's file: one search, as there are millions of names,
# and one that begins with a fixed letter, which takes a quarter of the time.
_HIDDEN = re.compile(r"/(?:\.(?!\.?(?:/|$))|(?:Thumbs\.db|desktop\.ini|__MACOSX)(?:/|$))", re.DOTALL)


class Input(NamedTuple):
    """One picture to classify, or what claims to be one, and all that is needed to read it."""

    container: str  # URI of the archive or shard it lies in; "": an object of its own
    name: str  # URI of the object, name of the member, "" for a row of a shard
    offset: int  # zip, tar: bytes into the archive; shard: row number
    size_bytes: int  # UNKNOWN_BYTES in lists of URIs
    stored_bytes: int  # members: size inside the archive
    method: int | None  # members: compression method (archives.Member); UNLISTED
    crc32: int | None

    @property
    def id(self) -> str:
        """URI, or archive URI + "!" + member; rows of shards have theirs in the shard."""
        return f"{self.container}!{self.name}" if self.container else self.name

    @property
    def member(self) -> archives.Member:
        """The same as archives.py wants it."""
        return archives.Member(self.name, self.size_bytes, self.crc32, self.offset, self.stored_bytes, self.method)


class Listing:
    """The inputs under one URI: iterate once; afterwards num_hidden and num_repeated say what was passed over.

    sample: so many of them only, chosen by the hashes of their ids, in the order of the listing. on_found(number,
    bytes): told what was found so far, every FOUND_AT_A_TIME files of a folder or list, before they are sorted.
    """

    def __init__(
        self,
        images: str,
        split: str | None = None,
        sample: int | None = None,
        on_found: Callable[[int, int], None] | None = None,
    ) -> None:
        with storage.argument("--images"):
            self.images = storage.normalise(images)
            self.kind = kind_of(self.images)
        self.split, self.sample, self._on_found = split, sample, on_found
        self.num_hidden = 0
        self.num_repeated = 0
        if split and self.kind != "dataset":
            raise UsageError(f"--split {split}: {self.images} is no data set written by jobs.shard; leave --split out")

    def __iter__(self) -> Iterator[Input]:
        with storage.argument("--images"):
            if self.sample is None:
                yield from self._inputs()
                return
            sampler = Sampler(self.sample)
            sampler.add(self._inputs())
            yield from sampler.chosen()

    def _inputs(self) -> Iterator[Input]:
        if self.kind == "dataset":
            yield from dataset_rows(self.images, self.split)
            return
        if self.kind == "archive":
            _require_members(self.images)
        objects = _told(self._objects(), self._on_found) if self._on_found else self._objects()
        for name, size_bytes in sorting.sort_unique(objects, self._count_repeated):
            if archives.is_archive(name):
                yield from archive_members(name, size_bytes, self._count_hidden)
            else:
                yield _object(name, size_bytes)

    def _objects(self) -> Iterator[tuple[str, int]]:
        if self.kind == "list":
            yield from ((name, UNKNOWN_BYTES) for name in uri_list.read(self.images))
            return
        num_chars = len(self.images.rstrip("/"))  # what follows is a path in it: "/a/b.jpg"
        for name, size_bytes in _files(self.images):
            if _HIDDEN.search(name, num_chars):
                self._count_hidden()
            else:
                yield name, size_bytes

    def _count_hidden(self) -> None:
        self.num_hidden += 1

    def _count_repeated(self) -> None:
        self.num_repeated += 1


class Sampler:
    """So many of the inputs that pass: always the same ones of a listing, spread over it by chance."""

    def __init__(self, num_inputs: int) -> None:
        self.num_inputs = num_inputs
        self._num_seen = 0
        self._kept: list[tuple[int, int, Input]] = []  # a heap, the greatest key on top

    def add(self, inputs: Iterable[Input]) -> None:
        """Let inputs pass, in the order of the listing."""
        for item in inputs:
            entry = -_sampling_key(item), self._num_seen, item
            self._num_seen += 1
            if len(self._kept) < self.num_inputs:
                heapq.heappush(self._kept, entry)
            elif entry > self._kept[0]:
                heapq.heapreplace(self._kept, entry)

    def chosen(self) -> list[Input]:
        """The sample, in the order of the listing."""
        return [item for _, _, item in sorted(self._kept, key=lambda entry: entry[1])]


def _sampling_key(item: Input) -> int:
    text = f"{item.id}!{item.offset}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


def kind_of(images: str) -> Kind:
    """What the URI is; a name ending like an archive or a list that is a folder counts as a folder."""
    if images.lower().endswith((".txt", ".parquet")) and storage.exists(images):
        return "list"
    if archives.is_archive(images) and storage.exists(images):
        return "archive"
    if storage.exists(storage.join(images, "plan.json")):
        raise UsageError(f"--images {images}: got predictions of jobs.classify, wanted pictures")
    if storage.exists(manifest.manifest_uri(images)):
        return "dataset"
    if any(storage.exists(storage.join(images, "shards", f"{split}-00000.parquet")) for split in ("train", "test")):
        raise UsageError(
            f"--images {images}: got the shards of a data set without its manifest.json, wanted a finished one: run "
            f'"python -m jobs.shard --source SOURCE --dataset {images}" to the end first'
        )
    return "files"


def dataset_rows(dataset_uri: str, split: str | None) -> Iterator[Input]:
    """The rows of a data set, all splits or one, by position; sizes are the mean of their shard."""
    books = manifest.load_manifest(dataset_uri)
    for name in [split] if split else sorted(books.splits):
        for shard in books.split(name).shards:
            mean_bytes = shard.num_bytes // max(1, shard.num_rows)
            uri = storage.join(dataset_uri, shard.path)
            for row in range(shard.num_rows):
                yield Input(uri, "", row, mean_bytes, 0, None, None)


def archive_members(uri: str, size_bytes: int, on_hidden: Callable[[], None]) -> Iterator[Input]:
    """The members of an archive in the archive's order; of an archive that cannot be listed, one input: itself.

    A repeated member name gets "#" and its offset, so that ids stay unique.
    """
    seen: set[int] = set()
    try:
        for member in archives.list_members(archives.seekable(uri), is_lenient=True):
            if _is_hidden(member.name):
                on_hidden()
                continue
            name = f"{member.name}#{member.offset}" if hash(member.name) in seen else member.name
            seen.add(hash(member.name))
            yield Input(uri, name, member.offset, member.size_bytes, member.stored_bytes, member.method, member.crc32)
    except (archives.ArchiveError, storage.NotFoundError, storage.PermissionDeniedError):
        # Listing it again when its part is classified says why, in its row.
        yield _object(uri, size_bytes)._replace(method=UNLISTED)


def _require_members(uri: str) -> None:
    """Raise UsageError for an archive that yields nothing at all: among others it is a row, alone it is a mistake."""
    try:
        next(archives.list_members(archives.seekable(uri), is_lenient=True), None)
    except archives.ArchiveError as error:
        raise UsageError(f"--images {error}") from error


def _told(objects: Iterator[tuple[str, int]], on_found: Callable[[int, int], None]) -> Iterator[tuple[str, int]]:
    num_found = num_bytes = 0
    while some := list(islice(objects, FOUND_AT_A_TIME)):
        num_found += len(some)
        num_bytes += sum(max(0, size_bytes) for _, size_bytes in some)
        on_found(num_found, num_bytes)
        yield from some


def _files(images: str) -> Iterator[storage.Entry]:
    """What lies under the URI; if nothing does, the file that it names."""
    num_found = 0
    for num_found, entry in enumerate(storage.list_files(images, broken_links=True), 1):  # noqa: B007
        yield entry
    if num_found == 0:
        try:
            yield storage.Entry(images, storage.size_bytes(images))
        except (storage.NotFoundError, storage.InvalidUriError) as error:
            raise UsageError(f"--images {images}: {_nothing(images)}") from error


def _nothing(images: str) -> str:
    if not storage.is_s3(images) and Path(images).is_dir():
        return "got a folder without files, wanted at least one"
    return "nothing is there; wanted a folder, prefix, archive or list"


def _object(name: str, size_bytes: int) -> Input:
    return Input("", name, 0, size_bytes, 0, None, None)


def _is_hidden(path: str) -> bool:
    return _HIDDEN.search(f"/{path}") is not None
