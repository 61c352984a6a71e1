"""jobs.submit against a real cluster on this machine, whose nodes know no key of the bucket: all that is said of it."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local import LocalCluster, local_cluster
from cluster.local_s3 import LocalS3
from fruitcnn import storage

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.s3, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[1]
SMALL, LONG = "synthetic:2x12", "synthetic:60x400"


@pytest.fixture(scope="module")
def cluster(s3: LocalS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with pytest.MonkeyPatch.context() as patch:
        for variable in [each for each in os.environ if each.startswith("AWS_")]:
            patch.delenv(variable)
        with local_cluster({}, (1,), tmp_path_factory.mktemp("nodes")) as running:
            patch.undo()
            yield running


def _start(cluster: LocalCluster, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.submit", *arguments], cwd=ROOT,
        env={**os.environ, **cluster.environment, **environment},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def _run(cluster: LocalCluster, *arguments: str, **environment: str) -> tuple[int, str]:
    process = _start(cluster, *arguments, **environment)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def test_a_job_is_followed_to_its_end_and_no_secret_is_left_anywhere(
    cluster: LocalCluster, s3: LocalS3, s3_prefix: str
):
    code, output = _run(
        cluster, "shard", "--follow", "--pass-credentials", "--", "--source", SMALL, "--dataset", s3_prefix
    )
    assert code == 0, output
    assert "SUCCEEDED" in output
    assert "shard: 24/24 images" in output
    assert storage.exists(storage.join(s3_prefix, "manifest.json"))

    # Ray's own API gives the job's environment to whoever holds the token.
    details = _details(cluster)
    secrets = [s3.secret_key, s3.access_key, cluster.token]
    assert "FRUITCNN_SEALED" in details
    places = {"the API": details, "the output": output, "the process list": _process_list()}
    files = [path for folder in (cluster.folder, cluster.nodes[0].log.parent) for path in folder.rglob("*")]
    places |= {str(path): path.read_bytes().decode("latin-1") for path in files if path.is_file()}
    places |= {uri: storage.read(uri).decode("latin-1") for uri in _objects(s3_prefix)}
    assert len(places) > 20
    assert [place for place, text in places.items() for secret in secrets if secret in text] == []


def _details(cluster: LocalCluster) -> str:
    import requests

    headers = {"Authorization": f"Bearer {cluster.token}"}
    return requests.get(f"{cluster.url}/api/jobs/", headers=headers, timeout=30).text


def _objects(prefix: str) -> list[str]:
    return [storage.join(prefix, "manifest.json"), storage.join(prefix, "rejected.parquet")]


def _process_list() -> str:
    texts = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            texts.append(file.read_bytes().decode("latin-1"))
        except OSError:
            continue
    return "\n".join(texts)


def test_the_exit_code_is_the_jobs_own(cluster: LocalCluster, s3_prefix: str):
    arguments = ["--", "--source", f"{s3_prefix}/nothing", "--dataset", f"{s3_prefix}/dataset"]
    code, output = _run(cluster, "shard", "--follow", "--pass-credentials", *arguments)
    assert code == 2, output
    assert "error: --source" in output
    assert "FAILED" in output


def test_the_laptop_is_lost_and_the_job_goes_on_until_it_is_stopped(cluster: LocalCluster, s3_prefix: str):
    following = _start(
        cluster, "shard", "--follow", "--pass-credentials", "--", "--source", LONG, "--dataset", s3_prefix
    )
    assert following.stdout is not None
    name = following.stdout.readline().split()[1]
    _until(cluster, name, "RUNNING")
    following.send_signal(signal.SIGKILL)
    following.wait()
    time.sleep(3)
    assert "RUNNING" in _run(cluster, "--status", name)[1]
    assert name in _run(cluster, "--list")[1]
    code, output = _run(cluster, "--stop", name)
    assert (code, "stopped" in output) == (0, True), output
    assert "STOPPED" in _run(cluster, "--status", name)[1]
    assert f"Running entrypoint for job {name}" in _run(cluster, "--logs", name)[1]
    assert "was over before" in _run(cluster, "--stop", name)[1]


def _until(cluster: LocalCluster, name: str, status: str) -> None:
    deadline = time.monotonic() + 120
    while status not in (output := _run(cluster, "--status", name)[1]):
        assert time.monotonic() < deadline, output


def test_a_job_that_is_not_known_is_said_to_be(cluster: LocalCluster):
    code, output = _run(cluster, "--status", "no-such-job")
    assert code == 1
    assert "knows no job no-such-job; --list names those it knows" in output


@pytest.mark.parametrize("token", ["wrong" * 10, ""])
def test_a_wrong_or_missing_token_is_said_in_one_line(cluster: LocalCluster, token: str, tmp_path: Path):
    arguments = ["shard", "--", "--source", SMALL, "--dataset", "s3://b/d"]
    code, output = _run(cluster, *arguments, RAY_AUTH_TOKEN=token, HOME=str(tmp_path))
    assert code == 2
    assert ("refuses this token" if token else "asks for its token: set RAY_AUTH_TOKEN") in output
    assert "Traceback" not in output
    assert cluster.token not in output


def test_a_head_that_is_not_there_is_said_in_one_line(cluster: LocalCluster):
    arguments = ["shard", "--address", "http://127.0.0.1:9", "--", "--source", SMALL, "--dataset", "s3://b/d"]
    code, output = _run(cluster, *arguments)
    assert code == 2
    assert "--address: nobody answers at http://127.0.0.1:9 (connection refused)" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(("answer", "status"), [(b"\n", "RUNNING"), (b"s\n", "STOPPED")])
def test_ctrl_c_at_a_terminal_asks_whether_to_detach_or_to_stop(
    cluster: LocalCluster, s3_prefix: str, answer: bytes, status: str
):
    arguments = ["shard", "--follow", "--pass-credentials", "--", "--source", LONG, "--dataset", s3_prefix]
    following, screen = pty.fork()
    if not following:
        os.chdir(ROOT)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs the tests in background
        command = [sys.executable, "-m", "jobs.submit", *arguments]
        os.execve(sys.executable, command, {**os.environ, **cluster.environment})
    shown = _until_shown(screen, rb"Running entrypoint for job \S+")
    os.write(screen, b"\x03")
    shown += _until_shown(screen, rb"\[d\]etach and let it go on, or \[s\]top it\? \[d\] ")
    os.write(screen, answer)
    _, code = os.waitpid(following, 0)
    name = re.findall(rb"submitted (\S+)", shown)[0].decode()
    assert os.waitstatus_to_exitcode(code) == 130
    assert status in _run(cluster, "--status", name)[1]
    _run(cluster, "--stop", name)


def _until_shown(screen: int, wanted: bytes) -> bytes:
    """What the terminal shows until `wanted` has been shown."""
    shown, deadline = b"", time.monotonic() + 120
    while not re.search(wanted, shown):
        assert time.monotonic() < deadline, shown
        shown += os.read(screen, 65536)
    return shown


def test_prometheus_finds_the_metrics_and_the_workers_log_says_run_part_and_attempt(
    cluster: LocalCluster, s3_prefix: str
):
    work = ["--source", "synthetic:4x20", "--work", f"{s3_prefix}/work", "--images-seen", "2000"]
    code, output = _run(cluster, "pipeline", "--follow", "--pass-credentials", "--", *work)
    assert code == 0, output
    storage.write(f"{s3_prefix}/list.txt", f"{s3_prefix}/no-such.jpg\n".encode())
    model = ["--model", f"{s3_prefix}/work/model", "--images", f"{s3_prefix}/list.txt"]
    code, output = _run(
        cluster, "classify", "--follow", "--pass-credentials", "--", *model, "--predictions", f"{s3_prefix}/p"
    )
    assert code == 0, output

    wanted = ['images_total{.*job="train"', 'images_total{.*job="classify"', 'rejected_total{.*job="classify"',
              'input_wait_seconds_total{.*job="train"', 'step_seconds_count{.*job="train"',
              'part_seconds_count{.*job="classify"']  # fmt: skip
    deadline = time.monotonic() + 60
    while missing := [name for name in wanted if not re.search(f"ray_fruitcnn_{name}", text := _scraped(cluster))]:
        assert time.monotonic() < deadline, (missing, re.findall("ray_fruitcnn.*", text))
        time.sleep(2)

    logs = "\n".join(file.read_text(errors="replace") for file in cluster.folder.rglob("worker-*.err"))
    events = [json.loads(line) for line in logs.splitlines() if line.startswith('{"time"')]
    assert {"run", "part", "attempt", "images", "rejected"} <= next(e for e in events if e["event"] == "part").keys()
    assert {"run", "rank", "step", "attempt", "wait"} <= next(e for e in events if e["event"] == "steps").keys()


def _scraped(cluster: LocalCluster) -> str:
    """What Prometheus gets: it finds the nodes' addresses in the file that the head keeps for it."""
    file = cluster.folder / "head" / "prom_metrics_service_discovery.json"
    targets = [target for group in json.loads(file.read_text()) for target in group["targets"]]
    assert len(targets) >= len(cluster.nodes)
    answers = []
    for target in targets:
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=30) as answer:
            answers.append(answer.read().decode())
    return "\n".join(answers)
