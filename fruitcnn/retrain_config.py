"""What the retrain job takes: the settings of a night, carried out by retrain.py. No numpy, so that --help is quick."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from fruitcnn.recipe import TrainConfig, TrainingChoices


class RetrainConfig(TrainingChoices):
    """What `python -m jobs.retrain` takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(description="labelled pictures, as jobs.shard takes them; what is new there is taken in")
    dataset: str = Field(description="the data set that grows: a folder or s3://bucket/prefix")
    registry: str = Field(description="the registry: a folder or s3://bucket/prefix, or a name under "
                          "FRUITCNN_REGISTRIES")  # fmt: skip
    root: str | None = Field(None, description="folder inside the source that holds Training and Test, if several do")
    min_new_images: int = Field(1, ge=1, description="train when at least this many training pictures came")
    max_age_days: float = Field(0.0, ge=0, description="train when the last decision is older, days; 0: never for age")
    recent: str | None = Field(None, description="recent predictions of the champion, to watch for drift")
    max_drift: float = Field(
        0.25, gt=0, description="train when the confidences of --recent differ by more (population stability index)"
    )
    force: bool = Field(False, description="train whatever came")
    start: Literal["fresh", "warm"] = Field(
        "fresh",
        description="train afresh, or from the champion's weights (then shorter, and at a smaller --learning-rate, "
        "than afresh)",
    )
    learning_rate: float | None = Field(None, description="largest learning rate")
    seed: int = Field(0, ge=0, description="seed of the first challenger; each later one adds 1")
    thresholds: str | None = Field(
        None, description="YAML file of what a challenger must show; by default as in cluster/retrain/gate.yaml"
    )
    flips: str | None = Field(
        None, description="pictures on which the report shows the labels that change; default the held-out ones"
    )
    notify: str | None = Field(
        None,
        description="URL that gets a JSON summary on promotion, rejection and failure",
        json_schema_extra={"secret": True},
    )
    lease_seconds: float = Field(
        600.0, gt=0, description="how long others wait after this process fell silent, seconds"
    )

    @field_validator("notify")
    @classmethod
    def _over_http(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("http://", "https://")):
            # The rest of it may be a key.
            raise ValueError(f"got {url.partition('://')[0][:8]}..., wanted an http:// or https:// URL")
        return url

    @model_validator(mode="after")
    def _fits_training(self) -> RetrainConfig:
        self.training(dataset="unused", run="unused")
        return self

    def training(self, **more: Any) -> TrainConfig:
        """The config of the training stage. Raises ValidationError where the two do not fit."""
        rate = {} if self.learning_rate is None else {"learning_rate": self.learning_rate}
        return super().training(**rate, **more)
