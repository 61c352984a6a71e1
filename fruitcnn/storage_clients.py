"""How storage_s3.py reaches a bucket: endpoint, region, credentials of the boto3 session, time limits, one client each.

A client is made once per process, bucket and settings of the environment, so nothing needs to be pickled.
"""

import functools
import os
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from obstore.store import S3Store

from fruitcnn import sealed
from fruitcnn.storage_errors import CREDENTIALS_HINT, InvalidUriError, PermissionDeniedError, StorageError, from_s3

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

_TIMEOUTS: "ClientConfig" = {"connect_timeout": "5s", "read_timeout": "30s", "timeout": "15m"}
_RETRIES: "RetryConfig" = {
    "max_retries": 6,
    "retry_timeout": timedelta(seconds=20),
    "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2},
}
# botocore renews credentials at least 10 minutes before they expire, so 5 minutes of caching are safe and obstore's
# default of 30 is not.
_CREDENTIALS_TTL = timedelta(minutes=5)
_SETTINGS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE",
             "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE",
             "AWS_SHARED_CREDENTIALS_FILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE")  # fmt: skip
_ENDPOINT = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?(/[\w./-]*)?")
_started_in_process: int | None = None


@dataclass(frozen=True, eq=False)
class Client:
    """A bucket's object store, the name of its endpoint for messages, and its boto3 session."""

    store: S3Store
    endpoint: str
    session: Any


class Credentials(NamedTuple):
    """What another S3 library needs to reach the same place."""

    access_key: str
    secret_key: str
    session_token: str | None
    region: str
    endpoint: str | None


def client_of(uri: str) -> Client:
    """The client for the bucket of `uri`; PermissionDeniedError when the boto3 session has no credentials."""
    global _started_in_process
    process = os.getpid()
    if _started_in_process not in (None, process):
        # obstore's threads do not survive a fork: the first request in the child would hang for ever.
        raise StorageError(uri, "S3 was used before this process was forked: start processes by spawn or forkserver")
    _started_in_process = process
    try:
        sealed.open_environment()
        return _client_with(uri.removeprefix("s3://").partition("/")[0], tuple(map(os.environ.get, _SETTINGS)))
    except Exception as error:  # noqa: BLE001 - botocore and obstore raise builtin classes too
        raise _from_setup(uri, error) from None


@functools.lru_cache(maxsize=32)
def _client_with(bucket: str, _settings: tuple[str | None, ...]) -> Client:
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = boto3.Session()
    endpoint, region = _endpoint(), _region(session)
    options: ClientConfig = {**_TIMEOUTS, "allow_http": bool(endpoint and endpoint.startswith("http://"))}
    config: S3Config = {"region": region}
    if endpoint:
        config["endpoint"] = endpoint
    store = S3Store(
        bucket,
        config=config,
        client_options=options,
        retry_config=_RETRIES,
        credential_provider=Boto3CredentialProvider(session, ttl=_CREDENTIALS_TTL),
    )
    return Client(store, endpoint or f"Amazon S3 in {region}", session)


def credentials_of(uri: str) -> Credentials:
    """The credentials, region and endpoint in force; PermissionDeniedError when the boto3 session finds none."""
    import boto3

    try:
        sealed.open_environment()
        session = boto3.Session()
        found = session.get_credentials()
        frozen = found.get_frozen_credentials() if found else None
    except Exception as error:  # noqa: BLE001
        raise _from_setup(uri, error) from None
    if frozen is None:
        raise PermissionDeniedError(uri, f"no AWS credentials found: {CREDENTIALS_HINT}")
    return Credentials(frozen.access_key, frozen.secret_key, frozen.token, _region(session), _endpoint())


def _from_setup(uri: str, error: Exception) -> StorageError:
    """An error before the first request: of the settings, then. botocore's texts name profile and file, no secret."""
    if "session.get_credentials" in str(error):
        return PermissionDeniedError(uri, f"no AWS credentials found: {CREDENTIALS_HINT}")
    if isinstance(error, sealed.SealError):
        return PermissionDeniedError(uri, str(error))
    if "botocore" in type(error).__module__:
        return PermissionDeniedError(uri, f"{error}: {CREDENTIALS_HINT}")
    return from_s3(uri, _endpoint() or "Amazon S3", error)


def _endpoint() -> str | None:
    """The endpoint of the environment, checked: obstore panics, or talks to nobody, on half a URL."""
    endpoint = (os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "").rstrip("/")
    if endpoint and not _ENDPOINT.fullmatch(endpoint):
        raise InvalidUriError("AWS_ENDPOINT_URL", f"got {endpoint}, wanted a URL such as http://127.0.0.1:8333")
    return endpoint or None


def _region(session: Any) -> str:
    return os.environ.get("AWS_REGION") or session.region_name or "us-east-1"
