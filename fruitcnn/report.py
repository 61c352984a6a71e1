"""Run, data set and predictions -> one self-contained report.html. The last step of the flow.

Every section appears where its data is there: after `jobs.pipeline` all of them, after `jobs.classify` those of the
predictions. The page is report.html.jinja with report.css and report.js inline: nothing is loaded from elsewhere.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fruitcnn import bundle, charts, drift, duplicates, evidence, storage
from fruitcnn.columns import Example
from fruitcnn.errors import UsageError
from fruitcnn.evidence import Evidence, RunRecords, Truth
from fruitcnn.gate import Verdict
from fruitcnn.manifest import Manifest, load_manifest
from fruitcnn.paired import Flips
from fruitcnn.plan import load_plan
from fruitcnn.scores import Pair, accuracy, class_scores, confused_pairs, count_by
from fruitcnn.wording import FILTERS

NUM_PAIRS = 6
MAX_CLASS_ROWS = 1000
"""Rows of the table of classes: with more, it holds the least accurate ones (without truth: the most frequent)."""

NUM_GALLERY = 60
"""Labels of which the surest and the least sure picture are shown: the most frequent ones."""

_NUM_PREVIEWS = 8


class Decision(NamedTuple):
    """What a gate decided about the model of the report, and which labels change if it becomes champion."""

    verdict: Verdict
    champion: int | None
    """Version that it was compared with; None: it is the first."""
    images: str | None
    """Where the pictures of `flips` come from; None: the held-out ones."""
    flips: Flips | None


class AugmentedPreview(NamedTuple):
    """Training pictures and what the network saw of them: both (n, H, W, 3) uint8, one row a picture."""

    originals: npt.NDArray[np.uint8]
    augmented: npt.NDArray[np.uint8]


def write_report(
    report_uri: str,
    *,
    run: str | None = None,
    dataset: str | None = None,
    predictions: str | None = None,
    augmented: AugmentedPreview | None = None,
    decision: Decision | None = None,
) -> str:
    """Write the report of what is given and return its URI: report_uri, a path or s3:// URI ending in .html.

    run: the folder train wrote; dataset: the data set, for the truth of its Test split; predictions: the folder
    classify wrote; decision: of a retraining, what became of its challenger. UsageError if there is neither run nor
    predictions, or no such data set; StorageError if a file that must be there cannot be read.
    The same inputs give the same bytes.
    """
    if run is None and predictions is None:
        raise UsageError("report: got neither a run nor predictions, wanted one of them or both")
    report_uri = storage.normalise(report_uri)
    dataset = storage.normalise(dataset) if dataset else None
    manifest = load_manifest(dataset) if dataset else None
    records = evidence.read_run(storage.normalise(run)) if run else None
    page: dict[str, Any] = {"run": records, "dataset": manifest}
    if augmented is not None:
        page["previews"] = _previews(augmented)
    if records:
        page |= _training(records)
    if predictions:
        predictions = storage.normalise(predictions)
        truth = Truth(dataset, manifest) if dataset and manifest else None
        page |= _predicted(predictions, evidence.read_predictions(predictions, truth), manifest)
    if decision:
        page |= _decided(decision)
        page["pictures"] = page.get("pictures", {}) | page.pop("flip_pictures")
    page["configuration"] = _configuration(records, dataset, manifest, page.get("evidence"))
    storage.write(report_uri, _render(page).encode())
    return report_uri


def _render(page: Mapping[str, Any]) -> str:
    from jinja2 import Environment
    from markupsafe import Markup

    files = {name: _file(name) for name in ("report.html.jinja", "report.css", "report.js")}
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= FILTERS
    template = environment.from_string(files["report.html.jinja"])
    return template.render(
        {"css": Markup(files["report.css"]), "js": Markup(files["report.js"]), "svg": Markup, **page}
    )


def _file(name: str) -> str:
    return resources.files("fruitcnn").joinpath(name).read_text(encoding="utf-8")


def _previews(preview: AugmentedPreview) -> list[tuple[str, str]]:
    originals, augmented = (pixels[:_NUM_PREVIEWS] for pixels in preview)
    return [(evidence.data_uri(a), evidence.data_uri(b)) for a, b in zip(originals, augmented, strict=True)]


def _training(records: RunRecords) -> dict[str, Any]:
    lines = {kind: [line for line in records.metrics if line["kind"] == kind] for kind in ("train", "validation")}

    def curves(value: str) -> list[charts.Curve]:
        return [
            charts.Curve([line["images_seen"] for line in found], [line[value] for line in found], kind == "validation")
            for kind, found in lines.items()
            if found
        ]

    page: dict[str, Any] = {"validation": lines["validation"]}
    if records.metrics:
        drawn = {"Loss": charts.loss_curves(curves("loss")), "Accuracy": charts.accuracy_curves(curves("accuracy"))}
        page["curves"] = [
            (name, svg, {kind: found[-1][name.lower()] for kind, found in lines.items() if found})
            for name, svg in drawn.items()
        ]
    if best := records.result.get("best_checkpoint"):
        page["best_step"] = int(best.rpartition("-")[2])
    return page


def _predicted(predictions: str, found: Evidence, manifest: Manifest | None) -> dict[str, Any]:
    tally = found.tally
    page: dict[str, Any] = {
        "evidence": found,
        "books": _books(found),
        "histogram": charts.histogram(tally.histograms) if tally.histograms else None,
        "sample": tally.sample,
    }
    right, num_rows = accuracy(tally.kinds)
    shown = list(tally.sample)
    if num_rows:
        pairs = _pairs(found)
        page |= {"accuracy": (right, num_rows), "pairs": pairs, "worst": tally.worst}
        page |= _limited("classes", class_scores(tally.kinds, manifest.classes if manifest else ()))
        page["worth"] = _worth(found)
        shown += tally.worst + [example for _, *both in pairs for example in both if example]
    else:
        page |= _limited("labels", _labels(found)) | _drift(found)
        page["gallery"] = [(found.tally.surest[row[0]], found.tally.least_sure[row[0]]) for row in page["labels"]]
        page["gallery"] = page["gallery"][:NUM_GALLERY]
        shown += [example for both in page["gallery"] for example in both]
    page["pictures"] = evidence.thumbnails(predictions, found.plan, shown) if found.plan else {}
    return page


def _worth(found: Evidence) -> list[str]:
    """What the test accuracy is worth, in the words of the model card; none where the model cannot be read any more."""
    try:
        model, _ = bundle.read_description(found.manifest.model if found.manifest else "")
    except (bundle.FrozenModelError, storage.StorageError, UsageError, ValueError):
        return []
    return duplicates.worth(model.metrics, model.near_duplicates)


def _decided(decision: Decision) -> dict[str, Any]:
    pairs = decision.flips.pairs() if decision.flips else []
    page: dict[str, Any] = {"decision": decision, "flip_pairs": pairs, "flip_pictures": {}}
    if decision.flips and (plan := load_plan(decision.flips.predictions)):
        shown = [example for pair in pairs for example in pair.examples]
        page["flip_pictures"] = evidence.thumbnails(decision.flips.predictions, plan, shown)
    return page


def _limited(name: str, rows: Sequence[Any]) -> dict[str, Any]:
    return {name: rows[:MAX_CLASS_ROWS], "num_classes_left_out": max(0, len(rows) - MAX_CLASS_ROWS)}


def _pairs(found: Evidence) -> list[tuple[Pair, Example, Example | None]]:
    """The most confused pairs: each with a picture that was confused, and one of the class it was taken for."""
    tally = found.tally
    return [
        (pair, tally.slips[pair.truth, pair.label], tally.specimens.get(pair.label))
        for pair in confused_pairs(tally.kinds, NUM_PAIRS)
    ]


def _labels(found: Evidence) -> list[tuple[str, int, int]]:
    """(label, rows, of them unsure), the most frequent first."""
    rows = count_by(found.tally.kinds, "label,status")
    totals = count_by(found.tally.kinds, "label")
    named = [(label, num, rows[label, "unsure"]) for label, num in totals.items() if label is not None]
    return sorted(named, key=lambda row: (-row[1], row[0]))


def _drift(found: Evidence) -> dict[str, Any]:
    """Label -> share in training, and the distance between the two distributions; nothing where it is not known."""
    shares = drift.training_shares(found.manifest.model) if found.manifest else None
    counts = {label: num for label, num in count_by(found.tally.kinds, "label").items() if label is not None}
    return {"trained": shares, "drift": drift.distance(counts, shares)} if shares and counts else {}


def _books(found: Evidence) -> dict[str, Any]:
    """What was listed, and what became of it: as counted here, row by row, against what the manifest says."""
    tally = found.tally
    counted = count_by(tally.kinds, "status")
    books = found.manifest.books if found.manifest else None
    listed = books.num_listed if books else found.plan.num_inputs if found.plan else counted.total()
    by_cause = count_by(tally.kinds, "status,cause")
    causes = Counter({cause: num for (status, cause), num in by_cause.items() if status == "rejected"})
    return {
        "listed": listed,
        "counted": {status: counted[status] for status in ("ok", "unsure", "rejected")},
        "is_balanced": listed == counted.total(),
        "is_finished": books is not None,
        "unsure": Counter(
            {cause: num for (status, cause), num in by_cause.items() if status == "unsure"}
        ).most_common(),
        "causes": [(cause, num, tally.rejected[cause]) for cause, num in causes.most_common()],
    }


def _configuration(
    records: RunRecords | None, dataset: str | None, manifest: Manifest | None, found: Evidence | None
) -> dict[str, Mapping[str, Any]]:
    """Title -> name -> value of all that is folded away at the end of the page."""
    told: dict[str, Mapping[str, Any]] = {}
    versions: dict[str, str] = {}
    if records:
        result = dict(records.result)
        versions |= result.pop("versions", {})
        told |= {"Training": records.config["config"], "Result of the training": result}
    if manifest:
        short = manifest.model_dump(mode="json", include={"version", "source", "source_fingerprint", "created_at"})
        told["Data set"] = {"dataset": dataset, "manifest sha256": manifest.sha256, **short}
    if found and found.plan:
        told["Classification"] = {
            "run": found.plan.run_id,
            "model": found.manifest.model if found.manifest else None,
            "model hash": found.plan.model_hash,
            **found.plan.settings,
        }
    if found and found.manifest:
        versions |= found.manifest.versions
    return {title: values for title, values in (told | {"Versions": versions}).items() if values}
