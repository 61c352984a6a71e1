"""Command line, environment and YAML file -> one validated config model; what is wrong becomes a UsageError."""

import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from fruitcnn.errors import UsageError
from jobs.flags import ENV_PREFIX, closest, is_list, is_positional, metavar, read_flags, spelling

ConfigT = TypeVar("ConfigT", bound=BaseModel)

NULLS = {"", "~", "null"}
WANTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "yes or no",
    "bool_type": "yes or no",
    "string_type": "a text",
    "tuple_type": "a list, as in a,b,c",
    "list_type": "a list, as in a,b,c",
}


def parse(
    config_class: type[ConfigT], argv: Sequence[str], environ: Mapping[str, str], command: str, doc: str
) -> ConfigT:
    """The config that `argv`, `environ` and the --config file say (in that precedence), then the defaults.

    A field num_workers is --num-workers, FRUITCNN_NUM_WORKERS (empty = not set) and num_workers in the file.
    `--help` prints and raises SystemExit(0). UsageError holds one line for each problem found.
    """
    # What a job adds to a shared config is what its --help is read for: that comes first.
    fields = dict(
        sorted(config_class.model_fields.items(), key=lambda field: field[0] not in config_class.__annotations__)
    )
    found = gather(fields, argv, environ, command, doc)
    if odd := [(origin, value) for value, origin in found.values() if _is_undecodable(value)]:
        raise UsageError(
            "\n".join(f"{origin}: got {value!a}, wanted UTF-8: name a link to it" for origin, value in odd)
        )
    values = {name: _split(value) if _is_split(fields[name]) else value for name, (value, _) in found.items()}
    try:
        return config_class.model_validate(values)
    except ValidationError as error:
        origins = {name: origin for name, (_, origin) in found.items()}
        raise UsageError("\n".join(problems(error, fields, origins))) from None


def _is_undecodable(value: Any) -> bool:
    """Whether a text holds bytes that are no UTF-8: Python carries them, no JSON file with a result can."""
    return any("\udc80" <= letter <= "\udcff" for letter in str(value))


def gather(
    fields: Mapping[str, FieldInfo], argv: Sequence[str], environ: Mapping[str, str], command: str, doc: str
) -> dict[str, tuple[Any, str]]:
    """Field -> (value as text or list of texts, how the user names it), for all that is set anywhere."""
    flags, file = read_flags(fields, argv, command, doc)
    variables = {name: ENV_PREFIX + name.upper() for name in fields}
    # Later sources overwrite earlier ones.
    found = {name: (value, f"{name} in {file}") for name, value in _read_yaml(file, fields).items()} if file else {}
    found |= {name: (environ[var], f"{var} (environment)") for name, var in variables.items() if environ.get(var)}
    return found | {name: (value, spelling(name, fields[name])) for name, value in flags.items()}


def problems(error: ValidationError, fields: Mapping[str, FieldInfo], origins: Mapping[str, str]) -> list[str]:
    """One line for each problem: the argument, what was got, what was wanted."""
    lines: list[str] = []
    for item in error.errors(include_url=False):
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, ValidationError):  # a field's validator built another model
            lines += problems(cause, fields, origins)
        else:
            name = str(item["loc"][0]) if item["loc"] else ""
            label = origins.get(name) or (spelling(name, fields[name]) if name in fields else name)
            lines.append(_problem(label, fields.get(name), dict(item), cause))
    return lines


def _problem(label: str, field: FieldInfo | None, item: dict[str, Any], cause: Any) -> str:
    if cause is not None:  # a validator's own message says what was got and wanted
        return str(cause) if not label or str(cause).startswith(label) else f"{label}: {cause}"
    if item["type"] == "missing" and field is not None:
        example = f"{label} {metavar(field)}".strip()
        return f"{label}: got nothing, wanted {field.description or 'a value'}; add {example}"
    return f"{label}: got {item['input']!r}, wanted {_wanted(item)}"


def _wanted(item: dict[str, Any]) -> str:
    if item["type"] == "literal_error":
        choices = item["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        return f"{' or '.join(choices)}{closest(str(item['input']), choices)}"
    return WANTED.get(item["type"], item["msg"].removeprefix("Input should be "))


def _is_split(field: FieldInfo) -> bool:
    return is_list(field) and not is_positional(field)


def _split(value: Any) -> Any:
    """'a,b' and ['a', 'b,c'] as one flat list; anything else as it is."""
    if isinstance(value, str):
        return [piece.strip() for piece in value.split(",") if piece.strip()]
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return [piece for part in value for piece in _split(part)]
    return value


def _read_yaml(file: str, fields: Mapping[str, FieldInfo]) -> dict[str, Any]:
    """The fields set in a YAML (or JSON) file. Scalars stay text, as on the command line: YAML 1.1 reads 1:4 as 64."""
    import yaml  # a tenth of a second that --help does not need

    try:
        document = yaml.load(Path(file).read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise UsageError(f"--config: got {file}, wanted a YAML file that can be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config: got {file}, wanted YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise UsageError(f"--config: got {file}, wanted lines like num_workers: 2")
    if isinstance(document.get("config"), dict):  # what a job wrote with its result
        document = document["config"]
    values = {str(key).replace("-", "_"): _null(value) for key, value in document.items()}
    unknown = [key for key in values if key not in fields]
    if unknown:
        raise UsageError("\n".join(f"{key} in {file}: no such setting{closest(key, list(fields))}" for key in unknown))
    # As in the environment, what is empty is not set, except where nothing is a value of its own.
    return {name: value for name, value in values.items() if value is not None or _may_be_none(fields[name])}


def _may_be_none(field: FieldInfo) -> bool:
    return type(None) in typing.get_args(field.annotation)


def _null(value: Any) -> Any:
    return None if isinstance(value, str) and value.lower() in NULLS else value
