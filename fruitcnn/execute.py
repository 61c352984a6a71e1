"""Parts of a plan -> files: this process and its crew begin, Ray Data's actors go on. Between classify and actor.

What is small goes through Ray: a part's number one way, its books the other. A job that ends before Ray would be up
never starts it; where a Ray session or RAY_ADDRESS is at hand, or a number of actors was asked for, Ray does it all.
"""

import gc
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from fruitcnn.actor import ClassifyActor, PartClassifier
from fruitcnn.books import ClassifyError, PartBooks
from fruitcnn.crew import GPU_RUNTIMES, PROCESSES_HERE, may_work_here, num_processes, pays
from fruitcnn.effort import Effort
from fruitcnn.fetch import find_witness
from fruitcnn.head_start import NO_MORE_CPUS_PAYS_SECONDS, RAY_PAYS_SECONDS, HeadStart
from fruitcnn.infer import Model, open_models
from fruitcnn.orders import CALLS_PER_ACTOR, Options, Outcome
from fruitcnn.plan import PlanReader
from fruitcnn.predictions import read_finished, require_newest

if TYPE_CHECKING:
    from fruitcnn.classify import ClassifyConfig, Progress, Run

Session = Callable[[], AbstractContextManager[None]]
"""Opens a Ray session: jobs.cli.ray_session is one."""

ACTOR_DEATHS = 5
"""How often a part may take its actor down (out of memory, a decoder's crash) before the job fails."""

_ATTEMPT_CHECK_SECONDS = 5.0
_PARTS_THAT_PREDICT = 8
_MAX_BLOCKS = 4096  # what the driver keeps track of, however many parts there are


def classify_parts(
    run: "Run", pending: Sequence[int], attempt: int, progress: "Progress", session: Session | None
) -> "Work":
    """All parts of the plan: those found finished, and the pending ones, classified now."""
    finished = sorted(set(range(run.plan.num_parts)).difference(pending))
    found = read_finished(run.predictions, run.plan, finished)
    todo, num_retried = list(pending), 0
    if run.config.retry_rejected:
        counts = {part.part: part.num_rejected_for(run.config.cause) for part in found}
        todo, num_retried = [part for part, count in counts.items() if count], sum(counts.values())
        found = [part for part in found if not counts[part.part]]
    num_todo = run.plan.num_inputs - sum(part.num_rows for part in found)
    work = Work(found, run.predictions, attempt, num_todo, num_retried)
    with progress("classify", run.plan.num_inputs, "images", work.num_done) as update:
        if todo:
            execute(run, todo, lambda outcome: work.take(outcome, update), session)
    require_newest(run.predictions, attempt)
    work.parts.sort(key=lambda part: part.part)
    return work


class Work:
    """The parts that are done, as they come in, from any thread."""

    def __init__(self, parts: list[PartBooks], predictions: str, attempt: int, num_todo: int, num_retried: int) -> None:
        self.parts = parts
        self.num_retried = num_retried
        self.num_done = sum(part.num_rows for part in parts)
        self.predicted_seconds: float | None = None
        self.effort, self.num_cpus = Effort(), 1
        self._num_before, self._num_todo = len(parts), num_todo
        self._num_rejected = sum(part.num_rejected for part in parts)
        self._predictions, self._attempt = predictions, attempt
        self._started_seconds = self._checked_seconds = time.monotonic()
        self._num_new = 0
        self._first: tuple[float, int] | None = None  # when the first part was done, seconds, and its inputs
        self._lock = threading.Lock()

    def take(self, outcome: Outcome, update: Callable[..., None]) -> None:
        """Add a part and show it; ClassifyError if it failed for good, or if a newer attempt took over."""
        if outcome.books is None:
            raise ClassifyError(f"{outcome.error}\nwhat is written stays: the same command continues")
        with self._lock:
            self.parts.append(outcome.books)
            self.effort += outcome.effort
            self.num_cpus = max(self.num_cpus, outcome.num_cpus)
            self.num_done += outcome.books.num_rows
            self._num_new += outcome.books.num_rows
            self._num_rejected += outcome.books.num_rejected
            update(self.num_done, f"{self._num_rejected:,} rejected" if self._num_rejected else "")
            self._predict()
            if time.monotonic() - self._checked_seconds > _ATTEMPT_CHECK_SECONDS:
                require_newest(self._predictions, self._attempt)
                self._checked_seconds = time.monotonic()

    def _predict(self) -> None:
        """From the first few parts: how long all will take. The first one waited for the model, so it sets no pace."""
        num_parts, seconds = len(self.parts) - self._num_before, time.monotonic() - self._started_seconds
        if num_parts > _PARTS_THAT_PREDICT:
            return
        if self._first is None or num_parts <= CALLS_PER_ACTOR:
            self._first = self._first or (seconds, self._num_new)
            self.predicted_seconds = round(seconds * self._num_todo / self._num_new, 3)
            return
        first_seconds, num_first = self._first
        pace = (seconds - first_seconds) / (self._num_new - num_first)
        self.predicted_seconds = round(first_seconds + pace * (self._num_todo - num_first), 3)


