"""replica.py: two workers' weights are equal, and equal to those of one process on the union batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TIME_LIMIT_SECONDS = 240
TOLERANCE = 1e-5


def free_ports(number: int) -> list[str]:
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def train(folder: Path, architecture: str, optimizer: str, world_size: int) -> list[dict[str, np.ndarray]]:
    """Ten steps in `world_size` processes -> what each rank holds at the end."""
    ports, outs = free_ports(world_size), [folder / f"{world_size}-{rank}.npz" for rank in range(world_size)]
    command = [sys.executable, "-m", "tests.replica_worker"]
    processes = [
        subprocess.Popen(
            [*command, str(outs[rank]), architecture, optimizer, str(rank), str(world_size), *ports],
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        for rank in range(world_size)
    ]
    try:
        assert [process.wait(TIME_LIMIT_SECONDS) for process in processes] == [0] * world_size
    finally:
        for process in processes:
            process.kill()
    return [dict(np.load(out)) for out in outs]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("architecture", "optimizer"),
    # Adam divides by the size of a gradient: for gradients that are all rounding error it magnifies rounding. So the
    # normalised network, whose filters have such directions, is compared under plain momentum.
    [("custom_cnn", "rmsprop"), ("small_cnn", "sgd")],
)
def test_two_workers_train_as_one_process_on_the_union_batch(tmp_path: Path, architecture: str, optimizer: str) -> None:
    (alone,) = train(tmp_path, architecture, optimizer, 1)
    first, second = train(tmp_path, architecture, optimizer, 2)
    for name in alone:
        np.testing.assert_array_equal(first[name], second[name], err_msg=f"ranks differ in {name}")
        np.testing.assert_allclose(first[name], alone[name], atol=TOLERANCE, err_msg=f"two and one differ in {name}")
    # What the tolerance is measured against: every array went at least ten times as far as the two may differ.
    assert alone["moved"].min() > 10 * TOLERANCE
    assert alone["losses"][-1] < alone["losses"][0]
    assert alone["score"][2] == 300
