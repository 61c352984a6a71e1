"""Which model is in production: list, show, promote, roll back, verify and clean up a registry.

    python -m jobs.registry list     --registry work/registry
    python -m jobs.registry show     --registry work/registry --version 7
    python -m jobs.registry promote  --registry work/registry --version 7 --reason "asked for by the shop"
    python -m jobs.registry promote  --registry work/registry --model work/model --reason "the first one"
    python -m jobs.registry rollback --registry work/registry --reason "calls lemons limes"
    python -m jobs.registry verify   --registry work/registry
    python -m jobs.registry gc       --registry work/registry

Every decision is one more record of an append-only log. rollback goes to the champion before the present one, or to
--version. Other jobs take --model registry:URI@champion, @7 (a version) or @2026-11-24 (what was champion then).
"""

import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fruitcnn import registry, storage
from fruitcnn.errors import UsageError
from jobs.cli import progress, run, summary


class RegistryConfig(BaseModel):
    """What `python -m jobs.registry` takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: Literal["list", "show", "promote", "rollback", "verify", "gc"] = Field(
        description="list, show, promote, rollback, verify or gc", json_schema_extra={"positional": True}
    )
    registry: str = Field(description="the registry: a folder or s3://bucket/prefix, or a name under "
                          "FRUITCNN_REGISTRIES")  # fmt: skip
    version: int | None = Field(None, ge=1, description="show, promote, rollback: the version meant")
    model: str | None = Field(None, description="promote: instead of a version, a frozen model to add and promote")
    reason: str = Field("", description="promote, rollback, gc: why; it stays in the log")
    min_age_days: float = Field(7.0, ge=0, description="gc: leave alone what is younger, days")

    @model_validator(mode="after")
    def _complete(self) -> "RegistryConfig":
        if self.command in ("promote", "rollback") and not self.reason.strip():
            raise ValueError(f"--reason: got nothing, wanted why, for the log; add --reason TEXT to {self.command}")
        if self.command == "promote" and (self.version is None) == (self.model is None):
            raise ValueError("promote: wanted either --version N or --model URI")
        if self.model and self.command != "promote":
            raise ValueError(f"--model: got {self.model} with {self.command}, wanted it with promote only")
        return self


def main(config: RegistryConfig) -> None:
    """Carry out one command."""
    with storage.argument("--registry"):
        uri = registry.locate(config.registry)
        if config.command in _NEED_CONTENT and next(iter(storage.list_files(uri)), None) is None:
            raise UsageError(f"--registry {uri}: there is no registry yet; {_FIRST_STEPS}")
    COMMANDS[config.command](config, uri)


def _list(_: RegistryConfig, uri: str) -> None:
    from fruitcnn import chronicle

    tables = chronicle.tables(uri)
    for title, rows in tables.items():
        summary(title, rows or {"none yet": ""}, {})
    has_champion = any(chronicle.CHAMPION_MARK in row for row in tables["versions"].values())
    print(f"\nregistry:{uri}@champion is a --model" if has_champion else f"\nno champion yet in {uri}: {_FIRST_STEPS}")


def _show(config: RegistryConfig, uri: str) -> None:
    from fruitcnn import chronicle

    version, rows = chronicle.about(uri, config.version)
    summary(f"version {version}", rows, {"model": registry.version_uri(uri, version)})


def _promote(config: RegistryConfig, uri: str) -> None:
    from fruitcnn import bundle, versions

    version = config.version
    if config.model:
        with bundle.argument("--model", config.model):
            bundle.check_bytes(config.model)
        with storage.argument("--registry"):
            version = versions.add(uri, config.model)
    assert version is not None, "validated"
    _say_record(uri, versions.promote(uri, version, config.reason))


def _rollback(config: RegistryConfig, uri: str) -> None:
    from fruitcnn import versions

    _say_record(uri, versions.roll_back(uri, config.version, config.reason))


def _say_record(uri: str, record: registry.Record) -> None:
    from fruitcnn import chronicle, tracking

    tracking.follow(uri)
    summary("registry", {f"record {record.number}": chronicle.line(record)}, {"champion": f"registry:{uri}@champion"})


def _verify(_: RegistryConfig, uri: str) -> None:
    from fruitcnn import versions

    problems: list[str] = []
    with progress("verify", None, "things") as update:
        for done, finding in enumerate(versions.verify(uri), 1):
            update(done, finding.what)
            problems += [f"{finding.what}: {finding.problem}"] if finding.problem else []
    if problems:
        raise registry.RegistryError("\n".join(problems))
    summary("verify", {"all bytes": "as they were written"}, {"registry": uri})


def _gc(config: RegistryConfig, uri: str) -> None:
    from fruitcnn import versions

    age = datetime.timedelta(days=config.min_age_days)
    done = versions.collect(uri, config.reason or f"never champion, older than {config.min_age_days:g} days", age)
    summary("removed", dict.fromkeys(done, "removed") or {"nothing": "all is named or young"}, {"registry": uri})


_NEED_CONTENT = {"show", "rollback", "verify", "gc"}
_FIRST_STEPS = "jobs.retrain, or promote --model URI, makes a first champion"
COMMANDS = {"list": _list, "show": _show, "promote": _promote, "rollback": _rollback, "verify": _verify, "gc": _gc}

if __name__ == "__main__":
    run(RegistryConfig, main, __doc__)
