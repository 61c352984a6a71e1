"""crew.py: other processes classify parts as this one does; what ends them is said, and they end with this one."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fruitcnn import crew, execute, inputs, sorting
from fruitcnn.actor import PartClassifier
from fruitcnn.books import ClassifyError
from fruitcnn.classify import Run, classify, prepare
from fruitcnn.classify_config import ClassifyConfig
from fruitcnn.crew import Crew, Member
from fruitcnn.infer import open_models
from fruitcnn.predictions import pending_parts
from jobs.classify import describe
from tests import frozen_run
from tests.frozen_run import no_progress


@pytest.fixture
def config(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, jpeg_bytes) -> ClassifyConfig:
    model = frozen_run.bundle(tmp_path_factory.getbasetemp()).model
    for number in range(30):
        path = tmp_path / "images" / f"{number:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg_bytes(number) if number % 7 else b"no picture")
    return ClassifyConfig(
        model=str(model), images=str(tmp_path / "images"), predictions=str(tmp_path / "predictions"), part_images=4
    )


@pytest.fixture
def run(config: ClassifyConfig) -> Run:
    return prepare(config)


@pytest.fixture
def member(run: Run) -> Iterator[Member]:
    with Member(run.config.model, run.runtime) as member:
        member.take(run.predictions, execute.local_options(run.config))
        yield member


def use_processes(monkeypatch: pytest.MonkeyPatch, num: int) -> None:
    for module in (crew, execute):
        monkeypatch.setattr(module, "num_processes", lambda: num)


def test_processes_write_the_parts_that_one_process_writes(
    config: ClassifyConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_processes(monkeypatch, 1)
    alone = classify(config, no_progress)
    monkeypatch.setattr(execute, "pays", lambda *_: True)
    use_processes(monkeypatch, 3)
    together = classify(config.model_copy(update={"predictions": str(tmp_path / "together")}), no_progress)
    assert (together.books, together.parts) == (alone.books, alone.parts)
    assert (alone.timing.num_cpus, together.timing.num_cpus) == (1, 3)


@pytest.mark.parametrize("num", [1, 2, 4])
def test_repeats_change_no_byte_whoever_remembers_them(
    num: int, config: ClassifyConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = Path(config.images)
    for number in range(300):
        (images / f"{number:03d}-again.jpg").write_bytes((images / f"{number * 7 % 30:02d}.jpg").read_bytes())
    monkeypatch.setattr(execute, "pays", lambda *_: True)
    use_processes(monkeypatch, num)
    remembering = config.model_copy(update={"part_images": 50, "batch_size": 20})
    forgetful = remembering.model_copy(update={"memory_bytes": 1, "predictions": str(tmp_path / "forgetful")})
    found, wanted = classify(remembering, no_progress), classify(forgetful, no_progress)
    assert found.parts == wanted.parts
    assert found.timing.effort.num_repeats >= 330 - num * 26 > wanted.timing.effort.num_repeats
    assert describe(found)["duplicates"].startswith(f"{found.timing.effort.num_repeats:,}\N{NO-BREAK SPACE}files")


def test_a_member_commits_what_it_is_asked_for(run: Run, member: Member) -> None:
    outcomes = [member.run(part) for part in (5, 2)]
    assert [outcome.part for outcome in outcomes] == [5, 2]
    assert all(outcome.books and outcome.books.num_rows for outcome in outcomes)
    assert pending_parts(run.predictions, run.plan) == [0, 1, 3, 4, 6, 7]


def test_an_error_comes_back_in_words(run: Run, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    with Member(gone, run.runtime) as member:
        member.take(run.predictions, execute.local_options(run.config))
        assert re.match(r"part 3: \w+Error: .*gone", member.run(3).error or "")


def test_a_member_that_is_killed_ends_the_job_with_a_message(member: Member) -> None:
    member._process.send_signal(signal.SIGKILL)
    with pytest.raises(ClassifyError, match="ended with signal SIGKILL"):
        member.run(0)
    with pytest.raises(ClassifyError, match="ended with signal SIGKILL"):
        member.run(1)


def test_a_member_does_not_outlive_a_killed_job(run: Run) -> None:
    code = (
        "import os, signal, sys\n"
        "from fruitcnn.crew import Member\n"
        "from fruitcnn.orders import Options\n"
        "member = Member(*sys.argv[2:4])\n"
        "member.take(sys.argv[1], Options.model_validate_json(sys.argv[4]))\n"
        "member.run(0)\n"
        "print(member._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    options = execute.local_options(run.config).model_dump_json()
    command = [sys.executable, "-c", code, run.predictions, run.config.model, run.runtime, options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    deadline = time.monotonic() + 20
    while _is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_alive(pid)


def test_the_crew_comes_up_while_the_plan_is_made_where_many_pictures_are_found(
    config: ClassifyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "FOUND_AT_A_TIME", 10)
    monkeypatch.setattr(crew, "_LEAST_INPUTS", 20)
    monkeypatch.setattr(crew, "num_processes", lambda: 2)
    told: list[bool] = []

    def sort(objects: Iterator[tuple[str, int]], _: object) -> list[tuple[str, int]]:
        found = sorted(objects)
        told.append(hands.is_started)
        return found

    monkeypatch.setattr(sorting, "sort_unique", sort)
    for change, is_started in ({"part_images": 4}, True), ({"part_images": 30}, False), ({"num_actors": 2}, False):
        place = f"{config.predictions}-{len(told)}"
        with Crew() as hands:
            run = prepare(config.model_copy(update={"predictions": place, **change}), hands)
            assert told.pop() == is_started == run.crew.is_started
            if is_started:
                classify_part = run.crew.given(run.predictions, execute.local_options(run.config))[0]
                assert classify_part(3).books == PartClassifier(
                    run.predictions, run.plan, open_models(config.model, run.runtime, 1), execute.local_options(config)
                ).commit(3)
        told.append(is_started)


@pytest.mark.parametrize(
    ("num_inputs", "num_bytes", "num_parts", "pays"),
    [
        (20_000, 100_000_000, 10, True),
        (20_000, 0, 10, True),
        (5_000, 25_000_000, 3, False),
        (20_000, 12_000_000_000, 47, False),
        (20_000, 100_000_000, 1, False),
    ],
)
def test_processes_pay_for_many_small_pictures(
    num_inputs: int, num_bytes: int, num_parts: int, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "num_processes", lambda: 2)
    assert crew.pays(num_inputs, num_bytes, num_parts) == pays


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
