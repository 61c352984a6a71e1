"""A real S3 server on this machine (SeaweedFS), for the tests, the demo and `make s3`.

    python -m cluster.local_s3 [--directory DIR] [--port N] [--bucket NAME]

runs it in the foreground, prints the `export AWS_...` lines for another shell, and stops on Ctrl-C. Linux and macOS.
It wipes DIR first: SeaweedFS reads the settings of an earlier start again from there.
"""

import argparse
import contextlib
import ctypes
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

READY_SECONDS = 60.0
STOP_SECONDS = 10.0
MARKER = ".fruitcnn-local-s3"
PORT_FLAGS = ("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
              "filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc")  # fmt: skip


@dataclass(frozen=True)
class LocalS3:
    """A running server: its endpoint, its bucket and its one key pair (the secret stays out of repr)."""

    endpoint_url: str
    bucket: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    log: Path
    process: subprocess.Popen[bytes] = field(repr=False)
    ports: tuple[int, ...] = field(default=(), repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """The AWS_* variables with which any S3 client of this machine finds the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextlib.contextmanager
def local_s3(
    directory: str | Path,
    bucket: str = "fruitcnn",
    access_key: str | None = None,
    secret_key: str | None = None,
    port: int | None = None,
    host: str = "127.0.0.1",
    within: Sequence[str] = (),
) -> Iterator[LocalS3]:
    """Start a server that keeps its data in `directory` (wiped first), yield it when ready, stop it at the end.

    Call it from the main thread: on Linux the server ends with the thread that started it, even a killed one.
    `host` is the address it listens on, `within` a command to run it behind (a network namespace's).
    Random keys unless given: an answer to them proves that the port is ours. Raises ValueError for a folder or port
    that is in use, RuntimeError, with the end of the server's log, when the server does not come up or lets a wrong
    secret in.
    """
    directory = Path(directory).absolute()
    keys = (access_key or f"fruit{secrets.token_hex(6)}", secret_key or secrets.token_hex(20))
    with _locked(directory):
        yield from _run(_start(directory, bucket, keys, port, host, within))


def _run(server: LocalS3) -> Iterator[LocalS3]:
    try:
        if not _refuses_wrong_key(server):
            raise RuntimeError(
                f"{server.endpoint_url} answers to a wrong secret: it is open to everyone on this machine"
            )
        yield server
    finally:
        _stop(server.process, server.ports)


def _start(
    directory: Path, bucket: str, keys: tuple[str, str], port: int | None, host: str, within: Sequence[str]
) -> LocalS3:
    """Start until ready. A free port may be taken between our look and the server's bind, so a second try is due."""
    for attempt in (1, 2):
        _wipe(directory)
        ports = free_ports(len(PORT_FLAGS), port)
        process = _spawn(directory, bucket, keys, ports, host, within)
        server = LocalS3(f"http://{host}:{ports[0]}", bucket, *keys, directory / "weed.log", process, tuple(ports))
        try:
            problem = _wait_until_ready(server)
        except BaseException:
            _stop(process, ports)
            raise
        if problem is None:
            return server
        _stop(process, ports)
        if attempt == 2 or port is not None:
            tail = server.log.read_text(errors="replace")[-2000:].replace(keys[1], "***")
            raise RuntimeError(f"SeaweedFS did not come up at {server.endpoint_url}: {problem}\n{tail}")
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Claim an empty folder, or one of an earlier server: a mistyped --directory must not cost anybody's files."""
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()) and not (directory / MARKER).exists():
        raise ValueError(f"--directory: {directory} holds files that are not a local S3 server's; name an empty folder")
    with (directory / MARKER).open("a") as marker:
        try:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"--directory: another server is running in {directory}; name another folder") from error
        yield


def _wipe(directory: Path) -> None:
    for child in directory.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        elif child.name != MARKER:
            child.unlink()


