"""Kaggle's download API on localhost, as far as kagglesdk speaks it at KAGGLE_API_ENVIRONMENT=TEST.

Public and private data sets, redirects to a "signed" URL, ranges, and transfers that break off after so many bytes.
"""

import base64
import errno
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 7777  # fixed in kagglesdk
API = "/api/v1/"


class KaggleStandIn(ThreadingHTTPServer):
    """What is served, and what was asked."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", PORT), _Handler)
        self.public: dict[str, bytes] = {}
        self.private: dict[str, bytes] = {}
        self.tokens: set[str] = set()  # accepted, as bearer token or as the key of any user
        self.cut_after_bytes: list[int] = []  # one entry is used up by each transfer
        self.status: int | None = None  # answered to every request, if set
        self.requests: list[tuple[str, str | None, str | None]] = []  # path, Range, Authorization

    def ranges(self) -> list[str | None]:
        """Range headers of the transfers so far."""
        return [wanted for path, wanted, _ in self.requests if path.startswith("/signed/")]


@contextmanager
def kaggle_stand_in(patience_seconds: float = 60) -> Iterator[KaggleStandIn]:
    """Serve for the length of a with block; waits while another test run on this machine holds the port."""
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            server = KaggleStandIn()
            break
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise
            time.sleep(0.5)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: KaggleStandIn

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        self._note()
        if self.server.status:
            self._json(self.server.status, {"code": self.server.status, "message": "no service today"})
        elif self.path == f"{API}datasets.DatasetApiService/DownloadDataset":
            self._download(f"{body.get('ownerSlug')}/{body.get('datasetSlug')}")
        elif self.path == f"{API}security.OAuthService/IntrospectToken":
            active = body.get("token") in self.server.tokens
            self._json(200, {"active": active, "username": "someone" if active else ""})
        else:
            self._json(404, {"code": 404, "message": "no such method"})

    def do_GET(self) -> None:
        self._note()
        name = self.path.removeprefix("/signed/").partition("?")[0]
        data = self.server.public.get(name) or self.server.private[name]
        tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        start = 0
        if (wanted := self.headers.get("Range")) and self.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", tag)
        self.end_headers()
        # One entry a GET: a client that resumes opens the whole file first, to learn its ETag.
        cut = self.server.cut_after_bytes.pop(0) if self.server.cut_after_bytes else len(data)
        with suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(data[start : start + cut])
        self.close_connection = True

    def _download(self, name: str) -> None:
        if name in self.server.private and not self._signed_in():
            self._json(403, {"code": 403, "message": "Permission 'datasets.get' was denied"})
        elif name in self.server.public or name in self.server.private:
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{PORT}/signed/{name}?signature=s3cr3t")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._json(404, {"code": 404, "message": "not found"})

    def _signed_in(self) -> bool:
        kind, _, value = (self.headers.get("Authorization") or "").partition(" ")
        if kind == "Basic":
            value = base64.b64decode(value).decode().partition(":")[2]
        return value in self.server.tokens

    def _note(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))

    def _json(self, status: int, answer: dict[str, object]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass
