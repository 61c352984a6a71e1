"""Processes beside the job's own that classify parts, one a CPU: each has an interpreter of its own. Used by execute.

Two threads of one interpreter wait for each other's lock some nine times a picture, and lose a quarter of both CPUs by
it; two processes lose nothing. A member reads part numbers from its standard input, commits the parts, and says
an Outcome for each; it ends when the job's process does, however that ends.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import IO, Any, Self

from fruitcnn.books import ClassifyError
from fruitcnn.orders import CALLS_PER_ACTOR, Options, Outcome

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


class Member:
    """A process that classifies parts of one plan; a context manager that ends it.

    Takes what ClassifyActor takes. run may be called from several threads: what is asked for at once is worked on at
    once.
    """

    def __init__(self, predictions: str, model_uri: str, runtime: str, options: Options) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fruitcnn.crew"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if _is_talkative() else subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
        )
        assert self._process.stdin
        self._orders: IO[bytes] = self._process.stdin
        self._asked: dict[int, Future[Outcome]] = {}
        self._lock = threading.Lock()
        self._is_gone = False
        self._say([predictions, model_uri, runtime, options.model_dump(mode="json")])
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

    def run(self, part: int) -> Outcome:
        """Have one part classified and committed; ClassifyError if the process ended instead."""
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


def main() -> None:
    """Do what standard input says until it ends: a line with the order, then a part number each."""
    # Ctrl-C goes to all processes of a terminal; it is the job's own that decides, and then this input ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints is no answer
    lines, lock = sys.stdin.buffer, threading.Lock()
    classify_part = _prepared(*json.loads(lines.readline() or "[null, null, null, null]"))

    def work(part: int) -> None:
        said = classify_part(part).model_dump_json().encode() + b"\n"
        with lock:
            answers.write(said)

    pool = ThreadPoolExecutor(CALLS_PER_ACTOR)
    for line in lines:
        pool.submit(work, int(line))
    os._exit(0)  # done, stopped or killed: what is under way now is done again by whoever continues the job


def _prepared(predictions: str, model_uri: str, runtime: str, options: Any) -> Callable[[int], Outcome]:
    """A function that classifies a part; where that fails unforeseen, it answers with the error."""
    from fruitcnn.infer import ClassifyActor

    lock = threading.Lock()

    @cache
    def actor() -> ClassifyActor:
        return ClassifyActor(predictions, model_uri, runtime, Options.model_validate(options))

    def work(part: int) -> Outcome:
        try:
            with lock:
                found = actor()
            return found.run(part)
        except Exception as error:  # noqa: BLE001 - for the job's own process to say
            if _is_talkative():
                traceback.print_exc()
            return Outcome(part=part, error=f"part {part}: {type(error).__name__}: {error}")

    return work


def _is_talkative() -> bool:
    return bool(os.environ.get("FRUITCNN_TRACEBACK"))


if __name__ == "__main__":
    main()
