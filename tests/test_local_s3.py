"""cluster/local_s3.py: ready when it says so, closed to wrong keys, gone when its parent is gone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster import local_s3
from cluster.local_s3 import LocalS3

ROOT = Path(__file__).parent.parent


def _start(directory: Path) -> tuple[subprocess.Popen[str], dict[str, str], psutil.Process]:
    """`python -m cluster.local_s3`, the variables it printed, and its server process."""
    command = [sys.executable, "-m", "cluster.local_s3", "--directory", str(directory)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout
    lines = []
    for line in process.stdout:
        if line.startswith("#"):
            break
        lines.append(line.strip().removeprefix("export "))
    (server,) = psutil.Process(process.pid).children()
    return process, dict(line.split("=", 1) for line in lines), server


def _gone_within(process: psutil.Process, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        # In a container nobody may reap an orphan: a zombie holds no port and no file.
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.s3
def test_a_wrong_secret_is_refused_and_the_right_one_is_let_in(s3: LocalS3) -> None:
    assert local_s3._list_status(s3, "wrong") == "SignatureDoesNotMatch"
    assert local_s3._list_status(s3, s3.secret_key) == "ok"
    assert s3.secret_key not in repr(s3)


@pytest.mark.s3
def test_it_listens_on_this_machine_alone(s3: LocalS3) -> None:
    listening = [
        each.laddr.ip for each in psutil.Process(s3.process.pid).net_connections("inet") if each.status == "LISTEN"
    ]
    assert listening
    assert set(listening) <= {"127.0.0.1", "::1"}


@pytest.mark.s3
def test_the_foreground_server_prints_its_variables_and_stops_on_ctrl_c(tmp_path: Path) -> None:
    process, variables, server = _start(tmp_path / "s3")
    assert variables["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:")
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"} <= set(variables)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=local_s3.STOP_SECONDS + 10) == 0
    assert _gone_within(server, 0.5)


@pytest.mark.s3
@pytest.mark.fault
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_no_server_outlives_a_killed_parent(tmp_path: Path) -> None:
    process, _, server = _start(tmp_path / "s3")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert _gone_within(server, 5)


def test_a_folder_with_other_files_is_not_wiped(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="not a local S3"), local_s3.local_s3(tmp_path):
        pass
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.s3
def test_a_busy_port_and_a_busy_folder_are_refused_at_once(s3: LocalS3, tmp_path: Path) -> None:
    port = int(s3.endpoint_url.rpartition(":")[2])
    with pytest.raises(ValueError, match=f"--port: {port}"), local_s3.local_s3(tmp_path / "other", port=port):
        pass
    with pytest.raises(ValueError, match="another server is running"), local_s3.local_s3(s3.log.parent):
        pass
    assert local_s3._list_status(s3, s3.secret_key) == "ok"
