"""A Ray cluster on this machine, to try everything that a real one does: `make local-cluster`.

    python -m cluster.local [--workers 2] [--directory work/local-cluster]

A head that does no work, workers with cores of their own, an S3 server, token authentication on: all in processes of
this command, ended by Ctrl-C. DIRECTORY/environment (readable by you alone) holds the lines another shell needs:

    source work/local-cluster/environment
    python -m jobs.submit pipeline --follow -- --source synthetic:3x20 --work s3://fruitcnn/work

The nodes know the S3 server's keys, as nodes in a cloud know their role: submitted jobs bring none.
"""

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.local_s3 import LocalS3, free_ports, local_s3
from cluster.nodes import READY_SECONDS, Node, end, environment_of, start_node


@dataclass(frozen=True)
class LocalCluster:
    """A running cluster: the URL of its dashboard and job server, the address that nodes join, its token and nodes."""

    url: str
    gcs_address: str
    token: str = field(repr=False)
    nodes: Sequence[Node]
    folder: Path
    """Ray's own files and logs: {head,w1,w2}/session_latest/logs."""

    @property
    def environment(self) -> dict[str, str]:
        """What jobs.submit needs to know."""
        return {"RAY_API_SERVER_ADDRESS": self.url, "RAY_AUTH_TOKEN": self.token}


@contextlib.contextmanager
def local_cluster(
    environment: Mapping[str, str], worker_cpus: Sequence[int] = (1, 1), folder: Path | None = None
) -> Iterator[LocalCluster]:
    """Start a head and one worker for each of `worker_cpus`, yield when all have joined, end every process after it.

    `environment` is what the nodes know besides this process's (the AWS_* of a bucket). RuntimeError, with the end of
    the log, when a node does not come up. Call it from the main thread: nodes end with the thread that started them.
    """
    with contextlib.ExitStack() as stack:
        # Ray's sockets lie below it, and a socket's path has at most 107 characters.
        temp = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fcnn-", dir="/tmp")))
        logs = folder or temp
        logs.mkdir(parents=True, exist_ok=True)
        token = secrets.token_hex(32)
        gcs, dashboard, client = free_ports(3, None)
        known = environment_of(environment, token)
        address = f"127.0.0.1:{gcs}"
        head = ["--head", f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
                f"--ray-client-server-port={client}", f"--temp-dir={temp / 'head'}", "--num-cpus=0"]  # fmt: skip
        nodes = [start_node("head", head, known, logs)]
        stack.callback(end, nodes[0].process)
        for number, (cpus, cores) in enumerate(zip(worker_cpus, _cores(worker_cpus), strict=True), 1):
            # A folder of its own, as on a host of its own: Ray unpacks submitted code into it, and deletes it, by node.
            joined = [f"--address={address}", f"--num-cpus={cpus}", f"--temp-dir={temp / f'w{number}'}"]
            nodes.append(start_node(f"worker-{number}", joined, known, logs, cores))
            stack.callback(end, nodes[-1].process)
        cluster = LocalCluster(f"http://127.0.0.1:{dashboard}", address, token, nodes, temp)
        if _status(cluster.url) != 401:
            raise RuntimeError(f"{cluster.url} answers to anyone: token authentication is not on")
        yield cluster


def _cores(worker_cpus: Sequence[int]) -> list[set[int] | None]:
    """Cores of its own for each worker, where the machine has enough of them."""
    free = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if sum(worker_cpus) > len(free):
        return [None] * len(worker_cpus)
    starts = [sum(worker_cpus[:index]) for index in range(len(worker_cpus))]
    return [set(free[start : start + cpus]) for start, cpus in zip(starts, worker_cpus, strict=True)]


def _status(url: str) -> int:
    """The HTTP status with which the job server answers to a request without a token; 0 for no answer."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/api/version", timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            time.sleep(0.5)
    return 0


def write_environment(directory: Path, cluster: LocalCluster, s3: LocalS3) -> Path:
    """Write the lines that another shell needs to DIRECTORY/environment, readable by this user alone."""
    file = directory / "environment"
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
        for name, value in (cluster.environment | s3.environment).items():
            print(f"export {name}={value}", file=output)
    return file


def main() -> None:
    """Run the cluster in the foreground until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="worker nodes; default: %(default)s")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs of each worker; default: %(default)s")
    parser.add_argument("--directory", default="work/local-cluster", help="logs and bucket; default: %(default)s")
    arguments = parser.parse_args()
    if arguments.workers < 1 or arguments.cpus < 1:
        parser.error("--workers and --cpus: wanted at least 1")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    directory = Path(arguments.directory).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            s3 = stack.enter_context(local_s3(directory / "s3"))
            print("starting a head and its workers; this takes half a minute", flush=True)
            cpus = [arguments.cpus] * arguments.workers
            cluster = stack.enter_context(local_cluster(s3.environment, cpus, directory / "logs"))
        except ValueError as error:
            parser.error(str(error))
        except RuntimeError as error:
            sys.exit(f"local cluster: {error}")
        file = write_environment(directory, cluster, s3)
        stack.callback(file.unlink, missing_ok=True)
        print(f"{len(cpus)} workers of {arguments.cpus} CPU, s3://{s3.bucket}, dashboard {cluster.url}")
        print(f"in another shell:  source {file}", flush=True)
        print("  python -m jobs.submit pipeline --follow -- --source synthetic --work s3://fruitcnn/work", flush=True)
        while not stop.wait(0.5):
            for node in cluster.nodes:
                if node.process.poll() is not None:
                    sys.exit(f"local cluster: {node.name} ended by itself; its log is {node.log}")
    shutil.rmtree(directory / "s3", ignore_errors=True)


if __name__ == "__main__":
    main()
