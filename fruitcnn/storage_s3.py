"""The S3 half of storage.py: obstore moves the bytes, storage_clients.py gives it clients and credentials.

Time limits: a refused connection fails within 10 s and a host that does not answer within 30 s (retries included);
an answer that stalls for 30 s is retried; a bucket that throttles is asked again, ever more slowly, for two minutes.
"""

import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, InvalidPathError
from obstore.store import S3Store

from fruitcnn import storage_odd_keys
from fruitcnn.storage_clients import Client, client_of
from fruitcnn.storage_errors import InvalidUriError, NotFoundError, StorageError, from_os, from_s3, is_busy

BUSY_SECONDS = 120.0
_UPLOAD_PART_BYTES = 16 << 20
_DOWNLOAD_CHUNK_BYTES = 8 << 20
_PAGE_KEYS = 1000  # S3's own limit for one listing or deleting request
_Result = TypeVar("_Result")
_known_buckets: set[Client] = set()


def split(uri: str) -> tuple[str, str]:
    """Bucket and key (or prefix) of an s3:// URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def _call(uri: str, request: Callable[[S3Store, str], _Result]) -> _Result:
    """Run `request(store, key)`, patiently; refuses keys that obstore cannot name."""
    key = split(uri)[1]
    if not key:
        raise NotFoundError(uri, "a whole bucket, where one object was wanted")
    if storage_odd_keys.is_odd(key):
        raise InvalidUriError(uri, "a key with an empty or dotted part or a control character can only be read")
    return _patiently(uri, lambda client: request(client.store, key))


def _patiently(uri: str, request: Callable[[Client], _Result]) -> _Result:
    """Run a request again while the server says that it is busy; every error comes out as StorageError."""
    deadline = time.monotonic() + BUSY_SECONDS
    for attempt in itertools.count():
        client = client_of(uri)
        try:
            return request(client)
        except Exception as error:  # noqa: BLE001 - obstore raises builtin classes too; every one is translated
            _pause_or_raise(uri, client, error, attempt, deadline)
    raise AssertionError("unreachable")


def _pause_or_raise(uri: str, client: Client, error: Exception, attempt: int, deadline: float) -> None:
    """Sleep before the next attempt when the server is busy and there is time left; else the translated error."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error  # of the local file that is copied: upload and storage_local say which
    pause_seconds = min(20.0, 2.0**attempt) * random.uniform(0.5, 1.0)
    if not is_busy(error) or time.monotonic() + pause_seconds > deadline:
        # `from None`: obstore's text holds the request, which is long and might hold what is not for a log.
        raise from_s3(uri, client.endpoint, error) from None
    time.sleep(pause_seconds)


def read(uri: str) -> bytes:
    """The whole object."""
    bucket, key = split(uri)
    if key and storage_odd_keys.is_odd(key):
        return _patiently(uri, lambda client: storage_odd_keys.read(client, bucket, key))
    return _call(uri, lambda store, key: obstore.get(store, key).bytes().to_bytes())


def read_range(uri: str, start: int, length: int) -> bytes:
    """At most `length` bytes from `start` on."""
    key = split(uri)[1]
    if key and storage_odd_keys.is_odd(key):
        return read(uri)[start : start + length]

    def request(store: S3Store, key: str) -> bytes:
        try:
            return obstore.get_range(store, key, start=start, length=length).to_bytes()
        except Exception as error:
            if "status code: 416" in str(error):  # starts at or behind the end
                return b""
            raise

    return _call(uri, request) if length else _call(uri, lambda store, key: obstore.head(store, key) and b"")


def size_bytes(uri: str) -> int:
    """Size of the object."""
    try:
        return int(_call(uri, lambda store, key: obstore.head(store, key)["size"]))
    except NotFoundError:
        _check_bucket(uri)  # the answer to HEAD has no body, so a missing bucket looks like a missing object
        raise


def _check_bucket(uri: str) -> None:
    """NotFoundError naming the bucket when it is the bucket that is missing; asked once per client."""
    client = client_of(uri)
    if client not in _known_buckets:
        next(iter(_pages(uri, "no/such/prefix")), None)
        _known_buckets.add(client)


