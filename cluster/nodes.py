"""A Ray node as a child process: started until it is up, ended with all that it started. For local.py and hosts.py."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.local_s3 import free_ports

READY_SECONDS = 180.0
START_TRIES = 4
STOP_SECONDS = 15.0
OBJECT_STORE_BYTES = 200_000_000
STARTED = "Ray runtime started"
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "TF_CPP_MIN_LOG_LEVEL": "3", "RAY_DISABLE_IMPORT_WARNING": "1"}


@dataclass(frozen=True)
class Node:
    """One running `ray start --block`: its name, process and log."""

    name: str
    process: subprocess.Popen[bytes] = field(repr=False)
    log: Path


def environment_of(settings: Mapping[str, str], token: str) -> dict[str, str]:
    """What a node is to know: this process's environment, `settings`, and the token that it asks everyone for."""
    known = {**os.environ, **_QUIET, **settings, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    known["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "PYTHONPATH"):  # the submitted code counts, not this one
        known.pop(name, None)
    return known


def start_node(
    name: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    logs: Path,
    cores: set[int] | None = None,
    host: str = "127.0.0.1",
    within: Sequence[str] = (),
) -> Node:
    """Start `ray start arguments`, behind the command `within`, until it is up; RuntimeError with the end of its log.

    Ray gives its own processes 30 s, which a busy machine may exceed: then once more.
    """
    for tries_left in reversed(range(START_TRIES)):
        node = _spawn(name, [*arguments, f"--node-ip-address={host}"], environment, logs, cores, within)
        try:
            problem = _wait(node)
        except BaseException:
            end(node.process)
            raise
        if problem is None:
            return node
        end(node.process)
        if not tries_left or "timed out during startup" not in problem:
            raise RuntimeError(f"{name}: {problem}")
    raise AssertionError("unreachable")


def _spawn(
    name: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    logs: Path,
    cores: set[int] | None,
    within: Sequence[str],
) -> Node:
    agent, grpc, metrics, environments = free_ports(4, None)
    command = [*within, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats",
               "--min-worker-port=0", "--max-worker-port=0",
               f"--object-store-memory={OBJECT_STORE_BYTES}", f"--dashboard-agent-listen-port={agent}",
               f"--dashboard-agent-grpc-port={grpc}", f"--metrics-export-port={metrics}",
               f"--runtime-env-agent-port={environments}", *arguments]  # fmt: skip
    log = logs / f"{name}.log"

    def prepare() -> None:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # a killed parent must not leave a cluster behind
            if cores:
                os.sched_setaffinity(0, cores)

    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=dict(environment), cwd=logs, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True, preexec_fn=prepare,
        )  # fmt: skip
    return Node(name, process, log)


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a node and everything it started; each by its own id."""
    import psutil  # comes with Ray

    children: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    if process.poll() is None:
        process.kill()
    process.wait()
    psutil.wait_procs(children, timeout=5)


def _wait(node: Node) -> str | None:
    """None when the node is up, else what happened, with the end of its log."""
    deadline = time.monotonic() + READY_SECONDS
    while STARTED not in (text := node.log.read_text(errors="replace")):
        if node.process.poll() is not None:
            return f"ended: {text[-1500:]}"
        if time.monotonic() > deadline:
            return f"not up after {READY_SECONDS:.0f} s: {text[-1500:]}"
        time.sleep(0.2)
    return None
