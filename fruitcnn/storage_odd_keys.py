"""Keys that other programs wrote and obstore cannot name (`a//b`, `a/../b`, control characters): boto3 reads them.

obstore fails a whole listing on the first such key. storage_s3.py then takes the one page it lies in from here, and
reads the object through here: one sloppy key must not keep ten million others from being classified.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

from fruitcnn.storage_clients import Client

_ASCII_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PAGE_KEYS = 1000


def is_odd(key: str) -> bool:
    """Whether obstore would refuse the key."""
    return not {"", ".", ".."}.isdisjoint(key.split("/")) or bool(_ASCII_CONTROL.search(key))


def list_page(client: Client, bucket: str, prefix: str, after: str | None) -> list[Mapping[str, Any]]:
    """Up to 1,000 keys under a prefix behind the key `after`, as obstore gives them: path and size in bytes."""
    start = {"StartAfter": after} if after else {}
    folder = f"{prefix}/" if prefix else ""
    page = _boto3_client(client).list_objects_v2(Bucket=bucket, Prefix=folder, MaxKeys=_PAGE_KEYS, **start)
    return [{"path": each["Key"], "size": each["Size"]} for each in page.get("Contents", [])]


def read(client: Client, bucket: str, key: str) -> bytes:
    """The whole object."""
    return bytes(_boto3_client(client).get_object(Bucket=bucket, Key=key)["Body"].read())


@functools.lru_cache(maxsize=8)
def _boto3_client(client: Client) -> Any:
    from botocore.config import Config

    retries = {"mode": "standard", "total_max_attempts": 5}
    endpoint = client.store.config.get("endpoint")
    return client.session.client(
        "s3",
        endpoint_url=endpoint,
        region_name=client.store.config.get("region"),
        config=Config(retries=retries, connect_timeout=5, read_timeout=30),
    )
