"""replica.py: a group of workers ends where one process on the union batch does; so do its losses and its ids."""

import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.replica_worker import NUM_ROWS

TIME_LIMIT_SECONDS = 240
EXACT = 1e-5
# Rounding differs, and 20 steps magnify it: what a weight may differ by, as a share of how far its array went.
TOLERANCE = 0.01


def free_addresses(number: int, hosts: tuple[str, ...] = ("127.0.0.1",)) -> list[str]:
    """Addresses on this machine; by another name of it a worker is on another node."""
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    addresses = [f"{host}:{each.getsockname()[1]}" for host, each in zip(itertools.cycle(hosts), sockets, strict=False)]
    for each in sockets:
        each.close()
    return addresses


def train(
    folder: Path, kind: str, architecture: str, optimizer: str, world_size: int, hosts: tuple[str, ...] = ("127.0.0.1",)
) -> list[dict[str, np.ndarray]]:
    """The steps of replica_worker's `kind` in `world_size` processes -> what each rank holds at the end."""
    addresses, outs = (
        free_addresses(world_size, hosts),
        [folder / f"{world_size}-{rank}.npz" for rank in range(world_size)],
    )
    command = [sys.executable, "-m", "tests.replica_worker"]
    processes = [
        subprocess.Popen(
            [*command, str(outs[rank]), kind, architecture, optimizer, str(rank), str(world_size), *addresses],
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
    ("architecture", "optimizer", "hosts"),
    [
        ("custom_cnn", "rmsprop", ("127.0.0.1",)),
        ("small_cnn", "sgd", ("127.0.0.1", "localhost")),
        ("small_cnn", "adamw", ("127.0.0.1",)),
    ],
    ids=["one-node", "two-nodes", "divided"],
)
def test_two_workers_end_within_1e_5_of_one_process_after_ten_steps(
    tmp_path: Path, architecture: str, optimizer: str, hosts: tuple[str, ...]
) -> None:
    """Weights, moving averages and losses; without augmentation."""
    (alone,) = train(tmp_path, "exact", architecture, optimizer, 1)
    first, second = train(tmp_path, "exact", architecture, optimizer, 2, hosts)
    assert first["is_divided"] == (optimizer == "adamw")
    for name in [name for name in alone if name not in ("rows", "is_divided")]:
        np.testing.assert_array_equal(first[name], second[name], err_msg=f"ranks differ in {name}")
        np.testing.assert_allclose(first[name], alone[name], atol=EXACT, err_msg=f"two and one differ in {name}")
    # What the tolerance is measured against: every array of the model went ten times as far as the two may differ; the
    # second half of them all are the optimizer's own, of another size.
    assert alone["moved"][: len(alone["moved"]) // 2].min() > 10 * EXACT
    assert alone["losses"][-1] < alone["losses"][0]


@pytest.mark.long
@pytest.mark.timeout(900)
# Plain momentum: Adam and RMSprop divide by the size of a gradient, and where that is all rounding magnify rounding.
@pytest.mark.parametrize(("architecture", "group_sizes"), [("custom_cnn", [2]), ("base_cnn", [2, 4])])
def test_any_number_of_workers_trains_as_one_process_on_the_union_batch(
    tmp_path: Path, architecture: str, group_sizes: list[int]
) -> None:
    """With augmentation, dropout, batch statistics, clipping, class weights and averaged weights, over two epochs."""
    (alone,) = train(tmp_path, "everything", architecture, "sgd", 1)
    assert_two_whole_epochs(alone["rows"])
    weights = [name for name in alone if name.isdigit()]
    for size in group_sizes:
        group = train(tmp_path, "everything", architecture, "sgd", size)
        together = np.concatenate([each["rows"] for each in group], 1)
        np.testing.assert_array_equal(together, alone["rows"], err_msg="incorrect ids: not those of one worker")
        first = group[0]
        np.testing.assert_allclose(first["losses"], alone["losses"], rtol=1e-4, err_msg="losses of 20 steps")
        np.testing.assert_allclose(first["score"], alone["score"], rtol=1e-4)
        for name, moved in zip(weights, alone["moved"], strict=True):
            for each in group[1:]:
                np.testing.assert_array_equal(first[name], each[name], err_msg=f"ranks differ in {name}")
            differs = abs(first[name] - alone[name]).max()
            assert moved > 0, f"{name} was not trained"
            assert differs < TOLERANCE * moved, f"{size} workers and one differ in {name}"
    assert alone["losses"][-5:].mean() < alone["losses"][:5].mean()
    assert alone["score"][2] == NUM_ROWS


def assert_two_whole_epochs(rows: np.ndarray) -> None:
    stream = rows.reshape(-1)
    for epoch in range(2):
        seen = stream[epoch * NUM_ROWS : (epoch + 1) * NUM_ROWS]
        assert set(seen) == set(range(NUM_ROWS)), "missing rows"
        assert len(set(seen)) == len(seen), "duplicate rows"