def execute(run: "Run", pending: Sequence[int], take: Callable[[Outcome], None], session: Session | None) -> None:
    """Classify the pending parts; take(outcome) gets each as it is done, from any thread.

    What take raises ends the work: parts under way are finished, and stay. session None: the Ray session at hand, or
    this process alone.
    """
    witness = find_witness(PlanReader(run.predictions, run.plan).read(pending[0]))
    options = local_options(run.config, witness)
    if not may_work_here(run.runtime, run.config.num_actors):
        with session() if session else nullcontext():
            for outcome in _on_ray(run, pending, options):
                take(outcome)
        return
    num_cpus = len(os.sched_getaffinity(0))
    pays_seconds = RAY_PAYS_SECONDS if num_cpus > PROCESSES_HERE else NO_MORE_CPUS_PAYS_SECONDS
    works = [partial(_take_from, each, take) for each in _all_hands(run, len(pending), options)]
    with HeadStart(pending, works * CALLS_PER_ACTOR, pays_seconds) as start:
        if session and start.ray_pays():
            with session():
                given = start.hand_over()
                for outcome in _on_ray(run, given, options) if given else ():
                    take(outcome)


def _take_from(classify_part: Callable[[int], Outcome], take: Callable[[Outcome], None], part: int) -> None:
    take(classify_part(part))


def _all_hands(run: "Run", num_parts: int, options: Options) -> list[Callable[[int], Outcome]]:
    """What classifies a part here: this process and one more for each CPU, or this one with a thread for each CPU."""
    num, plan, crew = num_processes(), run.plan, run.crew
    if pays(plan.num_inputs * num_parts // plan.num_parts, plan.num_bytes * num_parts // plan.num_parts, num_parts):
        crew.start(run.config.model, run.runtime)
    if not crew.is_started:
        options = options.model_copy(update={"num_threads": num})
    others = crew.given(run.predictions, options)
    models: list[Model] = [run.model] if run.model else []
    models += open_models(run.config.model, run.runtime, options.num_threads - len(models))
    here = PartClassifier(run.predictions, plan, models, options)
    gc.freeze()  # what is there by now stays: Python's collector need not walk it with every part

    def counted(classify_part: Callable[[int], Outcome]) -> Callable[[int], Outcome]:
        return lambda part: classify_part(part).model_copy(update={"num_cpus": num})

    return [counted(each) for each in (here.run, *others)]


def share_out(node_cpus: Sequence[int], num_actors: int | None, num_parts: int) -> tuple[int, int]:
    """(actors, CPUs for each) such that all of them find room on the nodes at once.

    num_actors None: one for every CPU, as the threads of one process wait for its interpreter's lock. Never more than
    parts or CPUs.
    """
    num = max(1, min(num_actors or num_parts, num_parts, sum(node_cpus)))
    fitting = (
        each for each in range(max(node_cpus, default=1), 1, -1) if sum(cpus // each for cpus in node_cpus) >= num
    )
    return num, next(fitting, 1)


def local_options(config: "ClassifyConfig", witness: str | None = None) -> Options:
    """What an actor in this process needs to know."""
    shared = {"batch_size", "top_k", "probabilities", "min_confidence", "max_pixels", "memory_bytes"}
    return Options(
        **config.model_dump(include=shared),
        retry=config.retry_rejected,
        retry_causes=config.cause,
        num_threads=1,
        witness=witness,
    )


def _on_ray(run: "Run", parts: Sequence[int], options: Options) -> Iterator[Outcome]:
    """Ray Data over the parts: their numbers go in, an Outcome comes back as each is done."""
    import ray
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    node_cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    num_gpus = int(ray.cluster_resources().get("GPU", 0)) if run.runtime in GPU_RUNTIMES else 0
    wanted = min(run.config.num_actors or num_gpus, num_gpus) if num_gpus else run.config.num_actors
    num_actors, cpus_per_actor = share_out(node_cpus, wanted, len(parts))
    # As many as were asked for; else more as nodes join, as Ray Data starts no more than there are CPUs for.
    most = num_actors if run.config.num_actors or num_gpus else len(parts)
    numbers = [{"part": part} for part in parts]
    # Ray 2.60 announces that max_task_retries goes, and names nothing in its place; without it, a picture that takes
    # its process down would be tried for ever.
    warnings.filterwarnings("ignore", message=".*ray_remote_args_fn", category=DeprecationWarning)
    options = options.model_copy(update={"num_threads": cpus_per_actor})
    outcomes = ray.data.from_items(numbers, override_num_blocks=min(len(parts), _MAX_BLOCKS)).map_batches(
        ClassifyActor,
        batch_size=1,
        fn_constructor_args=(run.predictions, run.config.model, run.runtime, options),
        compute=ray.data.ActorPoolStrategy(
            min_size=num_actors,
            max_size=most,
            max_concurrent_calls_per_actor=CALLS_PER_ACTOR,
            max_tasks_in_flight_per_actor=2 * CALLS_PER_ACTOR,
            enable_true_multi_threading=True,
        ),
        num_cpus=cpus_per_actor,
        num_gpus=1 if num_gpus else None,
        ray_remote_args_fn=lambda: {"max_task_retries": ACTOR_DEATHS},
    )
    outcomes.set_name(f"classify-{run.plan.run_id[:8]}")  # what Ray's dashboard calls it
    for row in outcomes.iter_rows():
        outcome = Outcome.model_validate_json(row["outcome"])
        num_cpus = min(most * cpus_per_actor, max(num_actors * cpus_per_actor, _num_cpus()))
        yield outcome.model_copy(update={"num_cpus": num_cpus})


def _num_cpus() -> int:
    import ray

    return int(ray.cluster_resources().get("CPU", 0))
