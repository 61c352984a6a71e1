"""The jobs that can be submitted: found in this folder, their arguments read by their own config. For submit.py."""

import importlib
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fruitcnn.errors import UsageError
from fruitcnn.registry import BASE_VARIABLE
from jobs.arguments import gather, parse
from jobs.flags import ENV_PREFIX, closest, spelling

_RUNS = re.compile(r"^\s+run\((\w+), main, __doc__", re.MULTILINE)
_ELSEWHERE = re.compile(r"[a-z0-9]+://|/|kaggle:|synthetic(?![^:])")
_NOT_SUBMITTED = ("submit",)

PLACES = frozenset(
    ("model", "images", "predictions", "organise", "since_promotion", "evaluation", "labels", "run", "check", "dataset",
     "source", "work", "registry", "recent", "thresholds", "flips", "initial_model", "weights", "cache_dir")
)  # fmt: skip
"""Fields that name a place: a test has every field of text decided on. `root` lies inside a source."""


class Entry(NamedTuple):
    """A job: its name, config class, docstring and main."""

    name: str
    config_class: type[BaseModel]
    doc: str
    main: Callable[..., None]


def names() -> list[str]:
    """The jobs in this folder, sorted: the modules that end in run(Config, main, __doc__)."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [file.stem for file in files if file.stem not in _NOT_SUBMITTED and _RUNS.search(file.read_text("utf-8"))]


def load(name: str) -> Entry:
    """The job of that name. UsageError, with the nearest names, if there is none."""
    known = names()
    if name not in known:
        raise UsageError(f"JOB: got {name!r}, wanted {', '.join(known)}{closest(name, known)}")
    module = importlib.import_module(f"jobs.{name}")
    hints = typing.get_type_hints(module.main)
    config_class = next(iter(hints.values()))
    return Entry(name, config_class, module.__doc__ or "", module.main)


def read_arguments(entry: Entry, argv: Sequence[str], environ: Mapping[str, str]) -> tuple[BaseModel, list[str]]:
    """(the config that the job will see, the arguments to send).

    What `--config FILE` or the environment of this machine add is sent as flags: the cluster has neither. UsageError
    for anything the job itself would refuse, for a place that is relative to a folder of this machine, and for a secret
    anywhere but in the environment: that is not sent as a flag (submission.SECRET_SETTINGS seals it).
    """
    command = f"python -m jobs.{entry.name}"
    config = parse(entry.config_class, argv, environ, command, entry.doc)
    fields = entry.config_class.model_fields
    relative = [
        f"{spelling(name, field)}: got {value!r}, which lies in a folder of this machine; wanted s3://bucket/prefix, "
        "or an absolute path that every node of the cluster reaches"
        for name, field in fields.items()
        if name in PLACES
        and isinstance(value := getattr(config, name), str)
        and value
        and not _ELSEWHERE.match(value.removeprefix("registry:"))
        and not _is_known_there(name, value, environ)
    ]
    if relative:
        raise UsageError("\n".join(relative))
    found = gather(fields, argv, environ, command, entry.doc)
    secret = {name: found.pop(name)[1] for name in list(found) if _is_secret(fields[name])}
    for name, origin in secret.items():
        if not origin.endswith("(environment)"):
            raise UsageError(
                f"{origin}: Ray keeps and shows a job's command line, and this may be a key; leave it out, set "
                f"{ENV_PREFIX}{name.upper()}, and give jobs.submit --pass-credentials"
            )
    added = {name: value for name, (value, origin) in found.items() if origin != spelling(name, fields[name])}
    return config, _insert(_without_config_file(argv), [_flag(fields, *item) for item in added.items()])


def _is_secret(field: FieldInfo) -> bool:
    """Whether the value may be a key: Field(json_schema_extra={"secret": True})."""
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("secret"))


def _is_known_there(name: str, value: str, environ: Mapping[str, str]) -> bool:
    """A registry's bare name where FRUITCNN_REGISTRIES goes along; a file of the code that is sent; no file at all."""
    if "/" not in value and (name == "registry" or value.startswith("registry:")):
        return bool(environ.get(BASE_VARIABLE))
    if name == "weights" and value == "imagenet":
        return True
    return name == "thresholds" and value.startswith("cluster/")


def _without_config_file(argv: Sequence[str]) -> list[str]:
    kept, words = list[str](), iter(argv)
    for word in words:
        if word == "--config":
            next(words, None)
        elif not word.startswith("--config="):
            kept.append(word)
    return kept


def _insert(argv: list[str], flags: list[str]) -> list[str]:
    """`flags` before a bare --, behind which everything is positional."""
    cut = argv.index("--") if "--" in argv else len(argv)
    return argv[:cut] + flags + argv[cut:]


def _flag(fields: Mapping[str, Any], name: str, value: Any) -> str:
    flag = spelling(name, fields[name])
    if fields[name].annotation is bool:
        yes = str(value).lower() in ("1", "true", "yes", "on", "y", "t")
        return flag if yes else flag.replace("--", "--no-", 1)
    return f"{flag}={','.join(map(str, value)) if isinstance(value, list) else value}"
