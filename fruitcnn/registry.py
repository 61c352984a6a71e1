"""Which model is in production, and since when: an append-only log in object storage. Between retrain and whoever
takes a model.

    <registry>/promotions/000012.json   one record a decision, put-if-absent, never changed: this module
    <registry>/versions/000007/         the frozen models: versions.py
    <registry>/attempts/000031.json     who works on the registry: lease.py

The champion is what the newest record names, so a roll-back is one more record and the log is the audit trail. Whoever
writes a record says after which one: of two that decide at the same time exactly one is written, and the other learns
what happened meanwhile. No server and no database. Pure.
"""

from __future__ import annotations

import datetime
import getpass
import hashlib
import json
import os
import platform
import re
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from fruitcnn import storage
from fruitcnn.errors import UsageError

SCHEME = "registry:"
BASE_VARIABLE = "FRUITCNN_REGISTRIES"
"""Environment variable: the folder or prefix in which registry:NAME@... looks for a registry NAME."""

Kind = Literal["promoted", "rejected", "rolled back", "taken over", "removed"]

_NO_SEAL = "0" * 64
_NUM_READERS = 16
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_WANTED = f"wanted {SCHEME}NAME@champion, @7 (a version), @2026-11-24 (what was champion at the end of that day, UTC)"


class RegistryError(ValueError):
    """The registry is damaged, or something else was decided meanwhile; the message says what to do."""


class OvertakenError(RegistryError):
    """Another record was written at the number that this one was meant for."""

    def __init__(self, winner: Record) -> None:
        self.winner = winner
        super().__init__(
            f"overtaken: record {winner.number} was written meanwhile ({in_words(winner)}, by {winner.by}): nothing "
            "was changed; look at the list, and run the same command again if it is still wanted"
        )


class Record(BaseModel):
    """One decision about the registry."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    seal: str = Field(_NO_SEAL, description="sha256 of the file's bytes with 64 zeros in place of the seal.")
    number: int = Field(ge=1, description="1, 2, 3 ... without a gap.")
    kind: Kind
    version: int | None = Field(description="The champion from this record on; None while there is none.")
    reason: str = Field(description="Why, in words.")
    evidence: dict[str, Any] = Field(default_factory=dict, description="What the decision stands on.")
    removed: tuple[int, ...] = Field((), description="Versions that gc removed.")
    attempt: int | None = Field(None, description="The attempt (lease) that decided; None: a person.")
    by: str = Field(description="user@host.")
    created_at: AwareDatetime
    nonce: str = Field(default_factory=lambda: uuid.uuid4().hex, description="Tells equal records apart.")

    def to_bytes(self) -> bytes:
        """The JSON text, sealed."""
        return sealed(self.model_copy(update={"seal": _NO_SEAL}).model_dump_json(indent=1))


def sealed(text: str) -> bytes:
    """JSON text that holds 64 zeros as its "seal" -> the bytes to store, with the hash in their place."""
    unsealed = text.encode() + b"\n"
    return unsealed.replace(_NO_SEAL.encode(), hashlib.sha256(unsealed).hexdigest().encode(), 1)


def unsealed(uri: str, data: bytes) -> Any:
    """The parsed JSON of sealed bytes; RegistryError if one of them was changed."""
    try:
        said = json.loads(data)
        seal = str(said["seal"])
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryError(f"{uri}: damaged, not a sealed JSON file ({error}); restore it from a backup") from error
    if hashlib.sha256(data.replace(seal.encode(), _NO_SEAL.encode(), 1)).hexdigest() != seal:
        raise RegistryError(f"{uri}: changed after it was written (its seal does not match); restore it from a backup")
    return said


def record_uri(registry: str, number: int) -> str:
    """Where a record lies."""
    return storage.join(registry, "promotions", f"{number:06d}.json")


def read_record(registry: str, number: int) -> Record:
    """One record. RegistryError if it is damaged or missing."""
    uri = record_uri(registry, number)
    try:
        said = unsealed(uri, storage.read(uri))
        record = Record.model_validate(said)
    except storage.NotFoundError as error:
        raise RegistryError(f"{uri}: missing, although the log goes on behind it; restore it") from error
    except ValidationError as error:
        raise RegistryError(f"{uri}: not a record of schema version 1 ({error.errors()[0]['msg']})") from error
    if record.number != number:
        raise RegistryError(f"{uri}: holds record {record.number}; restore the right one")
    return record


def newest_number(registry: str) -> int:
    """Number of the newest record, 0 while there is none."""
    entries = storage.list_files(storage.join(registry, "promotions"))
    names = (storage.name(entry.uri).removesuffix(".json") for entry in entries)
    return max((int(name) for name in names if name.isdigit()), default=0)


def read_log(registry: str) -> list[Record]:
    """All records, oldest first. RegistryError for a gap or a damaged record."""
    numbers = range(1, newest_number(registry) + 1)
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        return list(pool.map(lambda number: read_record(registry, number), numbers))


def append(
    registry: str,
    kind: Kind,
    version: int | None,
    reason: str,
    *,
    after: int,
    evidence: dict[str, Any] | None = None,
    removed: Sequence[int] = (),
    attempt: int | None = None,
) -> Record:
    """Write the record that follows number `after`. OvertakenError if that number is taken: nothing was written."""
    record = Record(
        number=after + 1, kind=kind, version=version, reason=reason, evidence=evidence or {}, removed=tuple(removed),
        attempt=attempt, by=whoami(), created_at=datetime.datetime.now(datetime.UTC),
    )  # fmt: skip
    data = record.to_bytes()
    uri = record_uri(registry, record.number)
    # A put whose answer was lost on the way says False too: the bytes tell whose record it is.
    if not storage.put_if_absent(uri, data) and storage.read(uri) != data:
        raise OvertakenError(read_record(registry, record.number))
    return read_record(registry, record.number)


def whoami() -> str:
    """user@host of this process."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user need not have a name
        user = str(os.getuid())
    return f"{user}@{platform.node()}"


