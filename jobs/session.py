"""The Ray session of a job: started once, quiet, and ended by whoever started it."""

import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from fruitcnn.errors import UsageError
from fruitcnn.native_output import held_stderr

# Ray keeps sockets under its temp dir, and a socket's path has at most 107 characters, 60 of them Ray's own.
LONGEST_TEMP_CHARS = 40
START_TRIES = 4
ANSWER_SECONDS = 30.0
"""A head that restarts is up again by then; Ray itself would wait for minutes, without a word."""

# Workers inherit these. They silence what a user cannot act on; what is set already stays.
QUIET = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_RAISE_ORIGINAL_MAP_EXCEPTION": "1",
    "RAY_DATA_LOGGING_CONFIG": str(Path(__file__).with_name("ray_data_logging.yaml")),
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def be_quiet() -> None:
    """Set what QUIET says, before Ray's libraries are imported: they read it then."""
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})


@contextmanager
def ray_session() -> Iterator[None]:
    """A Ray session: the one already running in this process, the cluster at RAY_ADDRESS, or a new local one.

    Only a session started here is shut down at the end. FRUITCNN_TRACEBACK=1 shows what workers print.
    """
    be_quiet()
    import ray

    if ray.is_initialized():
        yield
        return
    talkative = bool(os.environ.get("FRUITCNN_TRACEBACK"))
    level = logging.INFO if talkative else logging.ERROR
    address = os.environ.get("RAY_ADDRESS")
    local = {} if address else _local_settings()
    if address:
        _require_answer(address)
    else:
        _assert_loopback()
    _start({"logging_level": level, "log_to_driver": talkative, **local})
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def ray_when_needed(
    on_start: Callable[[], None] = lambda: None,
) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Yields session(): who enters it has Ray, which starts for the first one and stays to the end of this block."""
    be_quiet()  # what is imported before the first one enters may import Ray's libraries
    with ExitStack() as stack:
        is_open = False

        @contextmanager
        def session() -> Iterator[None]:
            nonlocal is_open
            if not is_open:
                stack.enter_context(ray_session())
                is_open = True
                on_start()
            yield

        yield session


def root_cause(error: BaseException) -> BaseException:
    """The error that user code raised, out of the wrappers that Ray, Ray Data and Ray Train put around it."""
    inner = [found for found in _wrapped(error) if isinstance(found, BaseException) and found is not error]
    roots = [root_cause(found) for found in inner]
    # When one training worker fails, its peers fail with it: the one that says more than "connection lost" counts.
    return next((root for root in roots if is_ours(root)), roots[0] if roots else error)


def is_ours(error: BaseException) -> bool:
    """Whether this project raised it for a person to read: its message is enough, no traceback is needed."""
    return isinstance(error, ValueError | OSError) and type(error).__module__.split(".")[0] in ("fruitcnn", "jobs")


def _wrapped(error: BaseException) -> list[Any]:
    if not type(error).__module__.startswith("ray.") and "RayTaskError" not in type(error).__name__:
        return []
    failures = list(getattr(error, "worker_failures", {}).values()) or [getattr(error, "controller_failure", None)]
    return [*failures, getattr(error, "cause", None), getattr(error, "_base_exc", None), error.__cause__]


def _assert_loopback() -> None:
    """Say at once what Ray would wait for without end and without a word: its processes talk over 127.0.0.1."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        raise UsageError(
            f"this machine does not reach itself at 127.0.0.1 ({error.strerror or error}), and Ray's processes talk "
            "over it; bring the loopback interface up: ip link set lo up"
        ) from error


def _require_answer(address: str) -> None:
    """UsageError if nobody listens at host:port of RAY_ADDRESS for ANSWER_SECONDS; what is no host:port is Ray's."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    until = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() > until:
                why = getattr(error, "strerror", None) or str(error)
                raise UsageError(
                    f"RAY_ADDRESS={address}: nobody answers there ({why.lower()}): is the cluster up? Without "
                    f"RAY_ADDRESS the job runs on this machine"
                ) from error
        time.sleep(1)


def _start(settings: dict[str, Any]) -> None:
    import psutil  # comes with Ray
    import ray

    for tries_left in reversed(range(START_TRIES)):
        before = set(psutil.Process().children(recursive=True))
        try:
            with held_stderr(), _without_servers() if "include_dashboard" in settings else nullcontext():
                ray.init(**settings)
            return
        except KeyboardInterrupt:
            _end_new(before)
            raise
        except Exception as error:
            # Ray gives its own processes 30 s, whatever is set; a busy machine needs longer the first time, because
            # each of them imports Ray from a cold disk.
            if not tries_left or "timed out during startup" not in str(error):
                raise
            print("Ray was slow to start (is the machine busy?): starting it again", file=sys.stderr)
            _end_new(before)
            ray.shutdown()


def _end_new(before: set[Any]) -> None:
    """End what a start that failed left behind: Ray forgets it, and it would slow the next start down."""
    import psutil

    processes = [child for child in psutil.Process().children(recursive=True) if child not in before]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=5)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


@contextmanager
def _without_servers() -> Iterator[None]:
    """Let Ray start without the processes that nobody in a local session asks anything.

    The dashboard's server (there even with include_dashboard=False), the autoscaler's monitor and the shipping of logs
    each import Ray before the next process starts: 4 of the 9 CPU seconds of a start. Ray has no setting for them.
    """
    from ray._private.node import Node

    unneeded = ["start_monitor", "start_api_server"]
    if not os.environ.get("FRUITCNN_TRACEBACK"):
        unneeded.append("start_log_monitor")
    kept = {name: getattr(Node, name) for name in unneeded if hasattr(Node, name)}
    for name in kept:
        setattr(Node, name, lambda _, **__: None)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Node, name, method)


def _local_settings() -> dict[str, Any]:
    # Nobody reads the metrics here, and their exporter complains when the agent that serves them is late.
    settings: dict[str, Any] = {"include_dashboard": False, "_system_config": {"enable_metrics_collection": False}}
    # Without it Ray joins a cluster that somebody else runs on this machine.
    settings["address"] = "local"
    if len(tempfile.gettempdir()) > LONGEST_TEMP_CHARS:
        settings["_temp_dir"] = "/tmp/ray"
    return settings
