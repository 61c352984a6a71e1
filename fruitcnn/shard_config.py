"""What the shard job takes: the settings that shards.py carries out. No numpy here, so that --help is quick."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class ShardConfig(BaseModel):
    """What `python -m jobs.shard` takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(
        description="labelled pictures: a folder, .zip, .tar(.gz), s3://bucket/prefix, kaggle:OWNER/NAME or "
        "synthetic[:CLASSESxFRAMES]"
    )
    dataset: str = Field(description="where the data set goes: a local path or s3://bucket/prefix")
    root: str | None = Field(
        default=None, description="folder inside the source that holds Training and Test, where there are several"
    )
    test_fraction: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="share of the pictures that becomes the test split of a source without one",
    )
    seed: int = Field(default=0, ge=0, description="seed of that split")
    allow_class_mismatch: bool = Field(
        default=False, description="accept a source whose Training and Test folders hold different classes"
    )
    shard_bytes: int = Field(
        default=64_000_000, ge=1, le=1_000_000_000, description="largest size of a shard, in bytes of pictures"
    )
    max_pixels: int = Field(default=200_000_000, ge=1, description="reject pictures of more pixels (width x height)")
    max_rejected: float = Field(
        default=0.1, ge=0, le=1, description="share of the files that may be rejected before the job fails"
    )

    def row_settings(self) -> dict[str, Any]:
        """The settings that decide which files become rows of which split: fixed for the life of a data set."""
        return self.model_dump(include={"root", "test_fraction", "seed", "max_pixels"})
