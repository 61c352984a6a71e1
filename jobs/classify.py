"""A frozen model and pictures -> predictions: one row for every input, exactly once, and books that balance.

    python -m jobs.classify --model work/model --images work/pictures --predictions work/predictions

The same command again continues a run that was stopped, and does nothing where all is done. --images takes a folder,
an s3 prefix, a .zip, .tar or .tar.gz, a list of URIs (.txt, .parquet), or a data set of jobs.shard (with --split test).
After a promotion, the same images again are the full re-run; --since-promotion PREDICTIONS, the former champion's,
takes only what could change, and an audit of the rest.
"""

import sys
from typing import Any

from fruitcnn import storage
from fruitcnn.books import RunManifest, Timing
from fruitcnn.classify import TooManyRejectedError, classify, dry_run
from fruitcnn.classify_config import ClassifyConfig
from fruitcnn.wording import plural
from jobs.cli import progress, ray_session, run, summary

_TELLING_SECONDS = 2.0
"""Of a shorter job, what it reached of the CPUs is how long its model took to open."""


def main(config: ClassifyConfig) -> None:
    """Classify, then print the books."""
    if config.dry_run:
        summary("plan", dry_run(config) | _precision(config), {"images": config.images})
        return
    if config.organise:
        from fruitcnn.exports import require_ours

        with storage.argument("--organise"):
            require_ours(storage.normalise(config.organise))
            storage.require_writable(storage.join(config.organise, "copies", "part-00000.csv"))
    failure: TooManyRejectedError | None = None
    try:
        manifest = classify(config, progress, ray_session)
    except TooManyRejectedError as error:  # whoever must look into it needs the books and the report all the more
        failure, manifest = error, error.manifest
    for flag, place in (("--predictions", config.predictions), ("--organise", config.organise)):
        if place and f"{storage.normalise(place)}/".startswith(f"{storage.normalise(config.images)}/"):
            print(f"note: {flag} lies inside --images: another run over them would take its files for pictures",
                  file=sys.stderr)  # fmt: skip
    report = storage.join(config.predictions, "report.html")
    if not storage.exists(report):
        from fruitcnn.report import write_report

        write_report(report, predictions=config.predictions)
    where = {"predictions": config.predictions, "model": config.model, "report": report} | _export(config, manifest)
    summary("predictions", describe(manifest) | _precision(config) | _audited(config), where)
    if failure:
        raise failure


def _precision(config: ClassifyConfig) -> dict[str, str]:
    """What reduced precision costs."""
    if config.precision == "float32":
        return {}
    from fruitcnn import frozen

    return {config.precision: frozen.bf16_agreement(config.model)}


def _audited(config: ClassifyConfig) -> dict[str, str]:
    """What re-scoring only what could change found, and what it misses."""
    if not config.since_promotion:
        return {}
    from fruitcnn import since

    choice = since.Choice(config.since_promotion, config.images, config.max_margin, config.audit_share)
    found = since.audit(choice, config.predictions)
    return {
        "could change": f"{found.num_likely:,} of {found.num_earlier:,}, of them {found.num_likely_changed:,} changed",
        "audited": f"{found.num_audited:,} of the others, of them {found.num_audited_changed:,} changed: "
        f"miss rate {found.miss_rate:.2%}, at most {found.largest_miss_rate:.2%} (95 %)",
    }


def _export(config: ClassifyConfig, manifest: RunManifest) -> dict[str, str]:
    """Write what was asked for besides the predictions; name -> where it lies."""
    where = {}
    predictions = storage.normalise(config.predictions)
    has_csv = config.retry_rejected and storage.exists(storage.join(predictions, "csv", "part-00000.csv"))
    if config.csv or has_csv:
        from fruitcnn.exports import write_csv

        where["csv"] = storage.join(config.predictions, storage.name(write_csv(predictions, manifest)))
    if config.organise:
        from fruitcnn.exports import organise

        with storage.argument("--organise"):
            done = organise(predictions, manifest, config.organise, config.organise_by)
        gone = f", {done.num_missing:,} not readable any more" if done.num_missing else ""
        where["organised"] = f"{config.organise} ({plural(done.num_placed, 'picture')}{gone})"
    return where


def describe(manifest: RunManifest) -> dict[str, Any]:
    """Name -> value of the closing table."""
    books, timing = manifest.books, manifest.timing
    rows: dict[str, Any] = {
        "listed": books.num_listed,
        "ok": books.num_ok,
        "unsure": books.num_unsure,
        **{f"unsure: {cause}": num for cause, num in books.unsure_by_cause.items()},
        "rejected": f"{books.num_rejected:,}" + (f" ({books.causes_in_words()})" if books.num_rejected else ""),
        "parts": len(manifest.parts),
        "last attempt": f"{plural(timing.num_inputs, 'image')} in {timing.classify_seconds:.1f} s{_predicted(timing)}",
    }
    if num := timing.effort.num_repeats:
        rows["duplicates"] = f"{plural(num, 'file')} equal to one shortly before, classified once"
    if manifest.num_retried:
        rows["retried"] = f"{plural(manifest.num_retried, 'rejected input')}, taken again"
    if manifest.num_hidden:
        rows["hidden files"] = f"{manifest.num_hidden:,} passed over"
    if manifest.num_repeated:
        rows["listed again"] = f"{plural(manifest.num_repeated, 'name')}, classified once"
    return rows


def _predicted(timing: Timing) -> str:
    predicted = f" ({timing.predicted_seconds:.1f} s predicted)" if timing.predicted_seconds is not None else ""
    ceiling = timing.ceiling_per_second
    if not ceiling or timing.classify_seconds < _TELLING_SECONDS:
        return predicted
    return f"{predicted}, {timing.per_second / ceiling:.0%} of what the CPUs allow"


if __name__ == "__main__":
    run(ClassifyConfig, main, __doc__)
