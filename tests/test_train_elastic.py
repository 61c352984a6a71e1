"""train.py on a cluster that grows and shrinks: a second node joins and leaves, the run goes 1 -> 2 -> 1 workers.

A cluster of its own, so a process of its own, and minutes: only where FRUITCNN_ROUNDS asks for the long way.
"""

import json
import os
from pathlib import Path

import pytest
from child import run_to_the_end

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.fault, pytest.mark.timeout(1200)]

SCRIPT = """
import json, sys, threading, time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from fruitcnn import checkpoints, train
from fruitcnn.recipe import TrainConfig
from fruitcnn.shard_config import ShardConfig
from fruitcnn.shards import write_dataset
from jobs.cli import progress
from tests import recording_work

folder = Path(sys.argv[1])
# Its handlers for the end of the process cannot be set from the thread that adds the node.
head = {"num_cpus": 1, "include_dashboard": False}
cluster = Cluster(initialize_head=True, shutdown_at_exit=False, head_node_args=head)
ray.init(address=cluster.address, log_to_driver=False)
train.work, train._RESIZE_SECONDS = recording_work.work, 5
write_dataset(ShardConfig(source="synthetic:4x60", dataset=str(folder / "dataset")), progress)
config = TrainConfig(
    dataset=str(folder / "dataset"), run=str(folder / "run"), num_workers=sys.argv[2], images_seen=64 * 300,
    max_epochs=10_000, num_evaluations=60, checkpoint_seconds=5, optimizer="sgd", learning_rate=1e-3,
)


def sizes():
    folder_of_notes = Path(config.run + ".taken")
    return {world for _, world, *_ in recording_work.taken(config.run)} if folder_of_notes.exists() else set()


def come_and_go():
    while not checkpoints.complete(config.run):
        time.sleep(0.2)
    node = cluster.add_node(num_cpus=1)
    while 2 not in sizes():
        time.sleep(0.2)
    time.sleep(3)
    cluster.remove_node(node, allow_graceful=False)


if sys.argv[2] != "1":
    threading.Thread(target=come_and_go, daemon=True).start()
try:
    result = train.train(config, progress)
finally:
    ray.shutdown()
    cluster.shutdown()
steps = sorted((step, world, rank) for rank, world, step, _ in recording_work.taken(config.run))
print(json.dumps({"result": result["num_steps"], "workers": result["num_workers"], "steps": steps}))
"""


@pytest.mark.skipif("FRUITCNN_ROUNDS" not in os.environ, reason="takes minutes: set FRUITCNN_ROUNDS")
def test_a_node_joins_and_leaves_and_the_run_follows(tmp_path: Path) -> None:
    from fruitcnn.sampling import Order, rank_slice
    from tests import recording_work
    from tests.test_train_faults import read_facts

    said = run_to_the_end(SCRIPT, str(tmp_path), "1:2", timeout_seconds=1000)
    found = json.loads(said.strip().splitlines()[-1])
    taken = recording_work.taken(str(tmp_path / "run"))
    sizes = [world for _, world, _ in sorted((step, world, rank) for step, world, rank in found["steps"])]
    assert sizes[0] == 1
    assert set(sizes) == {1, 2}
    assert found["workers"] == 1, "it ended with the worker that was left"
    order = Order(read_facts(str(tmp_path / "run")).num_train_rows, 0)
    import numpy as np

    rows = np.array(sorted({row for *_, batch in taken for row in batch}))
    for rank, world, step, batch in taken:
        assert batch == rows[order.batch(step, 64)[1][rank_slice(64, rank, world)]].tolist(), "incorrect ids"
    assert {step for _, _, step, _ in taken} == set(range(300)), "missing steps"
