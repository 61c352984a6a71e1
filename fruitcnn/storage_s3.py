"""The S3 half of storage.py: obstore for the bytes, a boto3 session for credentials and region.

Time limits: a refused connection fails within 10 s and a host that does not answer within 30 s (retries included);
an answer that stalls for 30 s is retried; a bucket that throttles is asked again, ever more slowly, for two minutes.
"""

import functools
import itertools
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import S3Store

from fruitcnn.storage_errors import (
    CREDENTIALS_HINT,
    InvalidUriError,
    NotFoundError,
    PermissionDeniedError,
    StorageError,
    from_s3,
    is_busy,
)

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, RetryConfig, S3Config

BUSY_SECONDS = 120.0
_TIMEOUTS: "ClientConfig" = {"connect_timeout": "5s", "read_timeout": "30s", "timeout": "15m"}
_RETRIES: "RetryConfig" = {
    "max_retries": 6,
    "retry_timeout": timedelta(seconds=20),
    "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2},
}
_SETTINGS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE",
             "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE",
             "AWS_SHARED_CREDENTIALS_FILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE")  # fmt: skip
_DOWNLOAD_CHUNK_BYTES = 8 << 20
_DELETE_BATCH = 1000  # S3's own limit for one request
_Result = TypeVar("_Result")
_started_in_process: int | None = None
_known_buckets: set["_Client"] = set()


@dataclass(frozen=True, eq=False)
class _Client:
    store: S3Store
    endpoint: str


class Credentials(NamedTuple):
    """What another S3 library needs to reach the same place."""

    access_key: str
    secret_key: str
    session_token: str | None
    region: str
    endpoint: str | None