def free_ports(num_ports: int, first: int | None) -> list[int]:
    """Distinct free ports; SeaweedFS itself would silently take another one in place of a busy one."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num_ports)]
        for index, each in enumerate(sockets):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                each.bind(("127.0.0.1", first if index == 0 and first else 0))
            except OSError as error:
                raise ValueError(f"--port: {first} is not free ({error.strerror}); name another one") from error
        return [each.getsockname()[1] for each in sockets]


def _spawn(
    directory: Path, bucket: str, keys: tuple[str, str], ports: list[int], host: str, within: Sequence[str]
) -> subprocess.Popen[bytes]:
    weed = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if weed is None:
        raise RuntimeError("no `weed` program: install the development dependencies first (make setup)")
    (directory / "data").mkdir()
    command = [*within, weed, "-v=0", "mini", f"-dir={directory / 'data'}", f"-ip={host}", f"-ip.bind={host}",
               f"-bucket={bucket}", "-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
               "-admin.ui=false", "-webdav=false",
               *(f"-{flag}={port}" for flag, port in zip(PORT_FLAGS, ports, strict=True))]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    environment |= {"AWS_ACCESS_KEY_ID": keys[0], "AWS_SECRET_ACCESS_KEY": keys[1]}
    with (directory / "weed.log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True, preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )  # fmt: skip


def _die_with_parent() -> None:
    """Runs in the child: a parent killed with SIGKILL cannot stop its server, so the kernel does (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _list_status(server: LocalS3, secret_key: str) -> str:
    """`ok`, or the S3 error code or the exception name with which a listing of the bucket was answered."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.Session(server.access_key, secret_key, region_name="us-east-1").client(
        "s3",
        endpoint_url=server.endpoint_url,
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10, proxies={}),
    )
    try:
        client.list_objects_v2(Bucket=server.bucket, MaxKeys=1)
    except ClientError as error:
        return str(error.response.get("Error", {}).get("Code"))
    except BotoCoreError as error:
        return type(error).__name__
    finally:
        client.close()
    return "ok"


def _wait_until_ready(server: LocalS3) -> str | None:
    """None when the server answers to its own key, else what went wrong."""
    deadline = time.monotonic() + READY_SECONDS
    status = "no answer"
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            return f"it ended with exit code {server.process.returncode}"
        status = _list_status(server, server.secret_key)
        if status == "ok":
            return None
        time.sleep(0.1)
    return f"last answer after {READY_SECONDS:.0f} s: {status}"


def _refuses_wrong_key(server: LocalS3) -> bool:
    return _list_status(server, "wrong" + server.secret_key) in ("SignatureDoesNotMatch", "AccessDenied")


def _stop(process: subprocess.Popen[bytes], ports: Sequence[int]) -> None:
    """SIGTERM, a bounded wait, SIGKILL: only ever this one process; then the sockets that it leaves in /tmp."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for port in ports:
        for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # where SeaweedFS puts them, whatever TMPDIR says
            left.unlink(missing_ok=True)


def main() -> None:
    """Run the server in the foreground until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", help="where it keeps its data (wiped first); default: a temporary folder")
    parser.add_argument("--port", type=int, help="port of the S3 endpoint; default: a free one")
    parser.add_argument("--bucket", default="fruitcnn", help="bucket to create; default: %(default)s")
    arguments = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with contextlib.ExitStack() as stack:
        directory = arguments.directory or stack.enter_context(tempfile.TemporaryDirectory(prefix="fruitcnn-s3-"))
        try:
            server = stack.enter_context(local_s3(directory, arguments.bucket, port=arguments.port))
        except ValueError as error:
            parser.error(str(error))
        except RuntimeError as error:
            sys.exit(f"local_s3: {error}")
        print(*(f"export {key}={value}" for key, value in server.environment.items()), sep="\n")
        print(f"# s3://{server.bucket} is ready: paste the lines above into another shell; Ctrl-C stops it", flush=True)
        while not stop.wait(0.5):
            if server.process.poll() is not None:
                sys.exit(f"local_s3: the server ended by itself; its log is {server.log}")


if __name__ == "__main__":
    main()
