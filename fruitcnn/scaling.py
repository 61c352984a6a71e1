"""What N nodes would take: a discrete simulation of classify, the step arithmetic of train. Pure; fed by measurements.

Used before a job by --dry-run, and by bench to say where 10 to 1,000 nodes stop helping. What is simulated is what the
jobs do: the driver lists and plans, hands a part to a free actor, the actor reads (through requests that the store
serves at a limited rate), decodes and infers, commits, and the driver enters the part in the books. Every cost is a
measured one; nothing is known here about the network between nodes beyond the rates that are given.
"""

import heapq
from collections.abc import Mapping
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

RAY_START_SECONDS = 7.0
"""From the command to the first part in an actor. This and the next: bench/scaling.py, one machine, all cores busy."""

DRIVER_SECONDS_PER_PART = 0.013


class ClassifyCosts(BaseModel):
    """Measured costs of classify's stages; the defaults of the store are the published limits of S3."""

    model_config = ConfigDict(frozen=True)

    start_seconds: float = Field(
        default=RAY_START_SECONDS,
        ge=0,
        description="From the command to the first part being handed out, all nodes at once.",
    )
    listing_per_second: float = Field(gt=0, description="Names that the driver lists and plans in a second.")
    driver_seconds_per_part: float = Field(
        default=DRIVER_SECONDS_PER_PART, ge=0, description="Driver's own work to hand out a part and enter its books."
    )
    core_seconds_per_image: float = Field(gt=0, description="Read, decode and infer one picture, on one core.")
    commit_seconds: float = Field(default=0.05, ge=0, description="Latency of writing a part and its record.")
    requests_per_image: float = Field(default=1, ge=0, description="0 where an archive is read in large ranges.")
    requests_per_part: float = Field(default=2, ge=0, description="Puts of a part.")
    requests_per_second: float = Field(
        default=5500, gt=0, description="GET requests that one prefix of the store serves in a second (S3 user guide)."
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


class Cluster(NamedTuple):
    """Equal nodes of one actor each."""

    num_nodes: int
    cores_per_node: int


class Forecast(NamedTuple):
    """What a job would take, and how busy what it shares would be (0 to 1, of the whole time)."""

    seconds: float
    images_per_second: float
    busy: dict[str, float]

    @property
    def words(self) -> str:
        """For a person: the time, and what it goes to."""
        shares = sorted(self.busy.items(), key=lambda item: -item[1])[:2]
        return f"{_duration(self.seconds)} ({', '.join(f'{name} {share:.0%}' for name, share in shares)})"

    @property
    def bottleneck(self) -> str:
        """The resource that is busiest over the whole job."""
        return max(self.busy, key=lambda name: self.busy[name])


def simulate_classify(costs: ClassifyCosts, cluster: Cluster, num_images: int, part_images: int) -> Forecast:
    """Play the job part by part: each actor takes the next part when it is free; driver and store serve one at a time.

    num_images and part_images are at least 1. Deterministic: no part is given another size or cost than the measured
    mean, so stragglers are not in it.
    """
    sizes = [part_images] * (num_images // part_images) + (
        [num_images % part_images] if num_images % part_images else []
    )
    listed = num_images / costs.listing_per_second
    first = costs.start_seconds + listed
    driver_free = store_free = first
    driver_busy = store_busy = compute_busy = 0.0
    actors = [first] * cluster.num_nodes
    heapq.heapify(actors)
    end = first
    for size in sizes:
        ready = heapq.heappop(actors)
        driver_free = max(driver_free, ready) + costs.driver_seconds_per_part
        driver_busy += costs.driver_seconds_per_part
        served = (size * costs.requests_per_image + costs.requests_per_part) / costs.requests_per_second
        store_free = max(store_free, driver_free) + served
        store_busy += served
        compute = size * costs.core_seconds_per_image / cluster.cores_per_node
        compute_busy += compute
        # Reading runs ahead of decoding, so a part takes the longer of the two, not their sum.
        done = max(store_free, driver_free + compute) + costs.commit_seconds
        heapq.heappush(actors, done)
        end = max(end, done)
    busy = {
        "start": costs.start_seconds / end,
        "listing": listed / end,
        "driver": driver_busy / end,
        "store": store_busy / end,
        "compute": compute_busy / cluster.num_nodes / end,
    }
    return Forecast(end, num_images / end, busy)


GROUP_SECONDS = 0.008
"""Measured by bench/scaling.py between two processes of one machine."""


class TrainCosts(BaseModel):
    """Measured costs of a training step."""

    model_config = ConfigDict(frozen=True)

    start_seconds: float = Field(ge=0, description="From the command to the first step.")
    core_seconds_per_image: float = Field(gt=0, description="Forward and backward pass of one picture, on one core.")
    step_seconds: float = Field(ge=0, description="Cost of a step that does not depend on its rows.")
    scoring_core_seconds: float = Field(default=0, ge=0, description="All validations of the run, on one core.")
    gradient_bytes: int = Field(ge=0, description="Bytes that one all-reduce carries.")
    link_bytes_per_second: float = Field(
        default=1.25e9, gt=0, description="Bandwidth between two nodes; by default 10 Gbit/s, which is assumed."
    )
    link_seconds: float = Field(
        default=5e-5, ge=0, description="Latency of one message between two nodes; by default 50 us, which is assumed."
    )
    group_seconds: float = Field(
        default=GROUP_SECONDS,
        ge=0,
        description="What a step of several workers takes beside the network: TensorFlow's work, the wait for a peer.",
    )


def row_and_step(step_seconds: Mapping[int, float]) -> tuple[float, float]:
    """Steps timed at one or two sizes, rows -> seconds: (seconds of a row, seconds of a step beside its rows).

    Right at the larger size. Neither is negative: where a row costs more in the larger step, all of it is its rows'.
    """
    small, large = min(step_seconds), max(step_seconds)
    per_row = step_seconds[large] / large
    if step_seconds[small] < step_seconds[large]:
        per_row = min(per_row, (step_seconds[large] - step_seconds[small]) / (large - small))
    return per_row, step_seconds[large] - large * per_row


def forecast_train(costs: TrainCosts, cluster: Cluster, images_seen: int, global_batch_size: int) -> Forecast:
    """Seconds of a run whose global batch stays the same on any number of nodes; ring all-reduce.

    A ring moves 2 (N - 1) / N of the bytes over every link in 2 (N - 1) messages: Patarasuk and Yuan, 2009.
    """
    nodes = cluster.num_nodes
    steps = -(-images_seen // global_batch_size)
    compute = global_batch_size / nodes * costs.core_seconds_per_image / cluster.cores_per_node
    reduce = 2 * (nodes - 1) * (costs.gradient_bytes / nodes / costs.link_bytes_per_second + costs.link_seconds)
    reduce += costs.group_seconds if nodes > 1 else 0
    parts = {"compute": compute, "all-reduce": reduce, "step": costs.step_seconds}
    scoring = costs.scoring_core_seconds / cluster.cores_per_node / nodes
    seconds = costs.start_seconds + steps * sum(parts.values()) + scoring
    busy = {"start": costs.start_seconds / seconds, "scoring": scoring / seconds}
    busy |= {name: steps * each / seconds for name, each in parts.items()}
    return Forecast(seconds, images_seen / seconds, busy)