def split(uri: str) -> tuple[str, str]:
    """Bucket and key (or prefix) of an s3:// URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def credentials(uri: str) -> Credentials:
    """The credentials, region and endpoint in force; PermissionDeniedError when the session finds none."""
    session = _session(uri)
    found = session.get_credentials()
    if found is None:
        raise PermissionDeniedError(uri, f"no AWS credentials found: {CREDENTIALS_HINT}")
    frozen = found.get_frozen_credentials()
    return Credentials(frozen.access_key, frozen.secret_key, frozen.token, _region(session), _endpoint())


def _session(uri: str) -> Any:
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        return boto3.Session()
    except BotoCoreError as error:  # for example a profile that no file holds; its text names it and no secret
        raise PermissionDeniedError(uri, f"{error}: {CREDENTIALS_HINT}") from error


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _region(session: Any) -> str:
    return os.environ.get("AWS_REGION") or session.region_name or "us-east-1"


def _client(uri: str) -> _Client:
    """The client for the bucket of `uri`, one per process, bucket and settings in the environment."""
    global _started_in_process
    process = os.getpid()
    if _started_in_process not in (None, process):
        # obstore's threads do not survive a fork: the first request in the child would hang for ever.
        raise StorageError(uri, "S3 was used before this process was forked: start processes by spawn or forkserver")
    _started_in_process = process
    return _client_with(split(uri)[0], tuple(map(os.environ.get, _SETTINGS)))


@functools.lru_cache(maxsize=32)
def _client_with(bucket: str, _settings: tuple[str | None, ...]) -> _Client:
    from obstore.auth.boto3 import Boto3CredentialProvider

    uri = f"s3://{bucket}"
    session = _session(uri)
    endpoint, region = _endpoint(), _region(session)
    try:
        # botocore renews credentials at least 10 minutes before they expire, so 5 minutes of caching are safe and
        # the default of 30 is not.
        provider = Boto3CredentialProvider(session, ttl=timedelta(minutes=5))
    except ValueError as error:
        raise PermissionDeniedError(uri, f"no AWS credentials found: {CREDENTIALS_HINT}") from error
    options: ClientConfig = {**_TIMEOUTS, "allow_http": bool(endpoint and endpoint.startswith("http://"))}
    config: S3Config = {"region": region}
    if endpoint:
        config["endpoint"] = endpoint
    store = S3Store(
        bucket,
        config=config,
        client_options=options,
        retry_config=_RETRIES,
        credential_provider=provider,
    )
    return _Client(store, endpoint or f"Amazon S3 in {region}")


def _call(uri: str, request: Callable[[S3Store, str], _Result]) -> _Result:
    """Run `request(store, key)`, patiently while the server says that it is busy; all errors as StorageError."""
    key = split(uri)[1]
    if not key.isprintable() or "" in key.split("/"):
        raise InvalidUriError(
            uri, "the object store client cannot address a key with an empty part or a control character"
        )
    deadline = time.monotonic() + BUSY_SECONDS
    for attempt in itertools.count():
        client = _client(uri)
        try:
            return request(client.store, key)
        except Exception as error:  # noqa: BLE001 - obstore raises builtin classes too; every one is translated
            _pause_or_raise(uri, client, error, attempt, deadline)
    raise AssertionError("unreachable")


def _pause_or_raise(uri: str, client: _Client, error: Exception, attempt: int, deadline: float) -> None:
    """Sleep before the next attempt when the server is busy and there is time left; else the translated error."""
    pause_seconds = min(20.0, 2.0**attempt) * random.uniform(0.5, 1.0)
    if not is_busy(error) or time.monotonic() + pause_seconds > deadline:
        # `from None`: obstore's text holds the request, which is long and might hold what is not for a log.
        raise from_s3(uri, client.endpoint, error) from None
    time.sleep(pause_seconds)


def read(uri: str) -> bytes:
    """The whole object."""
    return _call(uri, lambda store, key: obstore.get(store, key).bytes().to_bytes())


def read_range(uri: str, start: int, length: int) -> bytes:
    """At most `length` bytes from `start` on."""

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
    client = _client(uri)
    if client not in _known_buckets:
        next(iter(_pages(uri, "no/such/prefix")), None)
        _known_buckets.add(client)


def write(uri: str, data: bytes) -> None:
    """Replace the object (S3 shows it whole or not at all)."""
    _call(uri, lambda store, key: obstore.put(store, key, data, chunk_size=16 << 20))


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
            obstore.put(store, key, file, chunk_size=16 << 20)

    _call(uri, request)


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
            if entry["size"] or not _is_marker(found):
                yield found, entry["size"]


def _pages(uri: str, prefix: str) -> Iterator[Sequence["ObjectMeta"]]:
    """The listing, page by page; after a busy answer it goes on behind the last key that was seen."""
    last_key: str | None = None
    deadline = time.monotonic() + BUSY_SECONDS
    for attempt in itertools.count():
        client = _client(uri)
        try:
            for page in obstore.list(client.store, prefix or None, offset=last_key, chunk_size=1000):
                yield page
                last_key = page[-1]["path"]
                deadline = time.monotonic() + BUSY_SECONDS
            return
        except Exception as error:  # noqa: BLE001
            _pause_or_raise(uri, client, error, attempt, deadline)


def _is_marker(uri: str) -> bool:
    """Whether an empty object is a folder marker: obstore lists the key `a/` as `a`, but there is no object `a`."""
    try:
        _call(uri, obstore.head)
    except NotFoundError:
        return True
    return False


def delete(uri: str) -> None:
    """Remove an object; one that is not there is fine."""
    _call(uri, lambda store, key: obstore.delete(store, key))


def delete_prefix(uri: str) -> None:
    """Remove every object under a prefix."""
    if not split(uri)[1]:
        raise StorageError(uri, "refusing to empty a whole bucket: name a prefix in it")
    while batch := [split(each)[1] for each, _ in itertools.islice(list_files(uri), _DELETE_BATCH)]:
        _delete_batch(uri, batch)


def _delete_batch(uri: str, keys: list[str]) -> None:
    _call(uri, lambda store, _: obstore.delete(store, keys))
