"""What jobs.classify is asked for; by itself, so that --help need not import more. Pure; for classify."""

import re
from fractions import Fraction
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fruitcnn import storage

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%|(\d+)")


class ClassifyConfig(BaseModel):
    """What `python -m jobs.classify` takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="frozen model: the URI that jobs.freeze wrote, or registry:NAME@champion")
    images: str = Field(
        description="what to classify: a folder, s3://bucket/prefix, .zip, .tar, .tar.gz, a .txt or .parquet list of "
        "URIs, or a data set written by jobs.shard"
    )
    predictions: str = Field(description="where the predictions go: a local path or s3://bucket/prefix")
    split: str | None = Field(default=None, description="of a data set: classify this split only (train or test)")
    runtime: Literal["auto", "openvino", "onnxruntime", "tensorflow", "keras"] = Field(
        default="auto", description="what runs the model; auto takes the fastest whose golden answers agree"
    )
    precision: Literal["float32", "bf16"] = Field(
        default="float32",
        description="arithmetic of the model: bf16 is faster on CPUs that have it (OpenVINO only), and less exact; how "
        "near its golden answers are is printed",
    )
    top_k: int = Field(default=5, ge=1, description="labels and scores kept per picture")
    probabilities: bool = Field(default=False, description="also write every label's probability, as a list column")
    min_confidence: float = Field(
        default=0.0, ge=0, le=1, description="predictions with less confidence than this get the status unsure"
    )
    max_rejected: str = Field(
        default="100%", description="rejected inputs, as a number or as N%, beyond which the job ends with exit code 1"
    )
    max_pixels: int = Field(default=200_000_000, ge=1, description="reject pictures of more pixels (width x height)")
    batch_size: int = Field(default=256, ge=1, le=65536, description="pictures per call of the model")
    part_images: int = Field(default=2048, ge=1, le=1_000_000, description="largest number of inputs in a part")
    part_bytes: int = Field(
        default=256_000_000, ge=1, description="a part is closed once its inputs hold this many bytes"
    )
    num_actors: int | None = Field(
        default=None,
        ge=1,
        description="Ray actors that classify; by default one per CPU of the cluster, and none where this process and "
        "those beside it are done before Ray would be up",
    )
    memory_bytes: int = Field(
        default=1 << 30,
        ge=1 << 20,
        description="memory that each process that classifies (one a CPU, so a job N times as much on N CPUs) may "
        "take, bytes: large pictures wait for each other",
    )
    sample: int | None = Field(
        default=None, ge=1, description="for a first look: classify only this many of the inputs, chosen at random"
    )
    retry_rejected: bool = Field(
        default=False,
        description="classify the rejected inputs of a finished run once more; all other rows stay as they are",
    )
    cause: tuple[str, ...] | None = Field(
        default=None, description="with --retry-rejected: only those rejected for these causes, as in not-found"
    )
    csv: bool = Field(default=False, description="also write the rows as CSV, one file a part, under csv/")
    organise: str | None = Field(
        default=None,
        description="also put the pictures into a folder for each label there: a local path or s3://bucket/prefix",
    )
    organise_by: Literal["link", "copy"] = Field(
        default="link", description="with --organise: hard links (copies if the disks differ), or copies always"
    )
    since_promotion: str | None = Field(
        default=None,
        description="predictions of the former champion for the same images: classify again only what could change, "
        "and a random sample that shows what this misses",
    )
    max_margin: float = Field(
        default=0.5, ge=0, le=1, description="with --since-promotion: pictures whose two best scores were closer"
    )
    audit_share: float = Field(
        default=0.02, ge=0, le=1, description="with --since-promotion: share of the others to audit"
    )
    dry_run: bool = Field(
        default=False,
        description="only list, try a sample for up to 20 s, say what the run would take, and write nothing",
    )

    @field_validator("max_rejected")
    @classmethod
    def _number_or_percent(cls, value: str) -> str:
        if not _PERCENT.fullmatch(value) or (value.endswith("%") and float(value[:-1]) > 100):
            raise ValueError(f"got {value!r}, wanted a number of inputs, as in 25, or a share, as in 0.5%")
        return value

    @model_validator(mode="after")
    def _cause_of_a_retry(self) -> Self:
        if self.cause is not None and not self.retry_rejected:
            raise ValueError(f"--cause: got {','.join(self.cause)} without --retry-rejected, wanted both or neither")
        return self

    @model_validator(mode="after")
    def _since_is_no_sample(self) -> Self:
        if self.since_promotion and self.sample:
            raise ValueError("--sample: got it beside --since-promotion, which chooses the inputs; wanted one of them")
        return self

    @model_validator(mode="after")
    def _bf16_is_openvino(self) -> Self:
        if self.precision == "bf16" and self.runtime not in ("auto", "openvino"):
            raise ValueError(f"--precision: got bf16 with --runtime {self.runtime}, wanted --runtime openvino or auto")
        return self

    def rejected_limit(self, num_listed: int) -> Fraction:
        """The number of rejected inputs that is still accepted of num_listed; exact: 29 of 100 are 29%."""
        share, percent, _ = self.max_rejected.partition("%")
        return Fraction(share) / 100 * num_listed if percent else Fraction(share)

    def row_settings(self, runtime: str) -> dict[str, Any]:
        """All that decides what the rows say, besides the model: part of the run's identity."""
        names = {"split", "top_k", "probabilities", "min_confidence", "max_pixels", "batch_size", "part_images"}
        if self.since_promotion:
            names |= {"since_promotion", "max_margin", "audit_share"}
        chosen = self.model_dump(include=names | {"part_bytes", "sample"})
        return {"images": storage.normalise(self.images), "runtime": runtime, **chosen}
