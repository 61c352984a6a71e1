"""What a job shows a person: one bar for long work, a short table at the end, and where the results lie."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

RATE_WINDOW_SECONDS = 30.0
PLAIN_LINE_SECONDS = 10.0


@contextmanager
def progress(title: str, total: int | None, unit: str, already: int = 0) -> Iterator[Callable[..., None]]:
    """One progress bar on stderr: yields update(done, note=""), `done` counted in `unit` from 0 to `total`.

    `already` is what an earlier run finished, so that the rate tells of this run. Where stderr is no terminal,
    plain lines come at most every 10 s, and a last one. update may be called from any thread.
    """
    meter = _Meter(total, unit, already)
    if sys.stderr.isatty():
        yield from _bar(title, meter)
    else:
        yield from _lines(title, meter)


def summary(title: str, rows: Mapping[str, Any], where: Mapping[str, Any]) -> None:
    """Print the closing table on stdout: `rows` name -> value, `where` name -> path or URI, whole, on one line."""
    width = max((len(name) for name in [*rows, *where]), default=0)
    print(f"\n{title}")
    for name, value in rows.items():
        print(f"  {name:<{width}}  {_text(value)}")
    for name, value in where.items():
        print(f"  {name:<{width}}  {value}")
    sys.stdout.flush()


class _Meter:
    """How far, how fast, how long still."""

    def __init__(self, total: int | None, unit: str, already: int) -> None:
        self.total, self.unit, self.done, self.already, self.note = total, unit, already, already, ""
        self.started_seconds = time.monotonic()
        self._recent = deque([(self.started_seconds, already)])

    def move(self, done: int, note: str) -> None:
        now = time.monotonic()
        self.done, self.note = done, note
        self._recent.append((now, done))
        while len(self._recent) > 2 and now - self._recent[1][0] > RATE_WINDOW_SECONDS:
            self._recent.popleft()

    def status(self) -> str:
        (since, before), (now, done) = self._recent[0], self._recent[-1]
        rate = (done - before) / (now - since) if now > since else 0.0
        parts = [self._count(), _pace(rate), self.note]
        if rate and self.total and self.total > done:
            parts.insert(2, f"{_clock((self.total - done) / rate)} left")
        return ", ".join(part for part in parts if part)

    def result(self) -> str:
        seconds = time.monotonic() - self.started_seconds
        rate = (self.done - self.already) / seconds if seconds > 0 else 0.0
        return ", ".join(part for part in (f"{self._count()} in {_clock(seconds)}", _pace(rate), self.note) if part)

    def _count(self) -> str:
        return f"{self.done:,} {self.unit}" if self.total is None else f"{self.done:,}/{self.total:,} {self.unit}"


def _bar(title: str, meter: _Meter) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}", markup=False))
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(title, total=meter.total, completed=meter.done, status="")

        def update(done: int, note: str = "") -> None:
            meter.move(done, note)
            bars.update(task, completed=done, status=meter.status())

        try:
            yield update
        finally:
            bars.update(task, status=meter.result())


def _lines(title: str, meter: _Meter) -> Iterator[Callable[..., None]]:
    lock = threading.Lock()
    printed_seconds = meter.started_seconds

    def update(done: int, note: str = "") -> None:
        nonlocal printed_seconds
        with lock:
            meter.move(done, note)
            if time.monotonic() - printed_seconds >= PLAIN_LINE_SECONDS:
                printed_seconds = time.monotonic()
                print(f"{title}: {meter.status()}", file=sys.stderr, flush=True)

    try:
        yield update
    finally:
        print(f"{title}: {meter.result()}", file=sys.stderr, flush=True)


def _pace(rate: float) -> str:
    """So many a second, or the seconds of each where they are few; "" where nothing moved."""
    if rate <= 0:
        return ""
    return f"{_text(rate)}/s" if rate >= 1 else f"{_clock(1 / rate)} each"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).replace("\N{NO-BREAK SPACE}", " ")  # nothing is broken here, and people grep
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.4g}"
