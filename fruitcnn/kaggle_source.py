"""Downloads a Kaggle data set once, into the cache folder; sources.py opens the zip from there.

Public data comes without an account: the request goes out anonymously first, and only where Kaggle refuses is a token
looked for, the way Kaggle's own client looks for it. Built on kagglesdk, the protocol half of that client, because
`import kaggle` signs in (and so sends the token) at import time, and KaggleApi ignores KAGGLE_API_ENVIRONMENT=TEST.
"""

import contextlib
import io
import json
import logging
import re
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock

from fruitcnn import cache, storage
from fruitcnn.layout import SourceError
from fruitcnn.storage_errors import from_os

if TYPE_CHECKING:
    import requests

_log = logging.getLogger(__name__)
_NAME = re.compile(r"^[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w-]*$")
_CHUNK_BYTES = 1 << 16  # at most this much is lost when a transfer breaks
_TIMEOUT_SECONDS = 60
_NUM_TRIES = 4  # in a row without a new byte
_FIRST_PAUSE_SECONDS = 0.5
_HOW_TO_SIGN_IN = "run `kaggle auth login`, set KAGGLE_API_TOKEN, or save a token to ~/.kaggle/access_token"


class _Identity(NamedTuple):
    """What tells one version of the file from another."""

    size_bytes: int
    tag: str | None  # ETag, else Last-Modified


def download(dataset: str, cache_dir: str | None = None) -> str:
    """Path of the data set's zip, downloaded or resumed unless the cache holds what Kaggle has now.

    Without a network a whole cached copy is used as it is. Raises SourceError (wrong name, private data set without a
    token) or StorageError (Kaggle cannot be reached, or the transfer keeps breaking; the same call resumes it).
    """
    target = _target(dataset, cache_dir)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        _bring_up_to_date(dataset, target)
    return str(target)


def cached(dataset: str, cache_dir: str | None = None) -> str:
    """Path of the data set's zip, without asking Kaggle where the cache holds a whole copy."""
    return kept(dataset, cache_dir) or download(dataset, cache_dir)


def kept(dataset: str, cache_dir: str | None = None) -> str | None:
    """Path of a whole copy in the cache, None where there is none; asks nobody."""
    target = _target(dataset, cache_dir)
    return str(target) if _whole(target) else None


def _target(dataset: str, cache_dir: str | None) -> Path:
    if not _NAME.match(dataset):
        raise SourceError(f"--source: got kaggle:{dataset}; wanted kaggle:OWNER/NAME, e.g. kaggle:moltean/fruits")
    return cache.folder(cache_dir) / "kaggle" / f"{dataset}.zip"


def _bring_up_to_date(dataset: str, target: Path) -> None:
    import requests

    part = target.with_suffix(".part")
    failures = 0
    while True:
        before_bytes = part.stat().st_size if part.exists() else 0
        try:
            with _open(dataset) as response:
                remote = _identity(response)
                if _whole(target) == remote:
                    return
                _receive(response, remote, part)
            _accept(dataset, part, remote, target)
            return
        except requests.RequestException as error:
            has_grown = part.exists() and part.stat().st_size > before_bytes
            if not has_grown and _whole(target):
                _log.warning("kaggle:%s %s: using the copy in %s", dataset, _describe(error), target)
                return
            failures = 0 if has_grown else failures + 1
            if failures >= _NUM_TRIES:
                kept = f"; {part.stat().st_size:,} bytes are kept, the same command resumes" if part.exists() else ""
                raise storage.UnavailableError(f"kaggle:{dataset}", _describe(error) + kept) from None
        except OSError as error:
            raise from_os(str(part), error) from error
        time.sleep(_FIRST_PAUSE_SECONDS * 2**failures)


def _open(dataset: str) -> "requests.Response":
    """The answer to the download request, not read yet: anonymously, then with a token where that is refused."""
    from requests import HTTPError

    try:
        return _request(dataset, None)
    except HTTPError as error:
        if _status(error) not in (401, 403):
            raise _refusal(dataset, error) from None
    sign_in = _credentials()
    if sign_in is None:
        raise SourceError(
            f"--source: Kaggle does not give kaggle:{dataset} to everyone: it is private, or the name is wrong. "
            f"No valid token was found: {_HOW_TO_SIGN_IN}"
        )
    try:
        return _request(dataset, sign_in)
    except HTTPError as error:
        raise _refusal(dataset, error) from None


def _request(dataset: str, sign_in: dict[str, Any] | None) -> "requests.Response":
    from kagglesdk import KaggleClient
    from kagglesdk.datasets.types.dataset_api_service import ApiDownloadDatasetRequest

    client = KaggleClient(user_agent="fruitcnn", **(sign_in or {}))
    if sign_in is None:
        client.http_client()._signed_in = False  # else it adds whatever token it finds
    request = ApiDownloadDatasetRequest()
    request.owner_slug, request.dataset_slug = dataset.split("/")
    return client.datasets.dataset_api_client.download_dataset(request)


