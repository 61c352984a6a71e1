"""Inputs of a plan -> their bytes, or the cause why there are none. Used by infer.py, in threads.

What one object answers (it is gone, it may not be read, it is encrypted) becomes its row. What the store as a whole
answers (no connection, 5xx after the store's own retries, a wrong key) is no fact about a picture and is raised.
"""

import zipfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from fruitcnn import archives, parquet, storage
from fruitcnn.inputs import UNKNOWN_BYTES, UNLISTED, Input

CAUSES = ("not-found", "access-denied", "encrypted", "unreadable")
"""Besides images.CAUSES."""

MAX_INPUT_BYTES = 512 << 20
"""Larger files are rejected unread (too-large): a film among the pictures must not fill the memory."""

BATCH_BYTES = 16 << 20
"""A batch is closed once its files hold so much, so that photographs too keep all threads at work."""

_NO_FILE = "there is no such file; a list names files and archives, not folders or archives' members"
_ENCRYPTED_METHOD = -1
_CHUNK_INPUTS = 32
_CHUNK_BYTES = 8 << 20
_MAX_WITNESSES = 8


class Fetched(NamedTuple):
    """data, or None with the cause (one of CAUSES or images.CAUSES) and a detail that two runs would word alike."""

    id: str
    data: bytes | None
    cause: str | None = None
    detail: str | None = None


def cut_batches(inputs: Sequence[Input], batch_size: int) -> Iterator[tuple[int, int]]:
    """Cut the inputs of a part into ranges of at most batch_size inputs, closed once they hold BATCH_BYTES.

    Pure, so that a part has the same batches wherever it is worked on. Unknown sizes count as nothing.
    """
    start, held_bytes = 0, 0
    for index, item in enumerate(inputs):
        if index > start and (index - start == batch_size or held_bytes >= BATCH_BYTES):
            yield start, index
            start, held_bytes = index, 0
        held_bytes += max(0, item.size_bytes)
    if start < len(inputs):
        yield start, len(inputs)


def chunks(inputs: Sequence[Input], first: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cut inputs[first:stop] into ranges that one thread fetches in one go; a shard's row group stays together."""
    start, held_bytes = first, 0
    for index in range(first, stop):
        if index > start and _is_cut(inputs, start, index, held_bytes):
            yield start, index
            start, held_bytes = index, 0
        held_bytes += max(0, inputs[index].size_bytes)
    if start < stop:
        yield start, stop


def fetch(inputs: Sequence[Input]) -> Iterator[Fetched]:
    """Read the inputs of one chunk, in order, one at a time. Raises StorageError if the store fails as a whole."""
    first = inputs[0]
    if first.container and not first.name:
        yield from _fetch_rows(inputs)
        return
    for item in inputs:
        yield _fetch_member(item) if item.container else _fetch_object(item)


def find_witness(inputs: Sequence[Input]) -> str | None:
    """URI of an object on S3, among the first few inputs, that can be read now; None if there is none on S3.

    PermissionDeniedError if all of them are refused: then it is the credentials, not the pictures. Later the witness
    tells the two apart, when credentials may have expired.
    """
    uris = dict.fromkeys(item.container or item.name for item in inputs)
    refused: storage.StorageError | None = None
    for uri in [uri for uri in uris if storage.is_s3(uri)][:_MAX_WITNESSES]:
        try:
            storage.read_range(uri, 0, 1)
        except storage.PermissionDeniedError as error:
            refused = error
        except storage.NotFoundError:
            continue
        else:
            return uri
    if refused:
        raise refused
    return None


def _is_cut(inputs: Sequence[Input], start: int, index: int, held_bytes: int) -> bool:
    before, item = inputs[index - 1], inputs[index]
    if item.container != before.container:
        return True
    if item.container and not item.name:
        return item.offset // parquet.ROW_GROUP_ROWS != before.offset // parquet.ROW_GROUP_ROWS
    return index - start == _CHUNK_INPUTS or held_bytes >= _CHUNK_BYTES


def _fetch_rows(inputs: Sequence[Input]) -> Iterator[Fetched]:
    shard = inputs[0].container
    group, row = divmod(inputs[0].offset, parquet.ROW_GROUP_ROWS)
    folder, _, file_name = shard.rpartition("/")
    batches = parquet.read_rows(folder, file_name, columns=["image"], row_groups=[group])
    image = next(batches).column("image").slice(row, len(inputs))
    data, paths = (image.field(name) for name in ("bytes", "path"))
    for index in range(len(inputs)):
        yield Fetched(f"{shard}!{paths[index].as_py()}", data[index].as_py())


def _fetch_object(item: Input) -> Fetched:
    uri = item.name
    if item.method == UNLISTED:
        return Fetched(uri, None, *_why_no_archive(uri))
    try:
        num_bytes = storage.size_bytes(uri) if item.size_bytes == UNKNOWN_BYTES else item.size_bytes
        return Fetched(uri, storage.read(uri)) if num_bytes <= MAX_INPUT_BYTES else _too_large(uri, num_bytes)
    except storage.NotFoundError:
        is_of_list = item.size_bytes == UNKNOWN_BYTES  # nobody has looked for it before
        return Fetched(uri, None, "not-found", _NO_FILE if is_of_list else "no longer there when it was read")
    except storage.PermissionDeniedError:
        return Fetched(uri, None, "access-denied", "may be listed, may not be read")
    except storage.StorageError as error:
        if not _is_of_this_object(uri, error):
            raise
        return Fetched(uri, None, "unreadable", str(error.cause))


def _is_of_this_object(uri: str, error: storage.StorageError) -> bool:
    """Whether an error tells of one file (a loop of links, a bad sector), and not of the store it lies in."""
    return not storage.is_s3(uri) or isinstance(error, storage.InvalidUriError)


def _fetch_member(item: Input) -> Fetched:
    if item.size_bytes > MAX_INPUT_BYTES:
        return _too_large(item.id, item.size_bytes)
    if item.method == _ENCRYPTED_METHOD:
        return Fetched(item.id, None, "encrypted", "the archive's member is encrypted")
    if item.method == archives.SPARSE:
        return Fetched(item.id, None, "unsupported", "sparse members of a tar are not read")
    if item.method not in (None, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return Fetched(item.id, None, "unsupported", f"zip compression method {item.method} is not read")
    try:
        return Fetched(item.id, archives.read_member(_seekable(item.container), item.member))
    except archives.ArchiveError as error:
        return Fetched(item.id, None, "corrupt", str(error).removeprefix(item.id).strip()[:200])
    except storage.NotFoundError:
        return Fetched(item.id, None, "not-found", "the archive is no longer there")
    except storage.PermissionDeniedError:
        return Fetched(item.id, None, "access-denied", "the archive may not be read")


@lru_cache(maxsize=1024)
def _seekable(container: str) -> str:
    return archives.seekable(container)


def _why_no_archive(uri: str) -> tuple[str, str]:
    """Return (cause, detail)."""
    try:
        for _ in archives.list_members(archives.seekable(uri), is_lenient=True):
            pass
    except archives.ArchiveError as error:
        return "unreadable", str(error)[:200]
    except storage.NotFoundError:
        return "not-found", "the archive is no longer there"
    except storage.PermissionDeniedError:
        return "access-denied", "the archive may not be read"
    return "unreadable", "could not be listed when the plan was made, now it can: classify it by a run of its own"


def _too_large(input_id: str, num_bytes: int) -> Fetched:
    detail = f"{num_bytes:,} bytes, more than the {MAX_INPUT_BYTES:,} that are read"
    return Fetched(input_id, None, "too-large", detail)
