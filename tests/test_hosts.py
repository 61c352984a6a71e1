"""Three network namespaces as hosts: a link is cut, a host is lost, the head is lost; the work comes out as without.

Needs root and ten minutes: FRUITCNN_HOSTS=WORK turns it on, a folder that jobs.pipeline left (its data set and model).
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.hosts import Hosts, hosts
from fruitcnn import storage

WORK = os.environ.get("FRUITCNN_HOSTS", "")
pytestmark = [
    pytest.mark.long,
    pytest.mark.fault,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(not WORK, reason="FRUITCNN_HOSTS=WORK turns it on (root, ten minutes)"),
]
ROOT = Path(__file__).resolve().parents[1]
CUT_SECONDS = 60.0
BUCKET = "s3://fruitcnn"
TRAIN = ["--dataset", f"{BUCKET}/dataset", "--num-workers", "2", "--cpus-per-worker", "1", "--checkpoint-seconds", "5",
         "--images-seen", os.environ.get("FRUITCNN_HOSTS_IMAGES", "60000")]  # fmt: skip
CLASSIFY = ["--model", f"{BUCKET}/model", "--images", f"{BUCKET}/dataset", "--part-images", "100", "--num-actors", "3"]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with hosts(3, tmp_path_factory.mktemp("hosts")) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in (running.s3.environment | running.cluster.environment).items():
            patch.setenv(name, value)
        for name in ("dataset", "model"):
            storage.upload_directory(Path(WORK) / name, f"{BUCKET}/{name}")
        yield running


def _start(job: str, *arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "jobs.submit", job, "--follow", "--", *arguments], cwd=ROOT)


def _run(job: str, *arguments: str) -> float:
    """Seconds that the job took, submission and all."""
    began = time.monotonic()
    assert _start(job, *arguments).wait(1200) == 0
    return time.monotonic() - began


def _wait(what: Callable[[], bool], job: "subprocess.Popen[bytes]", seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert job.poll() is None, "the job ended before the fault"
        assert time.monotonic() < deadline
        time.sleep(0.5)


def _rows(uri: str) -> pa.Table:
    import pyarrow.parquet as pq

    files = [storage.read(storage.join(uri, "parts", name)) for name in _parts(uri)]
    parts = [pq.read_table(pa.BufferReader(file)) for file in files]
    return pa.concat_tables(parts).select(["id", "sha256", "label", "confidence", "status"]).sort_by("id")


def _parts(uri: str) -> list[str]:
    return sorted(entry.uri.rpartition("/")[2] for entry in storage.list_files(storage.join(uri, "parts")))


def test_classification_comes_out_the_same_through_cut_lost_and_headless(three: Hosts):
    from fruitcnn import predictions

    whole = f"{BUCKET}/predictions-whole"
    print("without a fault:", _run("classify", "--predictions", whole, *CLASSIFY), "s")

    faulted = f"{BUCKET}/predictions-faulted"
    job, began = _start("classify", "--predictions", faulted, *CLASSIFY), time.monotonic()
    _wait(lambda: bool(_parts(faulted)) and three.hosts_of("ClassifyActor") == {1, 2, 3}, job)
    three.cut(2)
    three.kill(3)
    print("link of host 2 cut, host 3 killed, with", len(_parts(faulted)), "parts done")
    time.sleep(CUT_SECONDS)
    three.mend(2)
    assert job.wait(1200) == 0
    print("with a link cut and a host lost:", time.monotonic() - began, "s")
    assert _rows(faulted).equals(_rows(whole))
    three.restart(2)
    three.restart(3)

    headless = f"{BUCKET}/predictions-headless"
    job = _start("classify", "--predictions", headless, *CLASSIFY)
    _wait(lambda: len(_parts(headless)) >= 20, job)
    three.kill(1)
    done = len(_parts(headless))
    assert job.wait(300) == 1
    for number in (1, 2, 3):
        three.restart(number)
    _run("classify", "--predictions", headless, *CLASSIFY)
    manifest = predictions.load_manifest(headless)
    assert manifest is not None
    print("head killed with", done, "parts done; submitted again:", manifest.timing.num_inputs, "inputs were left")
    assert manifest.timing.num_inputs < manifest.books.num_listed
    assert _rows(headless).equals(_rows(whole))


def test_training_survives_a_cut_link_and_a_lost_host(three: Hosts):
    from fruitcnn import checkpoints, runs

    whole, faulted = f"{BUCKET}/run-whole", f"{BUCKET}/run-faulted"
    print("without a fault:", _run("train", "--run", whole, *TRAIN), "s")
    job, began = _start("train", "--run", faulted, *TRAIN), time.monotonic()
    _wait(lambda: bool(checkpoints.complete(faulted)), job)
    cut = max(three.hosts_of("RayTrainWorker"))
    three.cut(cut)
    print("link of host", cut, "cut, which holds a worker")
    time.sleep(CUT_SECONDS)
    three.mend(cut)
    three.restart(cut)
    before = checkpoints.complete(faulted)
    _wait(lambda: checkpoints.complete(faulted) != before, job)
    lost = max(three.hosts_of("RayTrainWorker"))
    three.kill(lost)
    print("host", lost, "killed, which holds a worker, after", checkpoints.complete(faulted)[-1])
    assert job.wait(1200) == 0
    print("with a link cut and a host lost:", time.monotonic() - began, "s")
    one, other = runs.result(whole), runs.result(faulted)
    assert one is not None
    assert other is not None
    assert one["num_steps"] == other["num_steps"]
    assert abs(one["validation"]["accuracy"] - other["validation"]["accuracy"]) < 0.005
