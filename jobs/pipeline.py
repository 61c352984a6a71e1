"""The whole flow in one Ray session: pictures -> data set -> trained run -> frozen model -> predictions -> report.

    python -m jobs.pipeline --source ../shared/data/fruits-360-sample.zip --work work/fruits --num-workers 2

WORK/dataset, run, model and predictions hold what each step wrote, WORK/report.html shows it. The same command again
goes on where it was stopped. Without --source it draws its own pictures and needs nothing else.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from fruitcnn import storage
from fruitcnn.errors import UsageError
from fruitcnn.recipe import TrainConfig, TrainingChoices
from fruitcnn.wording import plural
from jobs.cli import progress, ray_when_needed, run, summary
from jobs.shard import describe

if TYPE_CHECKING:
    from fruitcnn.shards import DatasetPlan
    from fruitcnn.train import Session


class PipelineConfig(TrainingChoices):
    """What `python -m jobs.pipeline` takes; what is left out follows the preset and the other jobs' defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(
        "synthetic",
        description="labelled pictures: a folder, .zip or .tar(.gz), an s3 prefix, kaggle:OWNER/NAME or "
        "synthetic[:CLASSESxFRAMES]",
    )
    work: str = Field("work/pipeline", description="where everything goes: a folder or s3://bucket/prefix")
    root: str | None = Field(None, description="folder inside the source that holds Training and Test, if several do")
    seed: int = Field(0, ge=0, description="seed of weights, order and augmentation")
    runtime: Literal["auto", "openvino", "onnxruntime", "tensorflow"] = Field(
        "auto", description="what runs the frozen model"
    )

    @model_validator(mode="after")
    def _fits_training(self) -> "PipelineConfig":
        self.train_config()
        return self

    def place(self, step: str) -> str:
        """Return the URI under the work folder that `step` writes to."""
        with storage.argument("--work"):
            return storage.join(storage.normalise(self.work), step)

    def train_config(self) -> TrainConfig:
        """Return the config of the training step. Raises ValidationError where the two do not fit."""
        return self.training(dataset=self.place("dataset"), run=self.place("run"), seed=self.seed)


def main(config: PipelineConfig) -> None:
    """Run the steps in order, then print one table of what each took and found."""
    from fruitcnn.shard_config import ShardConfig
    from fruitcnn.shards import plan_dataset

    clock = _Clock()
    training = config.train_config()
    report = config.place("report.html")
    if storage.exists(report) and not storage.exists(config.place("predictions/manifest.json")):
        raise UsageError(f"--work: {report} is there and was not written by a pipeline; name another folder")
    # Refuses a wrong source or work folder before Ray starts.
    with _named_as_work():
        plan = plan_dataset(ShardConfig(source=config.source, dataset=training.dataset, root=config.root))
    clock.lap("listing")
    with ray_when_needed(lambda: clock.lap("Ray")) as session, _named_as_work():
        rows = _steps(config, training, plan, clock, session)
    summary("pipeline", rows | clock.row(), _where(config))


def _steps(
    config: PipelineConfig, training: TrainConfig, plan: "DatasetPlan", clock: "_Clock", session: "Session"
) -> dict[str, Any]:
    from fruitcnn.classify import classify
    from fruitcnn.classify_config import ClassifyConfig
    from fruitcnn.freeze_config import FreezeConfig
    from fruitcnn.freezing import freeze
    from fruitcnn.report import write_report
    from fruitcnn.shards import write_plan
    from fruitcnn.train import train

    dataset = training.dataset
    with session() if plan.records or not plan.base else nullcontext():
        manifest = write_plan(plan, progress)
    clock.lap("shard")
    result = train(training, progress, session)
    clock.lap("train")
    model = config.place("model")
    freeze(FreezeConfig(run=training.run, model=model, check=None, dataset=dataset), progress)
    clock.lap("freeze")
    predictions = config.place("predictions")
    asked = ClassifyConfig(model=model, images=dataset, split="test", predictions=predictions, runtime=config.runtime)
    books = classify(asked, progress).books
    clock.lap("classify")
    from fruitcnn.preview import preview

    report = config.place("report.html")
    write_report(report, run=training.run, dataset=dataset, predictions=predictions, augmented=preview(training))
    clock.lap("report")
    return {
        "classes": len(manifest.classes),
        "rows": ", ".join(f"{name} {split.num_rows:,}" for name, split in manifest.splits.items()),
        "rejected files": describe(manifest)["rejected"],
        "test accuracy": f"{result['test']['accuracy']:.2%} of {result['test']['num_rows']:,} pictures",
        "training": f"{result['images_seen']:,} pictures seen by {plural(result['num_workers'], 'worker')}, "
        f"{result['images_per_second']:,.0f}/s",
        "classified": f"{books.num_listed:,} listed = {books.num_ok:,} ok + {books.num_unsure:,} unsure "
        f"+ {books.num_rejected:,} rejected",
    }


@contextmanager
def _named_as_work() -> Iterator[None]:
    """What a step says of its own arguments, in terms of --work: the others are not arguments of the pipeline."""
    try:
        yield
    except UsageError as error:
        raise UsageError(re.sub(r"--(dataset|run|model|predictions)\b", "--work", str(error))) from error


def _where(config: PipelineConfig) -> dict[str, str]:
    return {
        name.split(".")[0]: config.place(name) for name in ("dataset", "run", "model", "predictions", "report.html")
    }


class _Clock:
    """Seconds of each step."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now, self.last, self.laps = now, now(), dict[str, float]()

    def lap(self, step: str) -> None:
        """The step that ends now took the time since the one before."""
        now = self.now()
        self.laps[step], self.last = now - self.last, now

    def row(self) -> dict[str, str]:
        """The closing table's row."""
        parts = ", ".join(f"{step} {seconds:.1f}" for step, seconds in self.laps.items())
        return {"seconds": f"{sum(self.laps.values()):.0f} = {parts}"}


if __name__ == "__main__":
    run(PipelineConfig, main, __doc__)
