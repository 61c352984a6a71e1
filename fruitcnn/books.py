"""The books of a classification: what is counted, when it balances, how it is written down. Pure; imports in no time.

Every planned input is in exactly one of ok, unsure and rejected; the sum over the parts equals the plan.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from fruitcnn.effort import Effort


class ClassifyError(ValueError):
    """The run did not end well; what is written stays, and the message says whether the same command continues it."""


def part_path(part: int) -> str:
    """Where a part lies, relative to the predictions folder."""
    return f"parts/part-{part:05d}.parquet"


class PartBooks(BaseModel):
    """The books of one part."""

    model_config = ConfigDict(frozen=True)

    part: int
    num_rows: int
    num_ok: int
    num_unsure: int
    unsure_by_cause: dict[str, int] = {}
    rejected_by_cause: dict[str, int]
    ok_by_label: dict[str, int]
    num_bytes: int = Field(description="Size of the file.")
    sha256: str = Field(description="Of the whole file.")

    @property
    def path(self) -> str:
        """Where the part lies, relative to the predictions folder."""
        return part_path(self.part)

    @property
    def num_rejected(self) -> int:
        """Rows without a prediction."""
        return sum(self.rejected_by_cause.values())

    def num_rejected_for(self, causes: Sequence[str] | None) -> int:
        """Rows rejected for one of these causes; None: for whatever cause."""
        return sum(count for cause, count in self.rejected_by_cause.items() if causes is None or cause in causes)


class Books(BaseModel):
    """The books of a run: every planned input is in exactly one of ok, unsure and rejected_by_cause."""

    model_config = ConfigDict(frozen=True)

    num_listed: int
    num_ok: int
    num_unsure: int
    num_rejected: int
    unsure_by_cause: dict[str, int] = {}
    rejected_by_cause: dict[str, int]
    ok_by_label: dict[str, int]

    def causes_in_words(self) -> str:
        """Why inputs were rejected: "empty 1, truncated 1,200"."""
        return ", ".join(f"{cause} {count:,}" for cause, count in self.rejected_by_cause.items())


class StoredPart(BaseModel):
    """One file of the predictions."""

    model_config = ConfigDict(frozen=True)

    path: str = Field(description="Relative to the predictions folder.")
    num_rows: int
    num_bytes: int
    sha256: str


class Timing(BaseModel):
    """When, and how fast; the only fields that differ between two runs of the same plan."""

    model_config = ConfigDict(frozen=True)

    attempt: int = Field(description="Number of the start that finished the run.")
    finished_at: AwareDatetime
    total_seconds: float = Field(description="Of the last attempt.")
    classify_seconds: float = Field(description="Of it, between handing the parts to Ray and the last part.")
    predicted_seconds: float | None = Field(
        None, description="What classify_seconds was predicted to be, from the first parts of the last attempt."
    )
    num_inputs: int = Field(description="Inputs classified by the last attempt.")
    num_cpus: int = Field(1, description="CPUs that it had.")
    effort: Effort = Field(Effort(), description="CPU time that went into them.")

    @property
    def per_second(self) -> float:
        """Inputs classified a second."""
        return self.num_inputs / max(1e-6, self.classify_seconds)

    @property
    def ceiling_per_second(self) -> float | None:
        """What it would have been had the CPUs only read, decoded and run the model; None where that is not known."""
        return self.effort.ceiling(self.num_cpus)


class RunManifest(BaseModel):
    """The contents of manifest.json."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    run_id: str
    model: str
    model_hash: str
    settings: dict[str, Any]
    config: dict[str, Any] = Field(description="The complete configuration of the attempt that finished the run.")
    books: Books
    num_hidden: int = Field(description="Hidden and system files passed over by the listing.")
    num_repeated: int = Field(description="Names listed more than once, classified once.")
    num_retried: int = Field(0, description="Rejected inputs that a later --retry-rejected took up again.")
    parts: tuple[StoredPart, ...]
    versions: dict[str, str]
    timing: Timing


def add_up(num_listed: int, parts: Iterable[PartBooks]) -> Books:
    """The sum of the parts' books."""
    num_ok = num_unsure = 0
    causes: Counter[str] = Counter()
    unsure: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    for part in parts:
        num_ok += part.num_ok
        num_unsure += part.num_unsure
        causes.update(part.rejected_by_cause)
        unsure.update(part.unsure_by_cause)
        labels.update(part.ok_by_label)
    return Books(
        num_listed=num_listed,
        num_ok=num_ok,
        num_unsure=num_unsure,
        num_rejected=sum(causes.values()),
        unsure_by_cause=dict(sorted(unsure.items())),
        rejected_by_cause=dict(sorted(causes.items())),
        ok_by_label=dict(sorted(labels.items())),
    )


def imbalance(books: Books, part_inputs: Sequence[int], parts: Sequence[PartBooks]) -> str | None:
    """What does not balance, in words; None if the books do: each planned part there once, with its planned rows."""
    numbers = Counter(part.part for part in parts)
    missing = [part for part in range(len(part_inputs)) if part not in numbers]
    surplus = [part for part, times in numbers.items() if times > 1 or not 0 <= part < len(part_inputs)]
    if missing or surplus:
        return f"parts missing: {missing[:10] or 'none'}; parts too many: {surplus[:10] or 'none'}"
    wrong = [part for part in parts if part.num_rows != part_inputs[part.part]]
    if wrong:
        return f"part {wrong[0].part} holds {wrong[0].num_rows} rows, planned {part_inputs[wrong[0].part]}"
    accounted = books.num_ok + books.num_unsure + books.num_rejected
    if accounted != books.num_listed:
        return f"listed {books.num_listed:,}, ok + unsure + rejected {accounted:,}"
    return None
