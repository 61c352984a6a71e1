"""Three network namespaces as hosts: a link is cut, a host is lost, the head is lost; the work comes out as without.

Needs root and ten minutes: FRUITCNN_HOSTS=WORK turns it on, a folder that jobs.pipeline left (its data set and model).
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster.hosts import Hosts, hosts, temp_folder
from fruitcnn import storage
from fruitcnn.manifest import load_manifest
from fruitcnn.parquet import read_rows
from fruitcnn.sampling import Order
from tests import recording_work
from tests.test_train_faults import read_facts

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
         "--images-seen", os.environ.get("FRUITCNN_HOSTS_IMAGES", "40000")]  # fmt: skip
CLASSIFY = ["--model", f"{BUCKET}/model", "--images", f"{BUCKET}/dataset", "--part-images", "100", "--num-actors", "3"]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    folder = tmp_path_factory.mktemp("hosts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(recording_work.FOLDER, str(folder / "notes"))  # nodes pass on what they were started with
        with hosts(3, folder / "nodes") as running:
            for name, value in (running.s3.environment | running.cluster.environment).items():
                patch.setenv(name, value)
            for name in ("dataset", "model"):
                storage.upload_directory(Path(WORK) / name, f"{BUCKET}/{name}")
            yield running


def _start(job: str, *arguments: str, code: Path = ROOT) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "jobs.submit", job, "--follow", "--", *arguments], cwd=code)


def _run(job: str, *arguments: str, code: Path = ROOT) -> float:
    """Seconds that the job took, submission and all."""
    began = time.monotonic()
    assert _start(job, *arguments, code=code).wait(1200) == 0
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


def test_training_survives_a_cut_link_and_a_lost_host(three: Hosts, tmp_path: Path):
    from fruitcnn import checkpoints, runs

    code = recording_work.code_that_notes(ROOT, tmp_path / "code")
    whole, faulted = f"{BUCKET}/run-whole", f"{BUCKET}/run-faulted"
    print("without a fault:", _run("train", "--run", whole, *TRAIN, code=code), "s")
    job, began = _start("train", "--run", faulted, *TRAIN, code=code), time.monotonic()
    _wait(lambda: bool(checkpoints.complete(faulted)), job)
    cut = max(three.hosts_of("RayTrainWorker"))
    three.cut(cut)
    print("link of host", cut, "cut, which holds a worker")
    time.sleep(CUT_SECONDS)
    three.mend(cut)
    _wait(lambda: bool(re.search('ray_fruitcnn_retries_total{.*job="train"', _scraped())), job, 60)
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
    ids = _ids_by_step(faulted)
    assert ids == _ids_by_step(whole)
    batches = len(recording_work.taken(faulted)) - len(recording_work.taken(whole))
    print(f"ids of {len(ids)} steps: those of the plan and of the run without a fault; {batches} batches taken again")
    pairs = [checkpoints.load(run, checkpoints.complete(run)[-1]).weights for run in (whole, faulted)]
    apart = max(float(np.abs(ours - theirs).max()) for ours, theirs in zip(*pairs, strict=True))
    print(f"weights at the end: at most {apart:.1g} apart")
    assert apart < 1e-3


def _scraped() -> str:
    """What Prometheus gets of the nodes that answer: it finds their addresses in a file that the head keeps for it."""
    found = json.loads((temp_folder(1) / "prom_metrics_service_discovery.json").read_text())
    answers = []
    for target in (target for group in found for target in group["targets"]):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
            answers.append(answer.read().decode())
    return "\n".join(answers)


def _ids_by_step(run: str) -> dict[int, list[str]]:
    """Step -> ids of the pictures that a run trained on, in order; a batch that is not the plan's fails."""
    manifest = load_manifest(f"{BUCKET}/dataset")
    shards = [shard.path for shard in manifest.split("train").shards]
    groups = (rows for path in shards for rows in read_rows(f"{BUCKET}/dataset", path, columns=["id"]))
    ids = np.array([name for rows in groups for name in rows["id"].to_pylist()])
    facts = read_facts(run)
    config = storage.read_json(storage.join(run, "config.json"))["config"]
    order = Order(facts.num_train_rows, config["seed"])
    rows = recording_work.rows_by_step(run, order, config["global_batch_size"], facts.num_steps)
    return {step: ids[numbers].tolist() for step, numbers in rows.items()}