def write(uri: str, data: bytes) -> None:
    """Replace the object (S3 shows it whole or not at all)."""
    _call(uri, lambda store, key: obstore.put(store, key, data, chunk_size=_UPLOAD_PART_BYTES))


def put_if_absent(uri: str, data: bytes) -> bool:
    """True for the one caller whose object was created."""

    def request(store: S3Store, key: str) -> bool:
        try:
            obstore.put(store, key, data, mode="create")
        except AlreadyExistsError as error:
            if is_busy(error):
                raise
            return False
        return True

    return _call(uri, request)


def upload(path: str, uri: str) -> None:
    """Stream one local file into an object."""

    def request(store: S3Store, key: str) -> None:
        with open(path, "rb") as file:
            obstore.put(store, key, file, chunk_size=_UPLOAD_PART_BYTES)

    try:
        _call(uri, request)
    except OSError as error:
        raise from_os(path, error) from error


def download(uri: str, file: BinaryIO) -> None:
    """Stream one object into an open file."""

    def request(store: S3Store, key: str) -> None:
        file.seek(0)
        file.truncate()
        for chunk in obstore.get(store, key).stream(min_chunk_size=_DOWNLOAD_CHUNK_BYTES):
            file.write(chunk)

    _call(uri, request)


def list_files(uri: str) -> Iterator[tuple[str, int]]:
    """Stream (URI, size in bytes) of every object under a prefix; a prefix that is not there holds nothing."""
    bucket, prefix = split(uri)
    for page in _pages(uri, prefix):
        for entry in page:
            found = f"s3://{bucket}/{entry['path']}"
            if entry["size"] or not _is_marker(found, entry["path"]):
                yield found, entry["size"]


def _pages(uri: str, prefix: str) -> Iterator[Sequence[Mapping[str, Any]]]:
    """The listing, page by page; after a busy answer or an odd key it goes on behind the last key that was seen."""
    last_key: str | None = None
    attempt, deadline = 0, time.monotonic() + BUSY_SECONDS
    while True:
        client = client_of(uri)
        try:
            for page in _obstore_or_odd_pages(client, split(uri)[0], prefix, last_key):
                yield page
                last_key = str(page[-1]["path"])
                attempt, deadline = 0, time.monotonic() + BUSY_SECONDS
            return
        except Exception as error:  # noqa: BLE001
            _pause_or_raise(uri, client, error, attempt, deadline)
            attempt += 1


def _obstore_or_odd_pages(
    client: Client, bucket: str, prefix: str, last_key: str | None
) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Pages of obstore; where it gives up on an odd key, one page of boto3, then obstore again."""
    while True:
        if not any(map(storage_odd_keys.is_odd, filter(None, (prefix, last_key)))):
            try:
                for page in obstore.list(client.store, prefix or None, offset=last_key, chunk_size=_PAGE_KEYS):
                    yield page
                    last_key = page[-1]["path"]
                return
            except InvalidPathError:
                pass
        odd_page = storage_odd_keys.list_page(client, bucket, prefix, last_key)
        if not odd_page:
            return
        yield odd_page
        last_key = odd_page[-1]["path"]


def _is_marker(uri: str, key: str) -> bool:
    """Whether an empty object is a folder marker: obstore lists the key `a/` as `a`, but there is no object `a`."""
    if key.endswith("/"):
        return True
    try:
        return not storage_odd_keys.is_odd(key) and _call(uri, obstore.head) is None
    except NotFoundError:
        return True


def delete(uri: str) -> None:
    """Remove an object; one that is not there is fine."""
    _call(uri, lambda store, key: obstore.delete(store, key))


def delete_prefix(uri: str) -> None:
    """Remove every object under a prefix."""
    if not split(uri)[1]:
        raise StorageError(uri, "refusing to empty a whole bucket: name a prefix in it")
    while batch := [split(each)[1] for each, _ in itertools.islice(list_files(uri), _PAGE_KEYS)]:
        _delete_batch(uri, batch)


def _delete_batch(uri: str, keys: list[str]) -> None:
    _call(uri, lambda store, _: obstore.delete(store, keys))
