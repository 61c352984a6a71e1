"""Load on jobs.serve: requests/s and latency at 1, 16 and 64 clients, with and without batching.

    python bench/serving.py --model work/model --picture apple.jpg

A client is an asyncio connection kept alive, which asks again as soon as it is answered; clients and server share this
machine. 503 is an answer too, counted apart.
"""

import argparse
import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

START_SECONDS = 240.0


class Load(NamedTuple):
    """What some clients saw: requests answered 200 a second, their latencies in milliseconds, and other statuses."""

    per_second: float
    p50_ms: float
    p99_ms: float
    num_refused: int


def main() -> None:
    """Start a server for each batch size, and ask it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--picture", required=True, type=Path)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="batch sizes; 1 is no batching")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--haproxy", action="store_true", help="as jobs.serve has it")
    asked = parser.parse_args()
    data = asked.picture.read_bytes()
    print("| batching | clients | requests/s | p50 ms | p99 ms | refused |\n|---|---|---|---|---|---|", flush=True)
    for batch_size in asked.batch:
        with server(asked.model, batch_size, has_haproxy=asked.haproxy) as (port, _):
            asyncio.run(load(port, data, 4, 2.0))  # the first requests warm it up
            for num_clients in asked.clients:
                found = asyncio.run(load(port, data, num_clients, asked.seconds))
                name = "off" if batch_size == 1 else f"up to {batch_size}"
                print(
                    f"| {name} | {num_clients} | {found.per_second:,.0f} | {found.p50_ms:.1f} | {found.p99_ms:.1f} "
                    f"| {found.num_refused:,} |",
                    flush=True,
                )


class Started(NamedTuple):
    """A server that says it is ready: its port, and what it printed until then."""

    port: int
    said: str


@contextmanager
def server(model: str, batch_size: int, top_k: int = 5, has_haproxy: bool = False) -> Iterator[Started]:
    """jobs.serve with one replica, in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jobs.serve", "--model", model, "--port", str(port), "--max-replicas", "1"]
    command += ["--batch-size", str(batch_size), "--max-ongoing-requests", "64", "--top-k", str(top_k)]
    command += ["--haproxy"] if has_haproxy else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("  description"):  # the last line of its table
                break
        yield Started(port, said)
    finally:
        process.terminate()
        process.wait(120)


async def load(port: int, data: bytes, num_clients: int, seconds: float) -> Load:
    """Ask POST /classify from num_clients connections for so long."""
    latencies: list[float] = []
    refused = 0
    head = f"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\ncontent-length: {len(data)}\r\n\r\n"
    request = head.encode() + data
    end = time.perf_counter() + seconds

    async def client() -> None:
        nonlocal refused
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (started := time.perf_counter()) < end:
            writer.write(request)
            status = await _answer(reader)
            if status == 200:
                latencies.append(time.perf_counter() - started)
            else:
                refused += 1
        writer.close()

    await asyncio.gather(*(client() for _ in range(num_clients)))
    latencies.sort()
    p50, p99 = (1000 * latencies[int(share * (len(latencies) - 1))] for share in (0.5, 0.99))
    return Load(len(latencies) / seconds, p50, p99, refused)


async def _answer(reader: asyncio.StreamReader) -> int:
    """Read one whole response; returns its status."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    if "transfer-encoding: chunked" in head:
        while int(await reader.readline(), 16):
            await reader.readline()
        await reader.readline()
    else:
        await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
    return int(head.split()[1])


if __name__ == "__main__":
    main()
