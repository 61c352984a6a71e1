"""Parts classified by the job's own processes while Ray comes up; a small job is done before Ray would have started.

Used by execute. Ray and its actors need ten to twenty seconds; this process has read the plan and proven the model
already, so it and its crew take parts from the front of the list until Ray's actors take over the rest. A part is put
if absent, whoever made it.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

RAY_PAYS_SECONDS = 20.0
"""With less work than this left, Ray and its actors would not be up before it is done."""

NO_MORE_CPUS_PAYS_SECONDS = 300.0
"""The same where this process has all the CPUs there are: what Ray brings is that an actor that dies is replaced."""

HAND_OVER_SECONDS = 6.0
"""How long Ray's actors take, once Ray is up, to finish a first part: so long this process works on."""

_PATIENCE_SECONDS = 5.0


class HeadStart:
    """Works through parts from the front: a context manager that ends with its last part.

    works: of each thread, what does one part; what it raises is raised again by ray_pays and at the end. pays_seconds:
    with more work than this left, Ray is worth its start.
    """

    def __init__(
        self, parts: Sequence[int], works: Sequence[Callable[[int], None]], pays_seconds: float = RAY_PAYS_SECONDS
    ) -> None:
        self._parts = deque(parts)
        self._works = works
        self._pays_seconds = pays_seconds
        self._changed = threading.Condition()
        self._num_done = 0
        self._num_lanes = len(works)
        self._error: BaseException | None = None
        self._pool = ThreadPoolExecutor(len(works), thread_name_prefix="here")

    def __enter__(self) -> Self:
        self._started_seconds = time.monotonic()
        for work in self._works:
            self._pool.submit(self._lane, work)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind:
            self._stop()
        self._pool.shutdown()
        if self._error and not kind:
            raise self._error

    def ray_pays(self) -> bool:
        """Wait until it is plain that Ray is worth its start (True), or until all is done (False)."""
        with self._changed:
            while self._num_lanes:
                if self._is_rate_known() and len(self._parts) / self._parts_per_second() > self._pays_seconds:
                    return True
                self._changed.wait(timeout=0.5)
        if self._error:
            raise self._error
        return False

    def hand_over(self) -> list[int]:
        """Give up, and return, all parts but those that can be done here until Ray's actors have done their first."""
        with self._changed:
            num_kept = int(self._parts_per_second() * HAND_OVER_SECONDS)
            return [self._parts.pop() for _ in range(len(self._parts) - num_kept)][::-1]

    def _is_rate_known(self) -> bool:
        waited_seconds = time.monotonic() - self._started_seconds
        return self._num_done >= len(self._works) or waited_seconds > _PATIENCE_SECONDS

    def _parts_per_second(self) -> float:
        return max(1, self._num_done) / max(1e-6, time.monotonic() - self._started_seconds)

    def _lane(self, work: Callable[[int], None]) -> None:
        try:
            while (part := self._next()) is not None:
                work(part)
                with self._changed:
                    self._num_done += 1
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - raised again where somebody waits
            self._error = error
            self._stop()
        finally:
            with self._changed:
                self._num_lanes -= 1
                self._changed.notify_all()

    def _next(self) -> int | None:
        with self._changed:
            return self._parts.popleft() if self._parts else None

    def _stop(self) -> None:
        with self._changed:
            self._parts.clear()
