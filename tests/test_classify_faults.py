"""jobs.classify under fault: killed at random, started twice, a store that fails. FRUITCNN_ROUNDS=20: the long way."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from fault_server import CUT, SLOW_DOWN, Answer, fault_server
from test_classify import kill, no_progress, part_hashes, rows_by_id, start, wait_for, with_
from tiny_bundle import write_bundle

from cluster.local_s3 import LocalS3
from fruitcnn import storage
from fruitcnn.classify import classify
from fruitcnn.classify_config import ClassifyConfig
from fruitcnn.predictions import load_manifest

NUM_ROUNDS = int(os.environ.get("FRUITCNN_ROUNDS", "2"))
NUM_PICTURES = 1000 * max(1, NUM_ROUNDS)
PART_IMAGES = 50

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120 + 90 * NUM_ROUNDS)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_bundle(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, jpeg_bytes: Callable[..., bytes]) -> str:
    """Enough pictures for a kill in the middle; every fiftieth is damaged."""
    folder = tmp_path_factory.mktemp("many")
    contents = [jpeg_bytes(seed, 400, 300) for seed in range(50)]
    for number in range(NUM_PICTURES):
        data = contents[number % 50]
        (folder / f"{number:05d}.jpg").write_bytes(data[:500] if number % 50 == 7 else data)
    return str(folder)


@pytest.fixture
def job(model: str, many: str, tmp_path: Path) -> ClassifyConfig:
    return ClassifyConfig(model=model, images=many, predictions=str(tmp_path / "out"), part_images=PART_IMAGES)


def undisturbed(job: ClassifyConfig, tmp_path: Path) -> dict[str, str]:
    calm = with_(job, predictions=str(tmp_path / "undisturbed"))
    classify(calm, no_progress)
    return part_hashes(calm.predictions)


def num_parts(job: ClassifyConfig) -> int:
    return sum(1 for _ in storage.list_files(f"{job.predictions}/parts"))


def kill_actors(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the actors that classify; Ray starts others, and the job goes on."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if "MapWorker" in " ".join(child.cmdline()):
            child.kill()


def kill_driver(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the driver alone: Ray's processes notice, and end themselves."""
    process.kill()
    process.wait()


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not happened() and process.poll() is None:
        time.sleep(0.01)


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        kill(process)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def anywhere(job: ClassifyConfig, request: pytest.FixtureRequest) -> ClassifyConfig:
    """The job, on this disk and on S3."""
    if request.param == "local":
        return job
    prefix = request.getfixturevalue("s3_prefix")
    storage.upload_directory(job.images, f"{prefix}/in")
    return with_(job, images=f"{prefix}/in", predictions=f"{prefix}/out")


