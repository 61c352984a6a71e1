"""Training takes no more memory in its tenth epoch than in its first, however many checkpoints it writes.

In a worker of Ray: there many threads live, and what each may keep of what it freed adds up.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(600)]
NUM_EPOCHS, CHECKPOINTS_PER_EPOCH = 10, 3
ONE_BLOCK = {"seed": 34 << 20, "best": 0}
"""Bytes that glibc keeps once for each thread of TensorFlow that ever held the gradient of the largest layer: which of
them, and when, is chance. It is no growth; those of `best` are small.
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn pictures, enough for TensorFlow's pools to have their size before the first epoch ends."""
    folder = tmp_path_factory.mktemp("drawn") / "dataset"
    _job("shard", "--source", "synthetic:24x160", "--dataset", folder)
    return folder


# `seed` has the largest weights and pictures of the presets, `best` averages its weights as well.
@pytest.mark.parametrize("preset", ["seed", "best"])
def test_from_the_end_of_the_first_epoch_to_the_tenth_memory_grows_by_less_than_5_percent(
    tmp_path: Path, dataset: Path, preset: str
) -> None:
    run, num_checkpoints = tmp_path / "run", NUM_EPOCHS * CHECKPOINTS_PER_EPOCH
    length = ("--epochs", NUM_EPOCHS, "--num-evaluations", num_checkpoints)
    _job("train", "--dataset", dataset, "--run", run, "--preset", preset, *length)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["kind"] == "validation" for line in lines) == num_checkpoints
    records = [(line["step"], line["memory_bytes"]) for line in lines if line["kind"] == "train"]
    num_steps = records[-1][0]
    in_the_first = [memory for step, memory in records if step <= num_steps / NUM_EPOCHS]
    in_the_last = [memory for step, memory in records if step > num_steps * (1 - 1 / NUM_EPOCHS)]
    before, after = in_the_first[-1], max(in_the_last)
    print(f"\n{preset}: {before / 2**20:.0f} MiB at the end of the first epoch, {after / 2**20:.0f} MiB in the tenth")
    assert after < 1.05 * before + ONE_BLOCK[preset]


def _job(name: str, *arguments: object) -> None:
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, "-m", f"jobs.{name}", *map(str, arguments)], check=True, env=quiet)