def _refusal(dataset: str, error: "requests.HTTPError") -> Exception:
    """The HTTP error as one the user can act on; the error itself where trying again may help."""
    code = _status(error)
    if code == 404:
        return SourceError(f"--source: Kaggle has no data set {dataset!r}; look its name up on kaggle.com/datasets")
    if code in (401, 403):
        return SourceError(
            f"--source: Kaggle refuses kaggle:{dataset} to your account ({code}): ask its owner for access, check the "
            f"name, or sign in anew: {_HOW_TO_SIGN_IN}"
        )
    if code is None or code == 429 or code >= 500:
        return error
    return SourceError(f"--source: Kaggle refuses kaggle:{dataset} with status {code}; check the name")


def _credentials() -> dict[str, Any] | None:
    """The sign-in that Kaggle's client finds (token, legacy key, OAuth; environment, then files), or None."""
    import requests

    # The client prints help, warns about file modes, and exits where it finds nothing.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            from kaggle.api.kaggle_api_extended import KaggleApi
            from kagglesdk import KaggleClient

            class Api(KaggleApi):
                def build_kaggle_client(self) -> Any:  # KaggleApi's own asks production, whatever the environment says
                    return KaggleClient(user_agent="fruitcnn", **_sign_in(self.config_values))

            api = Api()
            api.authenticate()
        except (SystemExit, requests.RequestException, OSError, KeyError, ValueError):
            return None
    return _sign_in(api.config_values)


def _sign_in(values: dict[str, str]) -> dict[str, Any]:
    return {"username": values.get("username"), "password": values.get("key"), "api_token": values.get("token")}


def _identity(response: "requests.Response") -> _Identity:
    headers = response.headers
    return _Identity(int(headers.get("Content-Length", -1)), headers.get("ETag") or headers.get("Last-Modified"))


def _receive(response: "requests.Response", remote: _Identity, part: Path) -> None:
    """Append to the part where it is the beginning of this very file, else write it anew, up to the whole size."""
    have_bytes = part.stat().st_size if part.exists() else 0
    if _noted(part) == remote and remote.tag and have_bytes:
        if have_bytes == remote.size_bytes:
            return
        response = _resume(response, remote, have_bytes)
    mode = "ab" if response.status_code == 206 else "wb"
    part.with_suffix(".part.json").write_text(json.dumps(remote))
    with response, part.open(mode) as out:
        for chunk in response.iter_content(_CHUNK_BYTES):
            out.write(chunk)


def _resume(response: "requests.Response", remote: _Identity, have_bytes: int) -> "requests.Response":
    """The rest of the file from have_bytes (status 206), or all of it (200) if the server has another by now."""
    import requests

    response.close()
    request = response.request.copy()  # of the last redirect: its headers hold no token for another host
    request.headers.update({"Range": f"bytes={have_bytes}-", "If-Range": remote.tag or ""})
    session = requests.Session()
    settings = session.merge_environment_settings(request.url or "", {}, True, None, None)
    rest = session.send(request, timeout=_TIMEOUT_SECONDS, **settings)
    rest.raise_for_status()
    return rest


def _accept(dataset: str, part: Path, remote: _Identity, target: Path) -> None:
    """Give the part its final name, if it is whole."""
    import requests

    size_bytes = part.stat().st_size
    if remote.size_bytes not in (-1, size_bytes):
        raise requests.ConnectionError(f"got {size_bytes:,} of {remote.size_bytes:,} bytes")
    if not zipfile.is_zipfile(part):
        part.unlink()
        raise SourceError(f"--source: what Kaggle sent for kaggle:{dataset} is not a whole zip; run the same again")
    part.replace(target)
    part.with_suffix(".part.json").replace(target.with_suffix(".zip.json"))


def _whole(target: Path) -> _Identity | None:
    """What the cached file is, or None if it is not there or not of the size noted when it was complete."""
    noted = _noted(target)
    whole = noted and target.exists() and noted.size_bytes in (-1, target.stat().st_size)
    return noted if whole else None


def _noted(path: Path) -> _Identity | None:
    try:
        return _Identity(*json.loads(path.with_name(f"{path.name}.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _status(error: "requests.RequestException") -> int | None:
    return error.response.status_code if error.response is not None else None


def _describe(error: "requests.RequestException") -> str:
    """The cause without its URL, which may be signed."""
    status = _status(error)
    return f"answers with status {status}" if status else f"cannot be reached ({type(error).__name__})"
