"""What jobs.train --compare is asked for. Pure; for compare."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

# As many colours as can be told apart.
_MOST_COMPARED = 6


class CompareConfig(BaseModel):
    """What `jobs.train --compare` is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    compare: tuple[str, ...] = Field(description="runs to compare, two to six: folders or s3:// prefixes")
    page: str = Field("work/compare.html", description="where the page goes: a path or s3:// URI ending in .html")

    @field_validator("compare")
    @classmethod
    def _has_some(cls, runs: tuple[str, ...]) -> tuple[str, ...]:
        if not 2 <= len(set(runs)) <= _MOST_COMPARED:
            got = ", ".join(dict.fromkeys(runs)) or "nothing"
            raise ValueError(f"--compare: got {got}, wanted two to {_MOST_COMPARED} different runs: --compare RUN,RUN")
        return tuple(dict.fromkeys(runs))
