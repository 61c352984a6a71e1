"""jobs.serve as people run it: a process of its own, with Ray Serve under it, asked over HTTP."""

import asyncio
import contextlib
import hashlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import psutil
import pytest

from fruitcnn import frozen, images
from fruitcnn.endpoints import BROWSER_RUNTIME
from tests import tiny_bundle

MAX_BODY_BYTES = 3_000_000
START_SECONDS = 180.0

pytestmark = pytest.mark.ray


class Server(NamedTuple):
    process: subprocess.Popen[str]
    url: str
    model: str
    errors: Path


@pytest.fixture(scope="module", params=["", pytest.param("--haproxy", marks=pytest.mark.long)])
def server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with two replicas; it takes few requests at a time, so that a test can overload it."""
    folder = tmp_path_factory.mktemp("serving")
    model = tiny_bundle.write_bundle(folder / "model")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jobs.serve", "--model", model, "--port", str(port), "--min-replicas", "2"]
    command += ["--max-body-bytes", str(MAX_BODY_BYTES), "--max-ongoing-requests", "4", "--max-queued-requests", "4"]
    command += [request.param] if request.param else []
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with open(folder / "out", "w") as out, open(folder / "err", "w") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, text=True, env=environment)
    try:
        deadline = time.monotonic() + START_SECONDS
        while "serving until Ctrl-C" not in (folder / "out").read_text():
            assert process.poll() is None, (folder / "err").read_text()
            assert time.monotonic() < deadline, (folder / "err").read_text()
            time.sleep(0.3)
        yield Server(process, f"http://127.0.0.1:{port}", model, folder / "err")
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(60)
    for each in [*children, *([psutil.Process(process.pid)] if process.poll() is None else [])]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()


def test_answers_are_the_model_s_however_many_ask_at_once(server: Server, jpeg_bytes: object) -> None:
    pictures = [jpeg_bytes(seed, 40, 30) for seed in range(60)]  # type: ignore[operator]
    expected = frozen.load(server.model).predict(
        np.stack([images.decode(data, tiny_bundle.INPUT_PX).pixels for data in pictures])
    )
    files = [("image", (f"{number}.jpg", data)) for number, data in enumerate(pictures)]
    said = httpx.post(f"{server.url}/classify", files=files, timeout=60).json()
    assert [row["id"] for row in said["predictions"]] == [f"{number}.jpg" for number in range(60)]
    for row, probabilities in zip(said["predictions"], expected, strict=True):
        by_label = dict(zip(tiny_bundle.LABELS, probabilities, strict=True))
        assert {*row["top_labels"]} == {*by_label}
        assert all(
            abs(by_label[name] - score) < 1e-4 for name, score in zip(row["top_labels"], row["top_scores"], strict=True)
        )


@pytest.mark.parametrize("head", ["content-length: 900000000000", "transfer-encoding: chunked"])
def test_an_endless_body_is_refused_while_it_is_sent(server: Server, head: str) -> None:
    """A raw socket: the server answers 413 and hangs up, though the body has no end; who goes on sending is cut off."""
    address = httpx.URL(server.url)
    chunk, num_sent = b"10000\r\n" + bytes(0x10000) + b"\r\n", 0
    with socket.create_connection((address.host, address.port), timeout=20) as connection:
        connection.sendall(f"POST /classify HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n".encode())
        pending = b""
        while not select.select([connection], [], [], 0)[0] and num_sent < 100 * MAX_BODY_BYTES:
            if select.select([connection], [connection], [], 20)[1]:
                pending = pending or chunk
                try:
                    num_this_time = connection.send(pending)
                except (ConnectionResetError, BrokenPipeError):  # hung up between the look and the send
                    break
                num_sent, pending = num_sent + num_this_time, pending[num_this_time:]
        else:
            assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")
    assert num_sent < 20 * MAX_BODY_BYTES


@pytest.mark.skipif(not BROWSER_RUNTIME.exists(), reason="make web has not run")
def test_large_files_arrive_whole(server: Server) -> None:
    """What the browser needs is the largest that is sent; over gRPC, Ray's proxy cut off one in eight."""
    file = max(BROWSER_RUNTIME.parent.iterdir(), key=lambda path: path.stat().st_size)
    with httpx.Client(timeout=60) as client:
        found = [client.get(f"{server.url}/page/vendor/{file.name}").content for _ in range(30)]
    assert {hashlib.sha256(data).hexdigest() for data in found} == {hashlib.sha256(file.read_bytes()).hexdigest()}


async def _load(url: str, data: bytes, num_clients: int, num_each: int) -> Counter[str]:
    """What that many clients got, each asking num_each times in turn: statuses, or the name of the exception."""
    found: Counter[str] = Counter()
    limits = httpx.Limits(max_connections=num_clients, max_keepalive_connections=num_clients)
    async with httpx.AsyncClient(timeout=60, limits=limits) as client:

        async def ask() -> None:
            for _ in range(num_each):
                try:
                    found[str((await client.post(f"{url}/classify", content=data)).status_code)] += 1
                except httpx.HTTPError as error:
                    found[type(error).__name__] += 1

        await asyncio.gather(*(ask() for _ in range(num_clients)))
    return found


def test_overload_is_answered_at_once_and_passes(server: Server, jpeg_bytes: object) -> None:
    large = jpeg_bytes(0, 4000, 3000)  # type: ignore[operator]
    found = asyncio.run(_load(server.url, large, 48, 2))
    assert found["503"] > 0, found
    assert found["200"] > 0, found
    assert {*found} == {"200", "503"}
    assert asyncio.run(_load(server.url, large, 1, 3)) == {"200": 3}


@pytest.mark.fault
def test_a_killed_replica_takes_at_most_its_own_requests_with_it(server: Server, jpeg_bytes: object) -> None:
    replicas = _replicas(server.process)
    assert len(replicas) == 2
    data, num_clients = jpeg_bytes(0, 60, 60), 4  # type: ignore[operator]

    async def kill_while_asked() -> Counter[str]:
        asking = asyncio.create_task(_load(server.url, data, num_clients, 150))
        await asyncio.sleep(0.5)
        assert not asking.done()
        replicas[0].kill()
        return await asking

    found = asyncio.run(kill_while_asked())
    num_lost = found.total() - found["200"]
    assert num_lost <= 4, found  # max_ongoing_requests: what one replica holds
    deadline = time.monotonic() + START_SECONDS
    while len(_replicas(server.process)) < 2:
        assert time.monotonic() < deadline, "no new replica"
        time.sleep(0.5)


def _replicas(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ServeReplica" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_sigterm_ends_it_and_leaves_no_process(server: Server) -> None:
    """The last test of this file: it ends the server."""
    processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    said = server.errors.with_name("out").read_text() + server.errors.read_text()
    assert "graceful_shutdown" not in said, "Ray tells of what it kills itself"
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive


def test_ray_serve_takes_our_callback_by_this_name() -> None:
    """An environment variable that nobody reads any more would be silent."""
    from ray.serve._private import constants

    from fruitcnn.serving import CALLBACK_VARIABLE

    assert CALLBACK_VARIABLE in Path(constants.__file__).read_text()
