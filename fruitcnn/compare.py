"""Several runs -> one page with their curves over each other and a table; beside report, which shows one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from fruitcnn import charts, evidence, storage
from fruitcnn.compare_config import CompareConfig
from fruitcnn.errors import UsageError
from fruitcnn.evidence import RunRecords
from fruitcnn.recipe import TrainConfig
from fruitcnn.wording import FILTERS

_CHARTS = {"Accuracy": charts.accuracy_curves, "Loss": charts.loss_curves}


class Compared(NamedTuple):
    """One run of a comparison; figures are None where the run has not measured them."""

    name: str
    settings: str
    images_seen: int
    validation_accuracy: float | None
    test_accuracy: float | None
    images_per_second: float | None


def compare(config: CompareConfig) -> list[Compared]:
    """Write the page and return its table. Raises UsageError for a run that is none, StorageError otherwise."""
    with storage.argument("--compare"):
        found = {storage.normalise(run): _records(run) for run in config.compare}
    with storage.argument("--page"):
        page = storage.normalise(config.page)
    names = _short_names(list(found))
    told = _told_differently([_settings(records) for records in found.values()])
    rows = [_row(*each) for each in zip(names, found.values(), told, strict=True)]
    drawn = {name: draw(_curves(list(found.values()), name.lower())) for name, draw in _CHARTS.items()}
    storage.write(page, _render(rows, drawn).encode())
    return rows


def _records(run: str) -> RunRecords:
    try:
        return evidence.read_run(storage.normalise(run))
    except storage.NotFoundError as error:
        raise UsageError(f"--compare: {run} holds no config.json, wanted a folder that jobs.train wrote") from error


def _settings(records: RunRecords) -> Mapping[str, Any]:
    """What decided the run's result, and the number of workers; what an earlier version did not know is the default."""
    defaults = {name: field.default for name, field in TrainConfig.model_fields.items() if not field.is_required()}
    found = defaults | records.config["identity"]
    return {**found, "num_workers": records.config["config"]["num_workers"]}


def _told_differently(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each run what it was told differently from the others."""
    names = [name for name in settings[0] if len({str(each.get(name)) for each in settings}) > 1]
    return [", ".join(f"{name} {each.get(name)}" for name in names) for each in settings]


def _short_names(runs: Sequence[str]) -> list[str]:
    """The last part of each URI, or all of it where two would be called alike."""
    names = [storage.name(run) for run in runs]
    return names if len(set(names)) == len(names) else list(runs)


def _row(name: str, records: RunRecords, told: str) -> Compared:
    def last(kind: str, value: str) -> Any:
        found = [line[value] for line in records.metrics if line["kind"] == kind and value in line]
        return found[-1] if found else None

    scores = {split: (records.result.get(split) or {}).get("accuracy") for split in ("validation", "test")}
    return Compared(
        name,
        told,
        last("train", "images_seen") or 0,
        scores["validation"] or last("validation", "accuracy"),
        scores["test"],
        records.result.get("images_per_second") or last("train", "images_per_second"),
    )


def _curves(runs: Sequence[RunRecords], value: str) -> list[charts.Curve]:
    found = []
    for number, records in enumerate(runs, 1):
        for kind in ("train", "validation"):
            lines = [line for line in records.metrics if line["kind"] == kind]
            x, y = [line["images_seen"] for line in lines], [line[value] for line in lines]
            if lines:
                found.append(charts.Curve(x, y, kind == "validation", f"run-{number}"))
    return found


def _render(rows: Sequence[Compared], drawn: Mapping[str, str]) -> str:
    from jinja2 import Environment
    from markupsafe import Markup

    files = {
        name: resources.files("fruitcnn").joinpath(name).read_text(encoding="utf-8")
        for name in ("compare.html.jinja", "report.css")
    }
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= FILTERS
    template = environment.from_string(files["compare.html.jinja"])
    return template.render(css=Markup(files["report.css"]), svg=Markup, rows=rows, charts=drawn)
