"""Word to a webhook when something was decided: a JSON summary by POST. After retrain, which does not wait for it long.

A receiver that is down must not undo a promotion: after a few tries the failure is returned in words, not raised. What
was posted is noted in the registry, so that an attempt which was killed in between is made up for by the next one.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from fruitcnn import storage

_TRIES = 3
_TIMEOUT_SECONDS = 10.0
_PAUSE_SECONDS = 1.0


def post(url: str, summary: dict[str, Any]) -> str | None:
    """POST a summary as JSON; returns None, or why it did not arrive: without the URL's path, which may be a key."""
    data = json.dumps(summary).encode()
    problem = ""
    for attempt in range(_TRIES):
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS):
                return None
        except (OSError, ValueError) as error:
            problem = str(error).replace(url, "the URL")
        if attempt < _TRIES - 1:
            time.sleep(_PAUSE_SECONDS * 2**attempt)
    return f"no word reached {urllib.parse.urlsplit(url).netloc.rpartition('@')[2] or 'the URL'}: {problem}"


def post_once(url: str, registry: str, number: int, summary: dict[str, Any]) -> str | None:
    """POST the summary of record `number` unless that was done; returns None, or why it did not arrive."""
    marker = storage.join(registry, "notified", f"{number:06d}.json")
    if storage.exists(marker):
        return None
    problem = post(url, summary)
    if problem is None:
        storage.write_json(marker, summary)
    return problem
