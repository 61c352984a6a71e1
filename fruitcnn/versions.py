"""The frozen models of a registry: added once, never changed, proven on demand, removed when nothing names them.

    <registry>/versions/000007/        a frozen model, as jobs.freeze wrote it; model.json last
    <registry>/versions/000007.json    put-if-absent, before it: which model has this number (sealed)

Between registry, whose log says what the versions are for, and retrain. Pure.
"""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from fruitcnn import bundle, frozen, lease, registry, storage
from fruitcnn.errors import UsageError
from fruitcnn.registry import Record, RegistryError

MIN_AGE = datetime.timedelta(days=7)
"""What is younger is left alone by gc: somebody may be about to promote it."""

_GC_SECONDS = 600.0


class Version(BaseModel):
    """The entry of one version."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    seal: str = "0" * 64
    version: int = Field(ge=1)
    model_hash: str = Field(description="sha256 of its model.json, so of the whole model.")
    identity: str = Field(description="What the model says of itself: equal for equal answers.")
    num_labels: int
    source: str = Field(description="Where it was added from.")
    by: str = Field(description="user@host.")
    added_at: AwareDatetime


class Finding(NamedTuple):
    """What verify found of one thing; problem None: it is right."""

    what: str
    problem: str | None


def add(registry_uri: str, model_uri: str) -> int:
    """Copy a frozen model into the registry and return its number; a model that is there already keeps its own.

    Numbers are never used twice: the entry of a version that gc removed stays.

    FrozenModelError if the model is damaged.
    """
    description, model_hash = bundle.read_description(model_uri)
    bundle.check_files(model_uri, description, description.files)
    existing, gone = read_all(registry_uri), registry.removed(registry.read_log(registry_uri))
    for entry in existing:
        if entry.model_hash == model_hash and entry.version not in gone:
            _copy(model_uri, registry.version_uri(registry_uri, entry.version))
            return entry.version
    number = max((entry.version for entry in existing), default=0) + 1
    while True:
        entry = Version(
            version=number, model_hash=model_hash, identity=description.identity, num_labels=len(description.labels),
            source=storage.normalise(model_uri), by=registry.whoami(), added_at=datetime.datetime.now(datetime.UTC),
        )  # fmt: skip
        if storage.put_if_absent(_entry_uri(registry_uri, number), registry.sealed(entry.model_dump_json(indent=1))):
            break
        number += 1
    _copy(model_uri, registry.version_uri(registry_uri, number))
    return number


def read_all(registry_uri: str) -> list[Version]:
    """The entries of all versions, oldest first. RegistryError if one is damaged."""
    entries = storage.list_files(storage.join(registry_uri, "versions"))
    folder = len(storage.join(registry_uri, "versions")) + 1
    numbers = [entry.uri[folder:].removesuffix(".json") for entry in entries]
    return [read(registry_uri, int(number)) for number in sorted(numbers) if number.isdigit()]


def read(registry_uri: str, version: int) -> Version:
    """One entry. UsageError if there is no such version, RegistryError if its entry is damaged."""
    uri = _entry_uri(registry_uri, version)
    try:
        return Version.model_validate(registry.unsealed(uri, storage.read(uri)))
    except storage.NotFoundError as error:
        problem = f"--version {version}: there is none; see jobs.registry list --registry {registry_uri}"
        raise UsageError(problem) from error
    except ValidationError as error:
        raise RegistryError(f"{uri}: not the entry of a version ({error.errors()[0]['msg']})") from error


def promote(registry_uri: str, version: int, reason: str, evidence: dict[str, Any] | None = None) -> Record:
    """Make a version the champion, on a person's word. UsageError if it is champion, gone, or there is no such one.

    FrozenModelError if it is damaged, registry.OvertakenError if something else was decided meanwhile.
    """
    log = registry.read_log(registry_uri)
    _require_promotable(registry_uri, version, log)
    return registry.append(registry_uri, "promoted", version, reason, after=len(log), evidence=evidence)


def roll_back(registry_uri: str, version: int | None, reason: str) -> Record:
    """Make the champion before the present one champion again, or an earlier `version`; errors as promote."""
    log = registry.read_log(registry_uri)
    target = registry.previous_champion(log) if version is None else version
    if target is None:
        raise UsageError(f"rollback: there is no champion before the present one in {registry_uri}: nothing to do")
    if target not in registry.named(log):
        raise UsageError(f"--version {target}: was never champion, so nothing rolls back to it; use promote")
    _require_promotable(registry_uri, target, log)
    return registry.append(registry_uri, "rolled back", target, reason, after=len(log))


def _require_promotable(registry_uri: str, version: int, log: Sequence[Record]) -> None:
    if version == registry.champion(log):
        raise UsageError(f"--version {version}: is the champion already, since record {_since(log)}: nothing to do")
    if version in registry.removed(log):
        raise UsageError(f"--version {version}: was removed by gc")
    read(registry_uri, version)
    frozen.verify(registry.version_uri(registry_uri, version))


def _since(log: Sequence[Record]) -> int:
    number = len(log)
    while number > 1 and log[number - 2].version == log[-1].version:
        number -= 1
    return number


def verify(registry_uri: str) -> Iterator[Finding]:
    """Check every byte of every version and every record: a Finding each, as it is known."""
    newest = registry.newest_number(registry_uri)
    log = []
    for number in range(1, newest + 1):
        try:
            log.append(registry.read_record(registry_uri, number))
            yield Finding(f"record {number}", None)
        except (RegistryError, storage.StorageError) as error:
            yield Finding(f"record {number}", str(error))
    for number in sorted((_numbers(registry_uri) | registry.named(log)) - registry.removed(log)):
        yield Finding(f"version {number}", _problem(registry_uri, number))


def _problem(registry_uri: str, version: int) -> str | None:
    uri = registry.version_uri(registry_uri, version)
    try:
        entry = read(registry_uri, version)
        if not storage.exists(storage.join(uri, bundle.DESCRIPTION)):
            remedy = f"promote {entry.source} again, or let gc remove it"
            return f"{uri}: its last file is missing, as when a promotion was stopped: {remedy}"
        if bundle.check_bytes(uri) != entry.model_hash:
            return f"{uri}: holds another model than {_entry_uri(registry_uri, version)} says"
    except (ValueError, storage.StorageError) as error:
        return str(error)
    return None


def collect(registry_uri: str, reason: str, min_age: datetime.timedelta = MIN_AGE) -> list[str]:
    """Remove what no record names and is older than `min_age`; returns what was removed, in words.

    Versions that never were champion, and the work folders of decided challengers. A version that was ever champion
    stays, whatever its age. lease.LeaseHeldError while a retraining runs.
    """
    held = lease.acquire(registry_uri, "gc", _GC_SECONDS)
    done: list[str] = []
    outcome = "failed"
    try:
        with held.kept():
            done = _collect(held, reason, datetime.datetime.now(datetime.UTC) - min_age)
        outcome = "done"
        return done
    finally:
        held.end(outcome, "; ".join(done) or "nothing to remove")


def _collect(held: lease.Lease, reason: str, before: datetime.datetime) -> list[str]:
    log = registry.read_log(held.registry)
    gone = registry.removed(log)
    old = {entry.version for entry in read_all(held.registry) if entry.added_at < before}
    unnamed = sorted(old - registry.named(log) - gone)
    if unnamed:
        # In the log first: a promotion at the same moment wants the same number, so one of the two is not written.
        held.append("removed", registry.champion(log), reason, removed=unnamed)
    for version in sorted(gone | set(unnamed)):  # also what an earlier gc announced and did not finish
        storage.delete_prefix(registry.version_uri(held.registry, version))
    folders = sorted(_decided_work(held.registry, log, before))
    for folder in folders:
        storage.delete_prefix(storage.join(held.registry, "work", folder))
    return [f"version {version}" for version in unnamed] + [f"work/{folder}" for folder in folders]


def _decided_work(registry_uri: str, log: Sequence[Record], before: datetime.datetime) -> set[str]:
    """Work folders whose challenger was decided on before a moment; the champion's stays, to be frozen again."""
    decided = {
        str(record.evidence["work"])
        for record in log
        if record.evidence.get("work")
        and record.created_at < before
        and not (record.kind == "promoted" and record.version == registry.champion(log))
    }
    root = storage.join(registry_uri, "work")
    there = {entry.uri[len(root) + 1 :].split("/")[0] for entry in storage.list_files(root)}
    return there & decided


def _numbers(registry_uri: str) -> set[int]:
    """Numbers of all versions of which there is an entry or a file."""
    root = storage.join(registry_uri, "versions")
    names = {entry.uri[len(root) + 1 :].split("/")[0].removesuffix(".json") for entry in storage.list_files(root)}
    return {int(name) for name in names if name.isdigit()}


def _entry_uri(registry_uri: str, version: int) -> str:
    return storage.join(registry_uri, "versions", f"{version:06d}.json")


def _copy(model_uri: str, target: str) -> None:
    """Copy a model, model.json last; a copy that is complete is left as it is."""
    if storage.exists(storage.join(target, bundle.DESCRIPTION)):
        frozen.verify(target)
        return
    with tempfile.TemporaryDirectory(prefix="fruitcnn-version-") as folder:
        storage.download_directory(model_uri, folder)
        description = Path(folder, bundle.DESCRIPTION)
        said = description.read_bytes()
        description.unlink()
        storage.upload_directory(folder, target)
    storage.put_if_absent(storage.join(target, bundle.DESCRIPTION), said)
    frozen.verify(target)
