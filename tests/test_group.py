"""group.py: which workers sum through memory, and which over the network."""

from types import SimpleNamespace
from typing import Any

import pytest

tf = pytest.importorskip("tensorflow")

from fruitcnn import group  # noqa: E402 - after the check that TensorFlow is there
from fruitcnn.recipe import TrainConfig  # noqa: E402
from fruitcnn.shared_sum import PeerLostError  # noqa: E402
from fruitcnn.trainer import is_loss_of_workers  # noqa: E402

ONE_NODE, TWO_NODES = ["10.0.0.1:5001", "10.0.0.1:5002"], ["10.0.0.1:5001", "10.0.0.2:5001"]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was opened, instead of waiting for workers that are not there."""
    found: list[Any] = []
    monkeypatch.setattr(group.shared_sum, "SharedSum", lambda *given: found.append(given) or tf)
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", lambda: found.append("network"))
    monkeypatch.setattr(group, "_through", lambda _: list)
    return found


@pytest.mark.parametrize("addresses", [ONE_NODE, TWO_NODES])
@pytest.mark.parametrize("use_gpu", [False, True])
@pytest.mark.parametrize("is_possible", [False, True])
def test_workers_of_one_node_share_memory_all_others_a_network(
    opened: list[Any], monkeypatch: pytest.MonkeyPatch, addresses: list[str], use_gpu: bool, is_possible: bool
) -> None:
    monkeypatch.setattr(group.shared_sum, "IS_POSSIBLE", is_possible)
    found = group._meet(addresses, 1, 1, use_gpu=use_gpu)
    in_memory = addresses == ONE_NODE and is_possible and not use_gpu
    assert opened == [("10.0.0.1:5001,10.0.0.1:5002", 1, 2) if in_memory else "network"]
    assert bool(found.open_shares) == in_memory


@pytest.mark.parametrize(
    ("architecture", "num_rows", "num_threads", "num_parts"),
    [
        ("small_cnn", 64, 1, 1),
        ("small_cnn", 64, 2, 2),
        ("small_cnn", 64, 8, 2),
        ("small_cnn", 96, 2, 1),
        ("custom_cnn", 81, 2, 1),
        ("custom_cnn", 512, 8, 8),
        ("custom_cnn", 8, 4, 1),
    ],
)
def test_parts_are_equal_whole_ghosts_and_not_too_small(
    architecture: Any, num_rows: int, num_threads: int, num_parts: int
) -> None:
    config = TrainConfig(dataset="-", run="-", architecture=architecture)
    assert config.num_parts(num_rows, num_threads) == num_parts


def test_a_worker_whose_peer_has_ended_counts_as_a_loss_of_workers() -> None:
    """The error comes out of TensorFlow's graph, as Ray is to see it."""

    def add(*_: Any) -> None:
        raise PeerLostError("rank 0 of 2 waited for a worker that has ended")

    def step(tensor: Any) -> Any:
        return group._through(SimpleNamespace(add=add))([tensor])

    with pytest.raises(tf.errors.OpError) as caught:
        tf.function(step)(tf.ones(2))
    assert is_loss_of_workers(SimpleNamespace(worker_failures={0: caught.value}))
    assert not is_loss_of_workers(SimpleNamespace(worker_failures={0: ValueError("of the user's")}))
