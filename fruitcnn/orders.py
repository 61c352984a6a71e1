"""What an actor is told, and what it answers: all that passes between execute and infer. Pure; travels through Ray."""

from pydantic import BaseModel, ConfigDict, Field

from fruitcnn.books import PartBooks
from fruitcnn.effort import Effort

CALLS_PER_ACTOR = 2
"""Parts that one actor works on at a time: the next one is read ahead while the model ends the current one."""


class Options(BaseModel):
    """What an actor needs to know besides the plan."""

    model_config = ConfigDict(frozen=True)

    batch_size: int
    top_k: int
    probabilities: bool
    min_confidence: float
    max_pixels: int
    witness: str | None = Field(default=None, description="An object on S3 that could be read when the run started.")
    memory_bytes: int = Field(1 << 30, description="What an actor may take in all.")
    retry: bool = Field(False, description="Take the rejected rows of parts that have a file, instead of whole parts.")
    retry_causes: tuple[str, ...] | None = Field(None, description="Of them those with these causes; None: all.")
    num_threads: int = Field(description="Threads that read, decode and run the model, each a batch of its own.")


class Outcome(BaseModel):
    """What an actor reports of a part: its books, or why the store kept it from being written."""

    model_config = ConfigDict(frozen=True)

    part: int
    books: PartBooks | None = None
    effort: Effort = Effort()
    num_cpus: int = Field(1, description="CPUs of all that classify.")
    error: str | None = None
