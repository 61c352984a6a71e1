"""One writer at a time: a lease in object storage, for jobs that nobody watches. Between registry and retrain.

    <registry>/attempts/000031.json   put-if-absent: who, until when, how it ended; only its holder writes it again

The newest attempt holds the lease until it ends or its time is over; a thread of the holder extends the time. Clocks
decide only how long others wait, never who may publish: an attempt may write the records that follow the newest one
of the moment it began, and whoever takes over from one that did not end first puts a record of its own there. So a
holder that was frozen and wakes up again finds its number taken, whenever it looks.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from fruitcnn import registry, storage
from fruitcnn.registry import Record, RegistryError

_RENEWALS = 4  # per lease time: three may fail before it ends
_TRIES = 5


class LeaseHeldError(RegistryError):
    """Another attempt is under way."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        super().__init__(
            f"attempt {attempt.attempt} ({attempt.job} by {attempt.holder}, {attempt.stage or 'starting'}) runs since "
            f"{attempt.began_at:%Y-%m-%d %H:%M:%S} UTC and holds the lease until {attempt.expires_at:%H:%M:%S}"
        )


class LeaseLostError(RegistryError):
    """This attempt may not write any more: its time ran out, or another one took over."""


class Attempt(BaseModel):
    """What an attempt's file says."""

    model_config = ConfigDict(frozen=True)

    attempt: int
    job: str = Field(description="retrain or gc.")
    holder: str = Field(description="user@host.")
    base: int = Field(description="Number of the newest record when it began.")
    began_at: AwareDatetime
    expires_at: AwareDatetime
    stage: str = Field("", description="What it is at.")
    ended_at: AwareDatetime | None = None
    outcome: str = Field("", description="promoted, rejected, nothing new, failed ...; empty while it runs.")
    words: str = Field("", description="How it ended, in words.")


class Lease:
    """An attempt under way, in the process that holds it."""

    def __init__(self, registry_uri: str, attempt: Attempt, seconds: float) -> None:
        """`seconds`: how long it holds without being extended."""
        self.registry, self.attempt, self.seconds, self.base = registry_uri, attempt, seconds, attempt.base
        self._lock = threading.Lock()
        self._is_lost = False

    def require(self) -> None:
        """Raise LeaseLostError if this attempt must not go on."""
        if not self._is_lost and datetime.datetime.now(datetime.UTC) < self.attempt.expires_at:
            return
        self._is_lost = True
        newest = _newest(self.registry)
        taken = newest > self.attempt.attempt
        why = f"attempt {newest} took over" if taken else "its lease ran out before it could extend it"
        raise LeaseLostError(f"attempt {self.attempt.attempt} stops: {why}; it has published nothing since")

    def extend(self) -> None:
        """Hold the lease for its full time from now on. LeaseLostError if it is over already."""
        self.require()
        if _newest(self.registry) > self.attempt.attempt:
            self._is_lost = True
            self.require()
        self._update(expires_at=datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=self.seconds))

    def enter(self, stage: str) -> None:
        """Say what the attempt is at, for whoever looks. LeaseLostError if it must not go on."""
        self.require()
        self._update(stage=stage)

    def append(self, kind: registry.Kind, version: int | None, reason: str, **more: Any) -> Record:
        """Write this attempt's next record. LeaseLostError or registry.OvertakenError: nothing was written."""
        self.require()
        attempt = self.attempt.attempt
        record = registry.append(self.registry, kind, version, reason, after=self.base, attempt=attempt, **more)
        self.base = record.number
        return record

    def end(self, outcome: str, words: str) -> None:
        """Give the lease back, and say how it ended."""
        self._update(ended_at=datetime.datetime.now(datetime.UTC), outcome=outcome, words=words)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Extend the lease in a thread as long as the block runs."""
        stop = threading.Event()
        thread = threading.Thread(target=self._keep, args=(stop,), daemon=True, name="lease")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _keep(self, stop: threading.Event) -> None:
        while not stop.wait(self.seconds / _RENEWALS):
            try:
                self.extend()
            except LeaseLostError:
                return
            except storage.StorageError:
                continue  # the next one may get through before the time is over

    def _update(self, **changes: Any) -> None:
        with self._lock:
            self.attempt = self.attempt.model_copy(update=changes)
            storage.write(_uri(self.registry, self.attempt.attempt), _to_bytes(self.attempt))


def acquire(registry_uri: str, job: str, seconds: float) -> Lease:
    """Begin an attempt at the registry (a normalised URI). LeaseHeldError if another one is under way."""
    for _ in range(_TRIES):
        lease = _try(registry_uri, job, seconds)
        if lease:
            return lease
        time.sleep(0.1)
    raise RegistryError(f"{registry_uri}: records are written faster than an attempt can begin: try again")


def read_attempts(registry_uri: str, limit: int) -> list[Attempt]:
    """The newest `limit` attempts, newest first."""
    newest = _newest(registry_uri)
    return [_read(registry_uri, number) for number in range(newest, max(0, newest - limit), -1)]


def _try(registry_uri: str, job: str, seconds: float) -> Lease | None:
    newest = _newest(registry_uri)
    before = _read(registry_uri, newest) if newest else None
    now = datetime.datetime.now(datetime.UTC)
    if before and not before.ended_at and now < before.expires_at:
        raise LeaseHeldError(before)
    base = registry.newest_number(registry_uri)
    attempt = Attempt(
        attempt=newest + 1, job=job, holder=registry.whoami(), base=base, began_at=now,
        expires_at=now + datetime.timedelta(seconds=seconds),
    )  # fmt: skip
    if not storage.put_if_absent(_uri(registry_uri, newest + 1), _to_bytes(attempt)):
        raise LeaseHeldError(_read(registry_uri, newest + 1))
    lease = Lease(registry_uri, attempt, seconds)
    if before and not before.ended_at:
        return _fenced(lease, before)
    if registry.newest_number(registry_uri) != base:
        lease.end("withdrawn", "a record was written while it began")
        return None
    return lease


def _fenced(lease: Lease, before: Attempt) -> Lease | None:
    """Occupy the number that an attempt which did not end might still write to."""
    champion = registry.read_record(lease.registry, lease.base).version if lease.base else None
    where = f" at {before.stage}" if before.stage else ""
    reason = (
        f"attempt {before.attempt} ({before.job} by {before.holder}, begun {before.began_at:%Y-%m-%d %H:%M} UTC) "
        f"stopped without a word{where}; attempt {lease.attempt.attempt} goes on"
    )
    try:
        lease.append("taken over", champion, reason)
    except registry.OvertakenError:
        lease.end("withdrawn", "a record was written while it began")
        return None
    return lease


def _newest(registry_uri: str) -> int:
    entries = storage.list_files(storage.join(registry_uri, "attempts"))
    names = (storage.name(entry.uri).removesuffix(".json") for entry in entries)
    return max((int(name) for name in names if name.isdigit()), default=0)


def _read(registry_uri: str, number: int) -> Attempt:
    return Attempt.model_validate_json(storage.read(_uri(registry_uri, number)))


def _uri(registry_uri: str, number: int) -> str:
    return storage.join(registry_uri, "attempts", f"{number:06d}.json")


def _to_bytes(attempt: Attempt) -> bytes:
    return attempt.model_dump_json(indent=1).encode() + b"\n"
