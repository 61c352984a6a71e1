"""Where all bytes of the flow lie: one small interface over local paths and s3:// URIs.

Every other module reads and writes through here, so that a folder, a bucket and a local S3 behave the same. A URI is
a local path or s3://bucket/prefix. S3 credentials come from a boto3 session (profiles, roles, environment), the
region from there too (default us-east-1), the endpoint from AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL. All functions
are thread-safe and keep one client per process and bucket; nothing here needs to be pickled.

Every function raises StorageError or a subclass, with `.uri` and `.cause`: NotFoundError, PermissionDeniedError,
UnavailableError (unreachable: within 30 s; throttled: after two minutes), InvalidUriError (a ValueError too).
"""
# Plain strings, not Path: a Path would rewrite s3:// and cost more than the rest of a call.
# ruff: noqa: PTH100, PTH111, PTH120

import json
import os
import re
import urllib.parse
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from fruitcnn import storage_clients, storage_local, storage_s3
from fruitcnn.storage_errors import (
    InvalidUriError,
    NotFoundError,
    PermissionDeniedError,
    StorageError,
    UnavailableError,
    argument,
    from_os,
)

if TYPE_CHECKING:
    import pyarrow.fs

__all__ = [
    "Entry", "InvalidUriError", "NotFoundError", "PermissionDeniedError", "StorageError", "UnavailableError",
    "argument", "delete", "delete_prefix", "download_directory", "exists", "is_empty", "is_s3", "join", "list_files",
    "name", "normalise", "parquet_filesystem", "put_if_absent", "read", "read_json", "read_range", "require_writable",
    "size_bytes", "upload_directory", "write", "write_json",
]  # fmt: skip

NUM_TRANSFERS = 16
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")


class Entry(NamedTuple):
    """One listed file."""

    uri: str
    size_bytes: int


def normalise(uri: str) -> str:
    """An absolute local path or s3://bucket/prefix, without trailing slash; file:// becomes a path.

    InvalidUriError for another scheme, an empty URI, and what cannot be a bucket.
    """
    if uri.startswith("/") and "\0" not in uri:
        return os.path.normpath(uri)  # what abspath comes to, at a third of its cost: listings hold millions
    scheme = _SCHEME.match(uri)
    if scheme is None:
        if not uri or "\0" in uri or uri.startswith("s3:"):
            raise InvalidUriError(uri or "''", "not a location: give a local path or s3://bucket/prefix")
        return os.path.abspath(os.path.expanduser(uri) if uri.startswith("~/") else uri)
    if scheme.group(1) == "file":
        path = os.fsdecode(urllib.parse.unquote_to_bytes(os.fsencode(uri.removeprefix("file://"))))
        if not path.startswith("/"):
            raise InvalidUriError(uri, "a file:// URI takes an absolute path: file:///folder/name")
        return normalise(path)
    if scheme.group(1) != "s3":
        raise InvalidUriError(uri, f"unknown scheme {scheme.group(1)}://: give a local path or s3://bucket/prefix")
    bucket, key = storage_s3.split(uri)
    if not _BUCKET.fullmatch(bucket):
        raise InvalidUriError(uri, f"{bucket!r} cannot be a bucket's name: give s3://bucket/prefix")
    return f"s3://{bucket}/{key}".rstrip("/")


def is_s3(uri: str) -> bool:
    """Whether the URI names a bucket, not a local path."""
    return uri.startswith("s3://")


def join(uri: str, *parts: str) -> str:
    """`uri/part/part`; a part may hold slashes, but no `..`: nothing joined leaves the place it was joined to."""
    names = [each for part in parts for each in part.split("/") if each]
    if ".." in names:
        raise InvalidUriError("/".join([uri, *parts]), "'..' would leave the folder it is joined to")
    return "/".join([uri.rstrip("/"), *names])


def name(uri: str) -> str:
    """The last component: `c.jpg` of s3://bucket/b/c.jpg."""
    return uri.rstrip("/").rpartition("/")[2]


def _backend(uri: str) -> ModuleType:
    return storage_s3 if is_s3(uri) else storage_local


def read(uri: str) -> bytes:
    """The whole file."""
    uri = normalise(uri)
    return _backend(uri).read(uri)


def read_range(uri: str, start: int, length: int) -> bytes:
    """The `length` bytes from byte `start` on: fewer where the file ends, none behind its end."""
    if start < 0 or length < 0:
        raise InvalidUriError(uri, f"a range starts at 0 and has no negative length, got {start}, {length}")
    uri = normalise(uri)
    return _backend(uri).read_range(uri, start, length)


def size_bytes(uri: str) -> int:
    """Size of a file in bytes; NotFoundError for what is none."""
    uri = normalise(uri)
    return _backend(uri).size_bytes(uri)


def exists(uri: str) -> bool:
    """Whether there is a file; a folder is none (S3 has no folders): ask is_empty."""
    try:
        size_bytes(uri)
    except NotFoundError:
        return False
    return True


def write(uri: str, data: bytes) -> None:
    """Write or replace a file in one step, making the folders above it: readers see all of it or the old one."""
    uri = normalise(uri)
    _backend(uri).write(uri, data)


def put_if_absent(uri: str, data: bytes) -> bool:
    """Write a file only if there is none; True: we wrote it.

    However many processes try, at most one is told True, and the file holds its bytes, whole. False can also mean
    that our own write arrived and its answer was lost on the way: the file is there, which is what counts.
    """
    uri = normalise(uri)
    return _backend(uri).put_if_absent(uri, data)


