"""cluster/retrain/: the cron line as cron runs it, and the settings that systemd is given."""

import configparser
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "cluster" / "retrain"


def cron_command(folder: Path, job: str, limit: str = "8h") -> str:
    """The command of the cron line, over a folder of its own in which the job is a shell script."""
    (line,) = [each for each in (ROOT / "retrain.cron").read_text().splitlines() if each and not each.startswith("#")]
    *when, user, command = line.split(maxsplit=6)
    assert (when, user) == (["30", "2", "*", "*", "*"], "fruitcnn")
    assert "%" not in command  # cron takes it for a new line
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f"#!/bin/sh\n{job}\n")
    python.chmod(0o755)
    return command.replace("/opt/fruitcnn", str(folder)).replace(" 8h ", f" {limit} ")


def begin(command: str) -> subprocess.Popen[bytes]:
    """As cron does it: sh, and hardly an environment."""
    return subprocess.Popen(["/bin/sh", "-c", command], env={"PATH": "/usr/bin:/bin"}, start_new_session=True)


def last_line(folder: Path) -> str:
    return (folder / "retrain.log").read_text().splitlines()[-1]


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_last_line_of_the_log_says_how_the_last_run_ended(tmp_path: Path, code: int) -> None:
    begin(cron_command(tmp_path, f'echo "$@"; exit {code}')).wait()
    assert "-m jobs.retrain --config /etc/fruitcnn-retrain.yaml" in (tmp_path / "retrain.log").read_text()
    assert last_line(tmp_path).startswith(f"exit code {code}, ")


def test_a_second_one_beside_it_does_not_start(tmp_path: Path) -> None:
    command = cron_command(tmp_path, "echo begins; sleep 60")
    first = begin(command)
    try:
        log = tmp_path / "retrain.log"
        while not log.exists() or "begins" not in log.read_text():
            time.sleep(0.02)
        begin(command).wait(10)
        assert last_line(tmp_path).startswith("exit code 75, ")
        assert log.read_text().count("begins") == 1
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()


def test_one_that_takes_too_long_is_told_to_end_and_the_next_one_can_start(tmp_path: Path) -> None:
    job = "trap 'echo told to end; exit 130' TERM; while :; do sleep 0.1; done"
    begin(cron_command(tmp_path, job, limit="0.5")).wait(30)
    assert "told to end" in (tmp_path / "retrain.log").read_text()
    assert last_line(tmp_path).startswith("exit code 124, ")
    begin(cron_command(tmp_path, "exit 0")).wait(10)
    assert last_line(tmp_path).startswith("exit code 0, ")


def test_the_service_runs_one_at_a_time_with_a_limit() -> None:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read(ROOT / "fruitcnn-retrain.service")
    assert parsed["Service"]["Type"] == "oneshot"
    assert parsed["Service"]["TimeoutStartSec"] == "8h"
    assert "jobs.retrain" in parsed["Service"]["ExecStart"]
