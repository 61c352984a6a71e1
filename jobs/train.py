"""A data set -> a trained run: checkpoints, curves and a result, by N data-parallel workers.

    python -m jobs.train --dataset work/dataset --run work/run --num-workers 2
    python -m jobs.train --compare work/run,work/other --page work/compare.html

The same command again goes on from the last checkpoint, with any number of workers, and changes nothing where the run
is finished. --dry-run says what it would take on N nodes. --compare draws the curves of two to six runs over each
other. RUN/tensorboard is for TensorBoard.
"""

import sys
from typing import Any

from fruitcnn.compare_config import CompareConfig
from fruitcnn.recipe import TrainConfig
from jobs.cli import progress, ray_session, run, summary

# The parts of the time until the first step, in their order.
START = ("ray", "workers", "imports", "pixels", "model", "first_step")

SCORES = {
    "validation": ("validation accuracy", ""),
    "test": ("test accuracy", ""),
    "leak_aware": ("leak-aware accuracy", ", views that training never saw"),
}
"""Of a result -> how it is called, and what it is of."""


def main(config: TrainConfig) -> None:
    """Train, then say how good it became."""
    if config.dry_run:
        from fruitcnn.train_forecast import dry_run

        summary("plan", dry_run(config), {"dataset": config.dataset})
        return
    from fruitcnn import tracking
    from fruitcnn.train import train

    result = train(config, progress, ray_session)
    tracking.log_run(config.run)
    summary("training", describe(result), {"run": config.run})


def compare_runs(config: CompareConfig) -> None:
    """Draw the comparison, then say how good each run became."""
    from fruitcnn.compare import compare

    def text(share: float | None) -> str:
        return "not measured" if share is None else f"{share:.2%}"

    rows = {
        row.name: f"{row.images_seen:,} pictures seen, validation {text(row.validation_accuracy)}, "
        f"test {text(row.test_accuracy)}"
        for row in compare(config)
    }
    summary("comparison", rows, {"page": config.page})


def describe(result: dict[str, Any]) -> dict[str, Any]:
    """Name -> value of the closing table."""
    # Empty in a result that an earlier version wrote.
    seconds, start = result["seconds"], dict.fromkeys(START, 0.0) | result.get("start_seconds", {})
    seconds = dict.fromkeys(("compute", "all_reduce", "checkpoint"), 0.0) | seconds
    rows = {"best checkpoint": result["best_checkpoint"]} | {
        text: f"{result[name]['accuracy']:.2%} of {result[name]['num_rows']:,} rows{of}"
        for name, (text, of) in SCORES.items()
        if result.get(name)
    }
    return rows | {
        "workers": result["num_workers"],
        "pictures seen": f"{result['images_seen']:,}, {result['images_per_second']:,.0f}/s",
        "start": f"{seconds['start']:.1f} s = " + ", ".join(f"{part} {start[part]:.1f}" for part in START),
        "training": f"{seconds['training']:.1f} s = input wait {seconds['input_wait']:.1f}, compute "
        f"{seconds['compute']:.1f}, all-reduce {seconds['all_reduce']:.1f}",
        "beside it": f"evaluation {seconds['evaluation']:.1f} s, checkpoints {seconds['checkpoint']:.1f} s",
    }


if __name__ == "__main__":
    if any(word.split("=")[0] == "--compare" for word in sys.argv):
        run(CompareConfig, compare_runs, __doc__)
    run(TrainConfig, main, __doc__)
