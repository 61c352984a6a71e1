"""CPU time that went into the pictures: what the throughput of a run is held against. Used by infer, execute, books."""

import threading

from pydantic import BaseModel, ConfigDict, Field


class Effort(BaseModel):
    """Of so many inputs. What is left of the time of the CPUs went to waiting, the interpreter and the books."""

    model_config = ConfigDict(frozen=True)

    num_inputs: int = 0
    num_repeats: int = Field(0, description="Of them, files equal to one before: neither decoded nor asked about.")
    prepare_seconds: float = Field(0.0, description="Reading, hashing and decoding, CPU time.")
    model_seconds: float = Field(0.0, description="Running the model.")

    def __add__(self, other: "Effort") -> "Effort":
        """The two together."""
        return Effort(
            num_inputs=self.num_inputs + other.num_inputs,
            num_repeats=self.num_repeats + other.num_repeats,
            prepare_seconds=self.prepare_seconds + other.prepare_seconds,
            model_seconds=self.model_seconds + other.model_seconds,
        )

    def ceiling(self, num_cpus: int) -> float | None:
        """Inputs a second if the CPUs did nothing else; None where nothing was measured."""
        seconds = self.prepare_seconds + self.model_seconds
        return self.num_inputs * num_cpus / seconds if seconds else None


class Meter:
    """Adds up the effort of the threads of an actor."""

    def __init__(self) -> None:
        self._sum = Effort()
        self._lock = threading.Lock()

    def add(self, effort: Effort) -> None:
        """Count one batch."""
        with self._lock:
            self._sum += effort

    def take(self) -> Effort:
        """All since the last call: of the parts under way together, so only their sum tells something."""
        with self._lock:
            taken, self._sum = self._sum, Effort()
        return taken
