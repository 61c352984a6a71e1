"""A stand-in between an S3 client and the real server: answers some requests itself, passes the others on."""

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Answer = tuple[int, bytes]
SLOW_DOWN: Answer = (503, b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>")

CUT: Answer = (0, b"")
"""The connection breaks off without an answer."""


class FaultServer(ThreadingHTTPServer):
    """Counts requests and asks `answer(number, method, path)`: None passes the request on to `upstream`."""

    daemon_threads = True

    def __init__(self, answer: Callable[[int, str, str], Answer | None], upstream: str | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.upstream = upstream
        self.num_requests = 0
        self.lock = threading.Lock()

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, FaultServer)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with server.lock:
            server.num_requests += 1
            number = server.num_requests
        answer = server.answer(number, self.command, self.path)
        if answer == CUT:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        headers = [("Content-Length", str(len(answer[1])))] if answer else []
        if answer is None:
            assert server.upstream
            connection = http.client.HTTPConnection(urlsplit(server.upstream).netloc)
            # The Host header stays as the client signed it.
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            response = connection.getresponse()
            answer = (response.status, response.read())
            headers = [each for each in response.getheaders() if each[0].lower() not in ("connection", "date")]
            connection.close()
        self.send_response(answer[0])
        for each in headers:
            self.send_header(*each)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer[1])

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET  # noqa: N815 - names that http.server looks for

    def log_message(self, *_: object) -> None:
        """Silence."""


@contextlib.contextmanager
def fault_server(
    answer: Callable[[int, str, str], Answer | None], upstream: str | None = None
) -> Iterator[FaultServer]:
    server = FaultServer(answer, upstream)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
