"""train.py under fault: kills at random steps, frozen workers, deaths at the start. FRUITCNN_ROUNDS=10: the long way.

Whatever happens, the run ends with the weights of one never disturbed, and has trained on exactly the planned rows.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from fruitcnn import checkpoints, runs
from fruitcnn.manifest import load_manifest
from fruitcnn.recipe import TrainConfig
from fruitcnn.sampling import Order
from fruitcnn.shard_config import ShardConfig
from fruitcnn.shards import write_dataset
from jobs.cli import progress
from tests import recording_work
from tests.test_train import final_weights, silent

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.fault, pytest.mark.timeout(3600)]

NUM_ROUNDS = int(os.environ.get("FRUITCNN_ROUNDS", "2"))
NUM_STEPS, BATCH = 16 * max(2, NUM_ROUNDS), 64


@pytest.fixture(scope="module")
def dataset(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("faults") / "dataset")
    write_dataset(ShardConfig(source="synthetic:4x60", dataset=uri), progress)
    return uri


@pytest.fixture(autouse=True)
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fruitcnn.train.work", recording_work.work)


def config(dataset: str, run: Path, **given: Any) -> TrainConfig:
    length = {"images_seen": BATCH * NUM_STEPS, "max_epochs": 1000, "num_evaluations": NUM_STEPS // 2}
    # At full speed: 160 such steps make 1e-2 of a difference of 1e-7, so that nothing but the same bits will do.
    recipe = {"rotate_degrees": 10, "zoom": 0.1, "brightness": 0.1}
    defaults = length | recipe | {"checkpoint_seconds": 1}
    return TrainConfig(dataset=dataset, run=str(run), **(defaults | given))


def workers() -> list[psutil.Process]:
    """The training workers of this process's own Ray session, whatever else runs on this machine."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def last_step(run: Path) -> int:
    names = checkpoints.complete(str(run))
    return int(names[-1].rpartition("-")[2]) if names else 0


class Disturber:
    """A thread that waits for `when`, sends `signal_` to a worker drawn at random, and waits until that is gone."""

    def __init__(self, signal_: signal.Signals, when: Callable[[], bool]) -> None:
        self.signal_, self.when, self.hit = signal_, when, list[tuple[psutil.Process, float]]()
        self.gone_seconds = float("inf")
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self.ended.is_set():
            time.sleep(0.05)
            if self.when() and (found := workers()):
                victim = random.choice(found)
                victim.send_signal(self.signal_)
                self.hit.append((victim, time.monotonic()))
                while not self.ended.wait(0.1):
                    if not victim.is_running():
                        self.gone_seconds = time.monotonic() - self.hit[0][1]
                        return

    def __enter__(self) -> "Disturber":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()


def assert_as_planned(settings: TrainConfig, undisturbed: Path) -> None:
    """The ids consumed are those of the plan, step by step, and the weights those of the run never disturbed."""
    facts = read_facts(settings.run)
    assert facts.num_train_rows < load_manifest(settings.dataset).split("train").num_rows
    order = Order(facts.num_train_rows, settings.seed)
    recording_work.rows_by_step(settings.run, order, BATCH, facts.num_steps)
    from fruitcnn.models import build_model

    variables = build_model(settings.architecture, (32, 32), len(facts.classes)).variables
    both = zip(final_weights(Path(settings.run)), final_weights(undisturbed), strict=True)
    apart = {variable.path: abs(ours - theirs).max() for variable, (ours, theirs) in zip(variables, both, strict=True)}
    furthest = max(apart, key=lambda path: apart[path])
    print(f"\nfurthest from the run never disturbed: {furthest}, {apart[furthest]:.1e}")
    # The mean over two workers of their moving averages is rounded once more; it is all that is not equal to the bit.
    assert apart[furthest] < 1e-4


