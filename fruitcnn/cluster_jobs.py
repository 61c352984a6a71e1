"""Sends a submission to a cluster's job server and watches it: Ray's client, with time limits and words of our own.

The job server may be asked over a bad line: every request ends within a minute, and following a job survives
`PATIENCE_SECONDS` without an answer. A job never depends on whoever follows it.
"""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fruitcnn import sealed
from fruitcnn.errors import UsageError
from fruitcnn.submission import Submission

DEFAULT_PORT = 8265
TIMEOUT_SECONDS = (5.0, 60.0)
PATIENCE_SECONDS = 60.0
STOP_SECONDS = 60.0
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_POLL_SECONDS = 1.0
_LONG_LOG_CHARS = 200_000


class ClusterError(OSError):
    """The cluster does not answer, or not as a job server would, or does not know the job."""


def server_url(address: str | None, environ: Mapping[str, str]) -> str:
    """The job server's URL from --address or RAY_API_SERVER_ADDRESS. UsageError for none, or one that is none."""
    given = address or environ.get("RAY_API_SERVER_ADDRESS") or ""
    name = "--address" if address or not given else "RAY_API_SERVER_ADDRESS"
    parts = urlsplit(given if "://" in given else f"http://{given}")
    try:
        port = parts.port or (DEFAULT_PORT if parts.scheme == "http" else 443)
    except ValueError:
        port = None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port or parts.path not in ("", "/"):
        raise UsageError(
            f"{name}: got {given or 'nothing'}, wanted the URL of a cluster's dashboard, as in http://HEAD:{DEFAULT_PORT}"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}"


class JobServer:
    """One cluster's job server. Nothing is sent before the first call."""

    def __init__(self, url: str, token: str | None) -> None:
        self.url = url
        self._token = token
        self._client: Any = None

    def submit(self, submission: Submission) -> str:
        """Send it; returns its id. UsageError, nothing started: no cluster there, or the token is not its own."""
        with self._translated(starting=True), tempfile.TemporaryDirectory(prefix="fruitcnn-submit-") as folder:
            package = Path(folder) / "code.zip"
            package.write_bytes(submission.package.data)
            return str(
                self._connect().submit_job(
                    entrypoint=submission.entrypoint,
                    submission_id=submission.name,
                    runtime_env=submission.runtime_env(package),
                    metadata=dict(submission.metadata),
                )
            )

    def details(self, name: str) -> Any:
        """Ray's JobDetails of a job. ClusterError if there is none of that name."""
        with self._translated(name):
            return self._connect().get_job_info(name)

    def all_jobs(self) -> list[Any]:
        """The submitted jobs, oldest first."""
        with self._translated():
            jobs = [each for each in self._connect().list_jobs() if each.submission_id]
        return sorted(jobs, key=lambda each: each.start_time or 0)

    def logs(self, name: str) -> str:
        """All that the job printed so far."""
        with self._translated(name):
            return str(self._connect().get_job_logs(name))

    def stop(self, name: str) -> bool:
        """Ask the job to stop, and wait until it has; False if it was over before."""
        with self._translated(name):
            stopped = bool(self._connect().stop_job(name))
        deadline = time.monotonic() + STOP_SECONDS
        while stopped and self.details(name).status not in ENDED:
            if time.monotonic() > deadline:
                raise ClusterError(f"{name}: asked to stop, and still running after {STOP_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)
        return stopped

    def follow(self, name: str, show: Callable[[str], None], sleep: Callable[[float], None] = time.sleep) -> Any:
        """Give `show` what the job prints until it ends; returns its last JobDetails.

        ClusterError when the cluster has not answered for PATIENCE_SECONDS: the job may be running still.
        """
        shown, answered = 0, time.monotonic()
        while True:
            try:
                details = self.details(name)
                text = self.logs(name) if details.status != "PENDING" else ""
                answered = time.monotonic()
            except ClusterError as error:
                if isinstance(error.__cause__, RuntimeError) or time.monotonic() - answered > PATIENCE_SECONDS:
                    raise
                sleep(_POLL_SECONDS)
                continue
            if text[shown:]:
                show(text[shown:])
                shown = len(text)
            if details.status in ENDED:
                return details
            # The job server sends the whole log each time.
            sleep(_POLL_SECONDS * (1 + shown // _LONG_LOG_CHARS))

    def _connect(self) -> Any:
        if self._client is None:
            # Ray lets these override the address it is given.
            os.environ.pop("RAY_ADDRESS", None)
            os.environ.pop("RAY_API_SERVER_ADDRESS", None)
            headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
            self._client = _client_class()(self.url, headers=headers)
        return self._client

    @contextmanager
    def _translated(self, name: str = "", starting: bool = False) -> Iterator[None]:
        """Ray's and requests' errors in words for the person who submitted."""
        import requests
        from ray.exceptions import AuthenticationError

        refused: type[Exception] = UsageError if starting else ClusterError
        try:
            yield
        except AuthenticationError:
            raise UsageError(self._token_problem()) from None
        except (ConnectionError, requests.exceptions.RequestException) as error:
            raise refused(
                f"--address: nobody answers at {self.url} ({_reason(error)}); wanted the dashboard of a running head: "
                "is it up, is the port open or forwarded?"
            ) from error
        except RuntimeError as error:
            if "does not exist" in str(error) or "404" in str(error):
                known = f"the cluster at {self.url} knows no job {name}; --list names those it knows"
                raise ClusterError(known if name else f"{self.url} is no Ray job server") from error
            raise refused(f"{self.url}: {' '.join(str(error).split())[:600]}") from error

    def _token_problem(self) -> str:
        if self._token is None:
            return f"the cluster at {self.url} asks for its token: set RAY_AUTH_TOKEN, or write it to ~/.ray/auth_token"
        return (
            f"the cluster at {self.url} refuses this token; wanted the one it was started with, from one of: "
            f"{sealed.TOKEN_SOURCES}"
        )


def _client_class() -> Any:
    logging.getLogger("ray").setLevel(logging.ERROR)
    from ray.dashboard.modules import dashboard_sdk
    from ray.job_submission import JobSubmissionClient

    dashboard_sdk.logger.setLevel(logging.ERROR)

    class Client(JobSubmissionClient):
        """Ray's client waits for ever where a line is cut."""

        def _do_request(self, method: str, endpoint: str, **rest: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": TIMEOUT_SECONDS} | rest)

    return Client


def _reason(error: BaseException) -> str:
    text = str(error)
    for sign, words in (
        ("refused", "connection refused"),
        ("timed out", "no answer in time"),
        ("resolve", "no such host"),
        ("unreachable", "unreachable"),
    ):
        if sign in text.lower() or (error.__context__ and sign in str(error.__context__).lower()):
            return words
    return type(error).__name__