# --- what the log says


def champion(log: Sequence[Record]) -> int | None:
    """The version in production, None while there is none."""
    return log[-1].version if log else None


def champion_at(log: Sequence[Record], moment: datetime.datetime) -> int | None:
    """The version that was in production at `moment` (with a time zone)."""
    return champion([record for record in log if record.created_at <= moment])


def previous_champion(log: Sequence[Record]) -> int | None:
    """What a roll-back goes to: the champion before the present one. A roll-back takes a step away, adds none."""
    past: list[int] = []
    for record in log:
        if record.version is None or (past and past[-1] == record.version):
            continue
        if record.kind == "rolled back" and record.version in past:
            del past[past.index(record.version) + 1 :]
        else:
            past.append(record.version)
    return past[-2] if len(past) > 1 else None


def named(log: Sequence[Record]) -> set[int]:
    """All versions that were ever champion."""
    return {record.version for record in log if record.version is not None}


def removed(log: Sequence[Record]) -> set[int]:
    """All versions that gc removed."""
    return {version for record in log for version in record.removed}


def in_words(record: Record) -> str:
    """What a record decided, in one line."""
    what = {
        "promoted": f"version {record.version} became champion",
        "rolled back": f"rolled back to version {record.version}",
        "rejected": "challenger rejected" + (f", version {record.version} stays" if record.version else ""),
        "taken over": "taken over",
        "removed": f"removed versions {', '.join(map(str, record.removed))}",
    }[record.kind]
    return f"{what}: {record.reason}"


# --- registry:NAME@champion


def resolve(model: str) -> str:
    """The URI of the frozen model that `registry:NAME@champion`, `@7` or `@2026-11-24` means; others as they are.

    NAME is the registry's URI, or its name under FRUITCNN_REGISTRIES. UsageError if there is no such registry, version
    or champion. What it means can change any time: resolve once, at the start of a job.
    """
    if not model.startswith(SCHEME):
        return model
    name, at, selector = model.removeprefix(SCHEME).rpartition("@")
    if not (name and at and selector):
        raise UsageError(f"{model}: {_WANTED}")
    registry = locate(name)
    log = read_log(registry)
    version = _selected(model, selector, log)
    if version in removed(log):
        raise UsageError(f"{model}: version {version} was removed by gc; see jobs.registry list --registry {registry}")
    uri = version_uri(registry, version)
    if not storage.exists(storage.join(uri, "model.json")):
        raise UsageError(f"{model}: there is no version {version}; see jobs.registry list --registry {registry}")
    return uri


def locate(name: str) -> str:
    """The URI of the registry `name`: a URI as it is, a bare name under FRUITCNN_REGISTRIES where that is set."""
    base = os.environ.get(BASE_VARIABLE)
    return storage.normalise(storage.join(base, name) if base and "/" not in name else name)


def version_uri(registry: str, version: int) -> str:
    """Where the frozen model of a version lies."""
    return storage.join(registry, "versions", f"{version:06d}")


def _selected(model: str, selector: str, log: Sequence[Record]) -> int:
    if selector.isdigit():
        return int(selector)
    if selector == "champion":
        found = champion(log)
        missing = "no champion yet"
    else:
        found = champion_at(log, _moment(model, selector))
        missing = f"no champion at {selector} yet"
    if found is None:
        base = "" if os.environ.get(BASE_VARIABLE) else f", or set {BASE_VARIABLE} to where registries lie"
        raise UsageError(f"{model}: {missing} in that registry: run jobs.retrain or jobs.registry promote{base}")
    return found


def _moment(model: str, selector: str) -> datetime.datetime:
    try:
        moment = datetime.datetime.fromisoformat(selector)
    except ValueError as error:
        raise UsageError(f"{model}: got {selector!r} behind the @, {_WANTED}") from error
    if _DAY.fullmatch(selector):
        moment = moment.replace(hour=23, minute=59, second=59, microsecond=999_999)
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
