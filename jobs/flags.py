"""The fields of a config model -> an argparse parser: spelling, help text and defaults. Used by arguments.py alone.

argparse over the model's fields instead of pydantic-settings: the import costs 0.3 s less of the one second that
`--help` has, and the messages can name where a value came from and the closest right spelling.
"""

import argparse
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from fruitcnn.errors import UsageError

ENV_PREFIX = "FRUITCNN_"
EPILOG = f"""\
Each argument can also be set in the YAML file of --config (num_workers: 2) or in the environment
({ENV_PREFIX}NUM_WORKERS=2): the command line wins, then the environment, then the file, then the default.
exit codes: 0 done; 1 the job failed; 2 wrong usage, nothing was started"""


class _Parser(argparse.ArgumentParser):
    """argparse, except that its complaints become a UsageError."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def read_flags(
    fields: Mapping[str, FieldInfo], argv: Sequence[str], command: str, doc: str
) -> tuple[dict[str, Any], str]:
    """The fields given on the command line, as text, and the value of --config ("" if none).

    `--help` prints and raises SystemExit(0). UsageError holds one line for each argument that does not exist.
    """
    # Everything after a bare -- belongs to the positional list, whatever it looks like (jobs.submit JOB -- ARGS).
    rest = next((name for name, field in fields.items() if is_positional(field) and is_list(field)), "")
    cut = list(argv).index("--") if rest and "--" in argv else len(argv)
    namespace, unknown = _parser(fields, command, doc, rest).parse_known_args(list(argv[:cut]))
    if unknown:
        raise UsageError("\n".join(_unknown(unknown, fields, rest)))
    given = vars(namespace)
    file = given.pop("config", "")
    return given | ({rest: list(argv[cut + 1 :])} if cut < len(argv) else {}), file


def spelling(name: str, field: FieldInfo) -> str:
    """How a person types the field: --num-workers, or JOB for a positional one."""
    # A trailing _ keeps a field's name from being a word of Python: as_ is --as.
    return name.upper() if is_positional(field) else "--" + name.rstrip("_").replace("_", "-")


def is_positional(field: FieldInfo) -> bool:
    """Whether the field is typed without a flag: Field(json_schema_extra={"positional": True})."""
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("positional"))


def is_list(field: FieldInfo) -> bool:
    """Whether the field takes several values: a flag given again, or a,b,c."""
    return get_origin(_inner(field.annotation)) in (tuple, list, set, frozenset)


def metavar(field: FieldInfo) -> str:
    """What stands for the value in help texts: N, X, TEXT, {speed,seed}; "" where the flag takes none."""
    if is_positional(field) or _inner(field.annotation) is bool:
        return ""
    return _placeholder(field.annotation)


def closest(word: str, words: Sequence[str]) -> str:
    """A clause naming the nearest of `words`, or nothing when none is near."""
    close = difflib.get_close_matches(word, words, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _unknown(unknown: Sequence[str], fields: Mapping[str, FieldInfo], rest: str) -> list[str]:
    flags = [word.split("=")[0] for word in unknown if word.startswith("-")]
    known = [spelling(name, field) for name, field in fields.items()] + ["--config", "--help"]
    behind = "; arguments of the job itself go behind --, as in JOB -- ARGS" if rest else ""
    lines = [f"{flag}: no such argument{closest(flag, known)}{behind}" for flag in flags]
    if len(unknown) > 1 and not flags:
        # A shell has made many words of a pattern like *.jpg.
        return [f"got {unknown[0]!r} and {len(unknown) - 1} more words without a flag, wanted one value for each flag"]
    return lines or [f"got {word!r} without a flag, wanted --flag {word}" for word in unknown]


def _parser(fields: Mapping[str, FieldInfo], command: str, doc: str, rest: str) -> _Parser:
    required = {name: field for name, field in fields.items() if field.is_required() and name != rest}
    words = [f"{spelling(name, field)} {metavar(field)}".strip() for name, field in required.items()]
    words += [f"[{name.upper()}]" for name in fields.keys() - {*required, rest} if is_positional(fields[name])]
    usage = " ".join([command, *words, "[options]", *([f"[-- {rest.upper()}]"] if rest else [])])
    parser = _Parser(usage=usage.replace("%", "%%"), allow_abbrev=False, add_help=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description, parser.epilog = doc.strip(), EPILOG
    needed, options = parser.add_argument_group("required"), parser.add_argument_group("options")
    for name, field in fields.items():
        if name != rest:
            _add(needed if name in required else options, name, field)
    options.add_argument("--config", metavar="FILE", default="", help="YAML file holding any of these arguments")
    options.add_argument("-h", "--help", action="help", help="show this and exit")
    return parser


def _add(group: "argparse._ArgumentGroup", name: str, field: FieldInfo) -> None:
    default = "" if field.is_required() else f" (default: {_default(field)})"
    shared: dict[str, Any] = {"default": argparse.SUPPRESS}
    shared["help"] = f"{field.description or ''}{default}".strip().replace("%", "%%")
    if is_positional(field):
        group.add_argument(name, nargs="?", metavar=name.upper(), **shared)
    elif _inner(field.annotation) is bool:
        group.add_argument(spelling(name, field), dest=name, action=argparse.BooleanOptionalAction, **shared)
    else:
        action = "append" if is_list(field) else "store"
        group.add_argument(spelling(name, field), dest=name, metavar=metavar(field), action=action, **shared)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list | set | frozenset):
        return ",".join(map(str, value)) or "none"
    return "none" if value is None or value == "" else str(value)


def _inner(annotation: Any) -> Any:
    """The annotation without Annotated and without `| None`."""
    if get_origin(annotation) is typing.Annotated:
        return _inner(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        return _inner(members[0]) if len(members) == 1 else annotation
    return annotation


def _placeholder(annotation: Any) -> str:
    inner = _inner(annotation)
    if get_origin(inner) is Literal:
        return "{" + ",".join(map(str, get_args(inner))) + "}"
    if get_origin(inner) in (tuple, list, set, frozenset):
        return f"{_placeholder(get_args(inner)[0])},..."
    return {int: "N", float: "X", Path: "PATH"}.get(inner, "TEXT")