@pytest.mark.long
@pytest.mark.ray
def test_killed_at_random_moments_the_predictions_are_those_of_an_undisturbed_run(
    anywhere: ClassifyConfig, tmp_path: Path
) -> None:
    job = anywhere
    wanted = undisturbed(job, tmp_path)
    draw = random.Random(NUM_ROUNDS)
    kills = [kill, kill_actors, kill_driver, kill]
    num_killed = 0
    for number in range(NUM_ROUNDS):
        # With actors asked for, Ray does it all; without, this process begins: both must stand it.
        process = start(with_(job, num_actors=None if number % 4 == 3 else 1))
        aim = num_parts(job) + draw.randrange(0, max(1, NUM_PICTURES // PART_IMAGES // NUM_ROUNDS // 2))
        try:
            wait_until(lambda aim=aim: num_parts(job) >= aim, process)
            time.sleep(draw.random() / 10)
            if process.poll() is not None:
                break  # it was quicker, and is done
            num_killed += 1
            kills[number % 4](process)
            if kills[number % 4] is kill_actors:
                aim = num_parts(job) + 2
                wait_until(lambda aim=aim: num_parts(job) >= aim, process)
        finally:
            end(process)
    manifest = classify(job, no_progress)
    assert num_killed >= NUM_ROUNDS // 2
    assert part_hashes(job.predictions) == wanted
    assert (manifest.books.num_listed, manifest.books.rejected_by_cause) == (
        NUM_PICTURES,
        {"truncated": NUM_PICTURES // 50},
    )
    assert len(rows_by_id(str(tmp_path / "undisturbed"))) == NUM_PICTURES, "the same bytes, so the same rows"
    print(f"\n{num_killed} kills, {manifest.timing.attempt} attempts, {NUM_PICTURES:,} rows as undisturbed")


def test_the_same_job_started_twice_at_once_ends_as_one(job: ClassifyConfig, tmp_path: Path) -> None:
    wanted = undisturbed(job, tmp_path)
    processes = [start(job) for _ in range(2)]
    try:
        codes = [process.wait(timeout=100) for process in processes]
        said = [process.stderr.read().decode() for process in processes if process.stderr]
    finally:
        for process in processes:
            end(process)
    assert 0 in codes
    for code, text in zip(codes, said, strict=True):
        assert code == 0 or "was started meanwhile and finishes the run" in text, text
    assert part_hashes(job.predictions) == wanted
    assert len(rows_by_id(job.predictions)) == NUM_PICTURES


@pytest.fixture
def far(job: ClassifyConfig, s3_prefix: str, jpeg_bytes: Callable[..., bytes]) -> ClassifyConfig:
    """A job over 300 objects on S3."""
    for number in range(300):
        storage.write(f"{s3_prefix}/in/{number:03d}.jpg", jpeg_bytes(number % 40))
    return with_(job, images=f"{s3_prefix}/in", predictions=f"{s3_prefix}/out")


def run_at(endpoint_url: str, config: ClassifyConfig) -> subprocess.CompletedProcess[str]:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in config.model_dump(exclude_defaults=True).items()]
    return subprocess.run(
        [sys.executable, "-m", "jobs.classify", *flags], capture_output=True, text=True, timeout=100, check=False,
        env=os.environ | {"AWS_ENDPOINT_URL": endpoint_url},
    )  # fmt: skip


@pytest.mark.s3
def test_a_store_that_slows_down_or_breaks_off_changes_no_row(far: ClassifyConfig, s3: LocalS3, s3_prefix: str) -> None:
    draw, faults = random.Random(0), []

    def answer(number: int, method: str, path: str) -> Answer | None:
        if draw.random() >= 0.05:
            return None
        faults.append(path)
        return draw.choice([SLOW_DOWN, CUT])

    calm = with_(far, predictions=f"{s3_prefix}/calm")
    classify(calm, no_progress)
    with fault_server(answer, s3.endpoint_url) as server:
        done = run_at(server.endpoint_url, far)
    assert done.returncode == 0, done.stderr
    assert len(faults) >= 10
    assert part_hashes(far.predictions) == part_hashes(calm.predictions)
    manifest = load_manifest(far.predictions)
    assert manifest is not None
    assert manifest.books.num_ok == 300


@pytest.mark.s3
def test_a_refusal_fails_at_once_and_says_so(far: ClassifyConfig, s3: LocalS3) -> None:
    refused: Answer = (403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")

    def answer(number: int, method: str, path: str) -> Answer | None:
        return refused if method == "GET" and path.endswith(".jpg") else None

    with fault_server(answer, s3.endpoint_url) as server:
        began = time.monotonic()
        done = run_at(server.endpoint_url, far)
    assert done.returncode in (1, 2)
    assert "AccessDenied" in done.stderr
    assert time.monotonic() - began < 60
    assert storage.is_empty(f"{far.predictions}/parts")


@pytest.mark.s3
def test_killed_on_s3_the_same_command_finishes(far: ClassifyConfig, s3_prefix: str) -> None:
    calm = with_(far, predictions=f"{s3_prefix}/calm", part_images=10)
    classify(calm, no_progress)
    job = with_(far, part_images=10)
    process = start(job)
    try:
        wait_for(lambda: not storage.is_empty(f"{job.predictions}/parts"), process)
    finally:
        kill(process)
    classify(job, no_progress)
    assert part_hashes(job.predictions) == part_hashes(calm.predictions)
