"""replica.py: a group of workers ends where one process on the union batch does; so do its losses and its ids."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.replica_worker import NUM_ROWS

TIME_LIMIT_SECONDS = 240
TOLERANCE = 5e-5


def free_ports(number: int) -> list[str]:
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def train(folder: Path, architecture: str, optimizer: str, world_size: int) -> list[dict[str, np.ndarray]]:
    """Twenty steps in `world_size` processes -> what each rank holds at the end."""
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


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("architecture", "optimizer", "group_sizes"),
    # Adam divides by the size of a gradient: for gradients that are all rounding error it magnifies rounding. So the
    # normalised network, whose filters have such directions, is compared under plain momentum.
    [("custom_cnn", "rmsprop", [2]), ("base_cnn", "sgd", [2, 4])],
)
def test_any_number_of_workers_trains_as_one_process_on_the_union_batch(
    tmp_path: Path, architecture: str, optimizer: str, group_sizes: list[int]
) -> None:
    """With augmentation, dropout, batch statistics, clipping, class weights and averaged weights, over two epochs."""
    (alone,) = train(tmp_path, architecture, optimizer, 1)
    assert_two_whole_epochs(alone["rows"])
    for size in group_sizes:
        group = train(tmp_path, architecture, optimizer, size)
        together = np.concatenate([each.pop("rows") for each in group], 1)
        np.testing.assert_array_equal(together, alone["rows"], err_msg="incorrect ids: not those of one worker")
        # Rounding alone differs; over 20 steps it grows.
        losses = [each.pop("losses") for each in group]
        np.testing.assert_allclose(losses[0], alone["losses"], rtol=1e-4, err_msg="losses of 20 steps")
        for name in group[0]:
            for each in group[1:]:
                np.testing.assert_array_equal(group[0][name], each[name], err_msg=f"ranks differ in {name}")
            what = f"{size} and one differ in {name}"
            np.testing.assert_allclose(group[0][name], alone[name], atol=TOLERANCE, err_msg=what)
    # What the tolerance is measured against: every array went at least ten times as far as the two may differ.
    assert alone["moved"].min() > 10 * TOLERANCE
    assert alone["losses"][-1] < alone["losses"][0]
    assert alone["score"][2] == NUM_ROWS


def assert_two_whole_epochs(rows: np.ndarray) -> None:
    stream = rows.reshape(-1)
    for epoch in range(2):
        seen = stream[epoch * NUM_ROWS : (epoch + 1) * NUM_ROWS]
        assert set(seen) == set(range(NUM_ROWS)), "missing rows"
        assert len(set(seen)) == len(seen), "duplicate rows"