def require_writable(uri: str) -> None:
    """Raise now what a write of this file would raise after the work that leads to it; nothing is left behind.

    For a file that the work itself will write: of a bucket in which nothing may be deleted, an empty one stays there.
    """
    uri = normalise(uri)
    if not is_s3(uri):
        storage_local.require_writable(uri)
    elif put_if_absent(uri, b""):
        with suppress(PermissionDeniedError):
            delete(uri)


def read_json(uri: str) -> Any:
    """The parsed content of a JSON file; StorageError when it is not JSON."""
    try:
        return json.loads(read(uri))
    except ValueError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(uri, f"not JSON: {error}") from error


def write_json(uri: str, value: Any) -> None:
    """Write a value as JSON, the same bytes for the same value: sorted keys, indent 1, newline at the end."""
    write(uri, (json.dumps(value, sort_keys=True, indent=1) + "\n").encode())


def list_files(uri: str, *, broken_links: bool = False) -> Iterator[Entry]:
    """Stream every file under a folder or prefix, in no promised order, in memory that does not grow with their number.

    What is not there holds nothing. Zero-byte folder markers (`prefix/`) of S3 are no files. Locally, links are
    followed unless they lead back to a folder they lie in; pipes and sockets are no files. broken_links: also links
    that lead nowhere, or in a circle, of -1 bytes.
    """
    uri = normalise(uri)
    found = storage_s3.list_files(uri) if is_s3(uri) else storage_local.list_files(uri, broken_links=broken_links)
    return map(Entry._make, found)


def is_empty(uri: str) -> bool:
    """Whether there is no file under a folder or prefix."""
    return next(list_files(uri), None) is None


def delete(uri: str) -> None:
    """Delete one file; one that is not there is fine."""
    uri = normalise(uri)
    _backend(uri).delete(uri)


def delete_prefix(uri: str) -> None:
    """Delete every file under a folder or prefix; refuses the root folder and a whole bucket."""
    uri = normalise(uri)
    _backend(uri).delete_prefix(uri)


def upload_directory(local_dir: str | os.PathLike[str], uri: str) -> None:
    """Copy every file of a local folder to under `uri`, several at a time; NotFoundError when it holds none."""
    source, target = normalise(os.fspath(local_dir)), normalise(uri)
    one = storage_s3.upload if is_s3(target) else storage_local.copy
    _transfer(source, ((each.uri, target + each.uri.removeprefix(source)) for each in list_files(source)), one)


def download_directory(uri: str, local_dir: str | os.PathLike[str]) -> None:
    """Copy every file under `uri` into a local folder, several at a time; NotFoundError when there are none.

    Nothing is written outside `local_dir`, whatever the keys say and wherever links in it lead (StorageError).
    """
    source, target = normalise(uri), normalise(os.fspath(local_dir))

    def one(file_uri: str, path: str) -> None:
        _refuse_outside(target, path)
        if is_s3(file_uri):
            storage_local.fill(path, lambda file: storage_s3.download(file_uri, file))
        else:
            storage_local.copy(file_uri, path)

    _transfer(source, ((each.uri, target + each.uri.removeprefix(source)) for each in list_files(source)), one)


def _refuse_outside(folder: str, path: str) -> None:
    inside = os.path.realpath(folder)
    if os.path.commonpath([inside, os.path.realpath(os.path.dirname(path))]) != inside or ".." in path.split("/"):
        raise StorageError(path, f"refusing to write outside {folder}")


def _transfer(source: str, pairs: Iterable[tuple[str, str]], one: Callable[[str, str], None]) -> None:
    """Run one(source, target) over all pairs, NUM_TRANSFERS at a time, holding only a few pairs in memory."""
    num_pairs = 0
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(NUM_TRANSFERS) as pool:
        try:
            for num_pairs, pair in enumerate(pairs, 1):  # noqa: B007
                pending.append(pool.submit(one, *pair))
                if len(pending) >= 4 * NUM_TRANSFERS:
                    pending.popleft().result()
            while pending:
                pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    if not num_pairs:
        raise NotFoundError(source, "no files to copy there")


def parquet_filesystem(uri: str) -> tuple["pyarrow.fs.FileSystem", str]:
    """A pyarrow file system that reaches `uri`, and the path of `uri` in it, for pyarrow.parquet.

    Its credentials are those of this moment: ask again for each piece of work where they expire. Errors that pyarrow
    raises later are its own.
    """
    import pyarrow.fs

    uri = normalise(uri)
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise from_os(uri, error) from error
    if not is_s3(uri):
        return pyarrow.fs.LocalFileSystem(), uri
    found = storage_clients.credentials_of(uri)
    # S3FileSystem knows neither AWS_ENDPOINT_URL nor the profiles and roles of boto3.
    scheme, _, host = (found.endpoint or "").rpartition("://")
    filesystem = pyarrow.fs.S3FileSystem(
        access_key=found.access_key,
        secret_key=found.secret_key,
        session_token=found.session_token,
        region=found.region,
        scheme=scheme or "https",
        endpoint_override=host or None,
        connect_timeout=5,
        request_timeout=60,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=5),
    )
    return filesystem, uri.removeprefix("s3://")
