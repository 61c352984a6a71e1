"""A registry in words: what jobs.registry lists and shows. After registry, lease and versions, which it reads. Pure."""

from __future__ import annotations

import datetime
from typing import Any

from fruitcnn import registry
from fruitcnn.lease import Attempt, read_attempts
from fruitcnn.registry import Record, RegistryError
from fruitcnn.versions import Version, read, read_all

CHAMPION_MARK = "<- champion"
_NUM_RECORDS = 20
_NUM_ATTEMPTS = 5


def tables(registry_uri: str) -> dict[str, dict[str, str]]:
    """Title -> name -> line: all versions, the last records of the log, and the last runs of the jobs."""
    log = registry.read_log(registry_uri)
    champion, gone = registry.champion(log), registry.removed(log)
    entries = read_all(registry_uri)
    attempts = read_attempts(registry_uri, _NUM_ATTEMPTS)
    return {
        "versions": {f"version {each.version}": _version(each, champion, gone) for each in entries},
        "log": {f"record {each.number}": line(each) for each in log[-_NUM_RECORDS:]},
        "last runs": {f"attempt {each.attempt}": _attempt(each, log) for each in attempts},
    }


def about(registry_uri: str, version: int | None) -> tuple[int, dict[str, Any]]:
    """A version (None: the champion), and name -> value of what is known of it. RegistryError if there is none."""
    from fruitcnn import bundle

    log = registry.read_log(registry_uri)
    version = version or registry.champion(log)
    if version is None:
        raise RegistryError(f"{registry_uri}: there is no champion yet; give --version N")
    entry = read(registry_uri, version)
    rows: dict[str, Any] = {"added": _version(entry, registry.champion(log), registry.removed(log))}
    rows["from"] = entry.source
    if version not in registry.removed(log):
        description, _ = bundle.read_description(registry.version_uri(registry_uri, version))
        rows |= {"architecture": description.architecture, "classes": ", ".join(description.labels)}
        rows |= {f"{name} accuracy": f"{score['accuracy']:.2%}" for name, score in description.metrics.items()}
    # A record names the champion from then on: of a run of records with the same champion the first one chose it.
    before = [None, *(record.version for record in log)]
    chosen = [each for each in log if each.version == version and before[each.number - 1] != version]
    rows |= {f"record {each.number}": line(each) for each in chosen}
    for each in chosen[-1:]:
        rows |= {f"  {name}": value for name, value in each.evidence.items() if not isinstance(value, dict | list)}
    return version, rows


def line(record: Record) -> str:
    """A record with its time and who wrote it."""
    return f"{record.created_at:%Y-%m-%d %H:%M}  {registry.in_words(record)} (by {record.by})"


def _version(entry: Version, champion: int | None, gone: set[int]) -> str:
    mark = f"  {CHAMPION_MARK}" if entry.version == champion else "  removed" if entry.version in gone else ""
    return f"{entry.added_at:%Y-%m-%d %H:%M}  {entry.num_labels} classes, {entry.model_hash[:12]}, by {entry.by}{mark}"


def _attempt(attempt: Attempt, log: list[Record]) -> str:
    if attempt.ended_at:
        decided = [each for each in log if each.attempt == attempt.attempt and each.kind == attempt.outcome]
        words = f"see record {decided[-1].number}" if decided else attempt.words
        return f"{attempt.ended_at:%Y-%m-%d %H:%M}  {attempt.job}: {attempt.outcome}: {words}"
    until = f"{attempt.expires_at:%H:%M:%S} UTC"
    is_over = attempt.expires_at < datetime.datetime.now(datetime.UTC)
    said = f"stopped without a word, its lease ended {until}" if is_over else f"runs, holds its lease until {until}"
    return f"{attempt.began_at:%Y-%m-%d %H:%M}  {attempt.job} at {attempt.stage or 'its start'}: {said}"
