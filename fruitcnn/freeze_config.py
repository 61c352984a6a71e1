"""What the freeze job takes: the settings that freezing.py carries out. No numpy here, so that --help is quick."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Format = Literal["onnx", "keras", "saved_model", "weights", "frozen_graph", "tflite", "int8"]
FILES: dict[Format, str] = {
    "onnx": "model.onnx",
    "keras": "model.keras",
    "saved_model": "saved_model",
    "weights": "cnn_fruit.weights.h5",
    "frozen_graph": "frozen_graph.pb",
    "tflite": "model.tflite",
    "int8": "model.int8.onnx",
}
NEEDED: tuple[Format, ...] = ("onnx", "keras", "saved_model")
"""What the jobs themselves read, so every bundle has it: classify and serve, a warm start, a GPU."""
USUAL: tuple[Format, ...] = tuple(name for name in get_args(Format) if name != "int8")


class FreezeConfig(BaseModel):
    """What `python -m jobs.freeze` takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str | None = Field(None, description="finished training run: the URI that jobs.train wrote")
    model: str | None = Field(None, description="where the frozen model goes: an empty folder or s3://bucket/prefix")
    check: str | None = Field(None, description="instead of run and model: prove the frozen model at this URI")
    dataset: str | None = Field(None, description="data set to compare on; default the one of the run")
    formats: tuple[Format, ...] = Field(
        USUAL,
        description=f"what is written, beside {', '.join(NEEDED)}, which always are; int8 is a quantised ONNX file for "
        "tools of your own, whose cost in accuracy is measured",
    )
    data_licence: str | None = Field(
        None, description="licence of the pictures, for the model card; default what a LICENSE file at the source says"
    )
    num_compared: int = Field(
        100_000,
        ge=1,
        description="test images on which all formats are compared with Keras; all of a smaller split",
    )
    answer_share: float = Field(
        0.99,
        gt=0,
        le=1,
        description="share of familiar pictures that the model shall answer; the others, and what is unlike the "
        "training pictures, get the status unsure; 1 answers everything",
    )
    num_golden: int = Field(
        32, ge=1, le=1000, description="test images kept in the bundle with their answers, to prove it by"
    )

    @property
    def written(self) -> tuple[Format, ...]:
        """All formats to write, in the order of Format."""
        return tuple(name for name in get_args(Format) if name in (*NEEDED, *self.formats))

    @model_validator(mode="after")
    def _one_of_two(self) -> FreezeConfig:
        if bool(self.check) == bool(self.run and self.model) or (self.check and (self.run or self.model)):
            given = ", ".join(f"--{name}" for name in ("run", "model", "check") if getattr(self, name)) or "neither"
            raise ValueError(
                f"got {given}, wanted either --run RUN --model MODEL, to freeze, or --check MODEL, to prove one"
            )
        return self
