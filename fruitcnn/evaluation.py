"""What evaluate found -> one self-contained page: figures, curves, and the pictures that say more. For evaluate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fruitcnn import charts, evidence, fetch, images
from fruitcnn.wording import FILTERS

if TYPE_CHECKING:
    from fruitcnn.evaluate import Evaluated

NUM_PICTURES = 12
MAX_CLASS_ROWS = 1000


class Shown(NamedTuple):
    """One picture of the page; picture is a data URI, None where it cannot be read any more."""

    id: str
    truth: str
    label: str
    confidence: float
    score: float
    picture: str | None


def render(evaluated: Evaluated, said: Mapping[str, Any], max_pixels: int) -> str:
    """Return the page as HTML text; said: the contents of evaluation.json. The same inputs give the same text."""
    from jinja2 import Environment
    from markupsafe import Markup

    judged, answered = evaluated.judged, evaluated.judged.answered
    causes = np.array(evaluated.table["cause"].to_pylist(), dtype=object)
    sure = answered & ~judged.right
    shown = {
        "mistakes": _first(np.flatnonzero(sure), -judged.confidence),
        "unlike": _spread(np.flatnonzero(causes == "unlike-training"), judged.unlike),
        "ambiguous": _spread(np.flatnonzero(causes == "ambiguous"), judged.confidence),
        "right": _spread(np.flatnonzero(answered & judged.right), judged.unlike),
    }
    pictures = _pictures(evaluated, sorted({row for rows in shown.values() for row in rows}), max_pixels)
    # Bins of few pictures say nothing and would draw the eye.
    bins = [each for each in said["calibration"] if each["num"] >= max(5, len(judged.right) // 1000)]
    here = (float(answered.mean()), float(sure.sum() / answered.sum())) if answered.any() else None
    page = {
        **said,
        **{name: [pictures[row] for row in rows] for name, rows in shown.items()},
        "num_causes": {cause: int((causes == cause).sum()) for cause in ("unlike-training", "ambiguous")},
        "calibration_chart": charts.calibration([(each["confidence"], each["accuracy"]) for each in bins]),
        "risk_chart": charts.risk_coverage([*said["risk_coverage"].values()], here),
        "per_class": said["per_class"][:MAX_CLASS_ROWS],
    }
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= FILTERS
    files = {name: Markup(_file(f"report.{name}")) for name in ("css", "js")}
    return environment.from_string(_file("evaluation.html.jinja")).render({**files, "svg": Markup, **page})


def _first(rows: Any, order: Any) -> list[int]:
    """The NUM_PICTURES rows that come first by `order`, (N,) over all rows."""
    return rows[np.argsort(order[rows], kind="stable")][:NUM_PICTURES].tolist()


def _spread(rows: Any, order: Any) -> list[int]:
    """NUM_PICTURES of the rows, evenly from the first to the last by `order`."""
    ranked = rows[np.argsort(order[rows], kind="stable")]
    number = min(NUM_PICTURES, len(ranked))
    return ranked[np.linspace(0, len(ranked) - 1, number).round().astype(int)].tolist() if number else []


def _pictures(evaluated: Evaluated, rows: Sequence[int], max_pixels: int) -> dict[int, Shown]:
    def show(row: int) -> Shown:
        values = evaluated.table.slice(row, 1).to_pylist()[0]
        data = next(iter(fetch.fetch([evaluated.inputs[row]]))).data
        named = {name: values[name] for name in ("id", "truth", "label", "confidence", "score")}
        return Shown(**named, picture=_thumbnail(data, max_pixels) if data else None)

    with ThreadPoolExecutor() as pool:
        return dict(zip(rows, pool.map(show, rows), strict=True))


def _thumbnail(data: bytes, max_pixels: int) -> str | None:
    try:
        width, height = images.check(data, max_pixels)
    except images.ImageError:
        return None
    scale = min(1.0, evidence.THUMBNAIL_PX / max(width, height))
    size_px = max(1, round(height * scale)), max(1, round(width * scale))
    return evidence.data_uri(images.decode(data, size_px, max_pixels).pixels)


def _file(name: str) -> str:
    return resources.files("fruitcnn").joinpath(name).read_text(encoding="utf-8")
