"""Processes beside the job's own that classify parts, one a CPU: each has an interpreter of its own. Used by execute.

Two threads of one interpreter wait for each other's lock some nine times a picture, and lose a quarter of both CPUs by
it; two processes lose nothing. This is the job's side; what such a process does is in member.py.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from typing import IO, Any, Self

from fruitcnn.books import ClassifyError
from fruitcnn.orders import Options, Outcome

PROCESSES_HERE = 4
"""With more CPUs than these, Ray's actors are worth their start sooner."""

GPU_RUNTIMES = ("tensorflow", "keras")
_LEAST_INPUTS, _LARGE_BYTES = 10_000, 50_000


def pays(num_inputs: int, num_bytes: int, num_parts: int) -> bool:
    """Whether so many inputs are worth a process for each CPU, rather than a thread: those take a second to come up.

    Threads wait for each other with every picture, which is nothing where pictures are large; and a part is the work of
    one process. num_bytes 0: nothing is known.
    """
    is_large = num_bytes > num_inputs * _LARGE_BYTES
    return num_inputs >= _LEAST_INPUTS and num_parts >= num_processes() > 1 and not is_large


def num_processes() -> int:
    """How many processes classify here, the job's own among them: one a CPU."""
    return min(PROCESSES_HERE, len(os.sched_getaffinity(0)))


def is_ray_up() -> bool:
    """Whether this process has a Ray session already, which is then used."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def may_work_here(runtime: str, num_actors: int | None) -> bool:
    """Whether this machine's CPUs may take parts: Ray is not up yet, no GPU is used, nobody asked for actors."""
    return not (is_ray_up() or os.environ.get("RAY_ADDRESS") or num_actors or runtime in GPU_RUNTIMES)


class Crew:
    """The members of a job: started as soon as it is plain that they pay; a context manager that ends them."""

    def __init__(self) -> None:
        self._members: list[Member] = []
        self._until_done = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._until_done.close()

    @property
    def is_started(self) -> bool:
        """Whether there are members."""
        return bool(self._members)

    def start(self, model_uri: str, runtime: str) -> None:
        """Start one for each CPU but this process's own, unless they are there: a second passes until they can work."""
        if not self._members:
            self._members = [Member(model_uri, runtime) for _ in range(num_processes() - 1)]
            for member in self._members:
                self._until_done.enter_context(member)

    def given(self, predictions: str, options: Options) -> list[Callable[[int], Outcome]]:
        """Tell the members whose parts they are to classify, and how; what has one part classified, of each member."""
        for member in self._members:
            member.take(predictions, options)
        return [member.run for member in self._members]


class Member:
    """A process that opens a model and classifies parts of one plan; a context manager that ends it."""

    def __init__(self, model_uri: str, runtime: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fruitcnn.member"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if is_talkative() else subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
        )
        assert self._process.stdin
        self._orders: IO[bytes] = self._process.stdin
        self._asked: dict[int, Future[Outcome]] = {}
        self._lock = threading.Lock()
        self._is_gone = False
        self._say([model_uri, runtime])
        self._listener = threading.Thread(target=self._listen, name="member", daemon=True)
        self._listener.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # what it might still do is not waited for by anybody
        self._process.wait()
        self._listener.join(timeout=5)  # a process that a library left behind may keep the pipe open
        with suppress(BrokenPipeError):
            self._orders.close()

    def take(self, predictions: str, options: Options) -> None:
        """Say whose parts follow, and how they are to be classified; once, before the first part."""
        self._say([predictions, options.model_dump(mode="json")])

    def run(self, part: int) -> Outcome:
        """Have one part classified and committed; ClassifyError if the process ended instead.

        May be called from several threads: what is asked for at once is worked on at once.
        """
        future: Future[Outcome] = Future()
        with self._lock:
            self._asked[part] = future
            if self._is_gone:
                raise self._loss()
            self._say(part)
        return future.result()

    def _say(self, order: Any) -> None:
        try:
            self._orders.write(json.dumps(order).encode() + b"\n")
            self._orders.flush()
        except BrokenPipeError:
            pass  # the listener says so

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            outcome = Outcome.model_validate_json(line)
            with self._lock:
                future = self._asked.pop(outcome.part)
            future.set_result(outcome)
        with self._lock:
            self._is_gone = True
            for future in self._asked.values():
                future.set_exception(self._loss())

    def _loss(self) -> ClassifyError:
        code = self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return ClassifyError(
            f"a process that classified parts ended with {how} (out of memory? a picture that takes a decoder down?)\n"
            f"what is written stays: the same command continues"
        )


def is_talkative() -> bool:
    """Whether people want to see tracebacks."""
    return bool(os.environ.get("FRUITCNN_TRACEBACK"))
