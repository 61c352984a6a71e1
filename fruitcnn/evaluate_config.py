"""What jobs.evaluate is asked for; by itself, so that --help need not import numpy. Pure; for evaluate."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class EvaluateConfig(BaseModel):
    """What `python -m jobs.evaluate` takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="frozen model: the URI that jobs.freeze wrote, or registry:NAME@champion")
    images: str = Field(
        description="labelled pictures: a data set of jobs.shard, or a folder, prefix, zip or tar with class folders "
        "or a labels.csv"
    )
    evaluation: str = Field(description="where figures and report go: a local path or s3://bucket/prefix")
    labels: str | None = Field(
        None,
        description="a labels.csv that lies elsewhere: columns file and family or label (A|B: either; NONE: neither)",
    )
    split: str | None = Field(None, description="of a data set: this split only, train or test")
    runtime: Literal["auto", "openvino", "onnxruntime", "tensorflow", "keras"] = Field(
        "auto", description="what runs the model"
    )
    max_pixels: int = Field(200_000_000, ge=1, description="reject pictures of more pixels (width x height)")
