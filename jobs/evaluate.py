"""A frozen model and labelled pictures -> how good it is on them: accuracy, answers that stand, calibration; a report.

    python -m jobs.evaluate --model work/model --images work/photos --evaluation work/evaluation

--images takes a data set of jobs.shard (with --split test), or a folder, s3 prefix, .zip or .tar whose folders are
named after classes, or that holds a labels.csv (columns file, family): "Pear" allows every class Pear ..., "A|B"
either, NONE no class at all: a stranger, which the model should not answer.
"""

from typing import Any

from fruitcnn.evaluate_config import EvaluateConfig
from jobs.cli import progress, run, summary

_SHARES = {
    "accuracy": "accuracy (every picture, whatever it was answered)",
    "share_answered": "answered",
    "right_among_answered": "right among answered",
    "wrong_and_sure": "answered and wrong, of all pictures",
    "strangers_answered": "strangers answered",
    "calibration_error": "calibration error",
}

_NUM_NAMES = 4


def main(config: EvaluateConfig) -> None:
    """Evaluate, then print the figures."""
    from fruitcnn.evaluate import evaluate

    said = evaluate(config, progress)
    figures = said["summary"]
    strangers = _by_name(figures["num_strangers"], said["strangers"])
    unnamed = _by_name(said["num_without_truth"], said["without_truth_by_folder"])
    rows: dict[str, Any] = {"pictures": figures["num_pictures"], "of them strangers": strangers}
    rows |= {text: f"{figures[name]:.2%}" for name, text in _SHARES.items() if figures[name] is not None}
    rows |= {"rejected": said["num_rejected"], "without a label": unnamed}
    if unused := said["labels_without_picture"]:
        rows["labels without a picture"] = _by_name(len(unused), dict.fromkeys(unused))
    summary("evaluation", rows, {"evaluation": config.evaluation, "report": f"{config.evaluation}/report.html"})


def _by_name(num: int, names: dict[str, int | None]) -> str:
    """Return 12 (Banana 11, holiday 1): a mistyped class or folder shows itself."""
    shown = [name if count is None else f"{name} {count:,}" for name, count in list(names.items())[:_NUM_NAMES]]
    more = [f"{len(names) - _NUM_NAMES} others"] if len(names) > _NUM_NAMES else []
    return f"{num:,}" + (f" ({', '.join(shown + more)})" if num else "")


if __name__ == "__main__":
    run(EvaluateConfig, main, __doc__)