def read_facts(run: str) -> runs.Facts:
    from dataclasses import fields

    from fruitcnn import storage

    found = storage.read_json(storage.join(run, "config.json"))
    return runs.Facts(**{field.name: found[field.name] for field in fields(runs.Facts)})


@pytest.fixture(scope="module")
def undisturbed(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one worker that nothing happened to; those with two are compared with it as well."""
    from fruitcnn.train import train

    run = tmp_path_factory.mktemp("undisturbed") / "run"
    train(config(dataset, run, num_workers=1), silent)
    return run


def test_killed_at_random_steps_a_run_ends_as_one_never_killed(dataset: str, undisturbed: Path, tmp_path: Path) -> None:
    """Two kills a command: Ray answers the first, the second ends it; then the same command, once with two workers."""
    from fruitcnn.train import train

    run, kills = tmp_path / "run", list[int]()
    draw = random.Random(int(os.environ.get("FRUITCNN_SEED", "0")))
    for number in range(NUM_ROUNDS // 2):
        ended = threading.Event()
        killer = threading.Thread(target=kill_twice, args=(run, draw, kills, ended), daemon=True)
        killer.start()
        with pytest.raises((ray.train.TrainingFailedError, ray.exceptions.RayActorError)) as caught:
            train(config(dataset, run, num_workers=2 if number == NUM_ROUNDS // 2 - 1 else 1, max_failures=1), silent)
        ended.set()
        killer.join()
        assert len(kills) == 2 * (number + 1), f"the run ended of something else: {caught.value}"
    train(config(dataset, run, num_workers=1), silent)
    print(f"\nkilled {len(kills)} times, when the newest checkpoints were {kills} of {NUM_STEPS}")
    assert_as_planned(config(dataset, run), undisturbed)


def kill_twice(run: Path, draw: random.Random, kills: list[int], ended: threading.Event) -> None:
    """Kill a random worker some steps from here, and another one some steps after that, unless the run has `ended`."""
    for _ in range(2):
        target, pause = last_step(run) + draw.randint(1, 6), draw.random() / 2
        while last_step(run) < target or not workers():
            if ended.wait(0.05):
                return
        time.sleep(pause)
        while not (found := workers()) and not ended.wait(0.05):
            pass
        if not found:
            return
        kills.append(last_step(run))
        draw.choice(found).send_signal(signal.SIGKILL)


def test_a_frozen_worker_is_noticed_and_the_run_goes_on(
    dataset: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fruitcnn.train import train

    if NUM_ROUNDS <= 2:
        monkeypatch.setenv("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "10")
    run = tmp_path / "run"
    with Disturber(signal.SIGSTOP, lambda: last_step(run) >= 2) as disturber:
        train(config(dataset, run, num_workers=2), silent)
    print(f"\nthe frozen worker was gone after {disturber.gone_seconds:.0f} s")
    assert disturber.gone_seconds < 60
    assert_as_planned(config(dataset, run), undisturbed)


@pytest.mark.skipif(NUM_ROUNDS <= 2, reason="takes minutes: set FRUITCNN_ROUNDS=10")
@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_lost_during_the_start_is_noticed_and_the_run_goes_on(
    dataset: str, undisturbed: Path, tmp_path: Path, signal_: signal.Signals
) -> None:
    from fruitcnn import train as train_module

    run = tmp_path / "run"
    started = time.monotonic()
    with Disturber(signal_, lambda: bool(workers())) as disturber:
        train_module.train(config(dataset, run, num_workers=2), silent)
    _, hit = disturber.hit[0]
    resumed = runs.read_metrics(str(run))[0]["time"] - time.time() + time.monotonic()
    print(
        f"\n{signal_.name} {hit - started:.0f} s after the call; the worker was gone {disturber.gone_seconds:.0f} s "
        f"later, the run in its steps after {resumed - hit:.0f} s"
    )
    assert disturber.gone_seconds < 120
    assert_as_planned(config(dataset, run), undisturbed)
