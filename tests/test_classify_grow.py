"""execute.py on a cluster that grows: actors start on a node that joins, and the rows are those of any other run.

A cluster of its own, so a process of its own; the pictures come slowly, so that there is work left for the node.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from child import run_to_the_end
from fault_server import Answer, fault_server
from test_classify import no_progress, part_hashes
from tiny_bundle import write_bundle

from cluster.local_s3 import LocalS3
from fruitcnn import storage
from fruitcnn.classify import classify
from fruitcnn.classify_config import ClassifyConfig

NUM_PICTURES = 160

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.s3, pytest.mark.timeout(300)]

SCRIPT = """
import json, sys, threading, time

import ray
from ray.cluster_utils import Cluster

from fruitcnn.classify import classify
from fruitcnn.classify_config import ClassifyConfig
from jobs.cli import progress

config = ClassifyConfig.model_validate_json(sys.argv[1])
# Its handlers for the end of the process cannot be set from the thread that adds the node.
head = {"num_cpus": 1, "include_dashboard": False}
cluster = Cluster(initialize_head=True, shutdown_at_exit=False, head_node_args=head)
ray.init(address=cluster.address, log_to_driver=False)


def nodes_of_actors():
    actors = ray._private.state.actors().values()
    return sorted(each["Address"]["NodeID"] for each in actors if "ClassifyActor" in str(each))


threading.Timer(8, lambda: cluster.add_node(num_cpus=2)).start()
manifest = classify(config, progress)
found = nodes_of_actors()
ray.shutdown()
cluster.shutdown()
print(json.dumps({"nodes": found, "num_cpus": manifest.timing.num_cpus}))
"""


def test_actors_start_on_a_node_that_joins(
    s3: LocalS3, s3_prefix: str, tmp_path: Path, jpeg_bytes: Callable[..., bytes]
) -> None:
    for number in range(NUM_PICTURES):
        storage.write(f"{s3_prefix}/in/{number:03d}.jpg", jpeg_bytes(number))
    model = write_bundle(tmp_path / "tiny")
    calm = ClassifyConfig(
        model=model, images=f"{s3_prefix}/in", predictions=f"{s3_prefix}/calm", part_images=2, num_actors=None
    )
    classify(calm, no_progress)

    def slowly(number: int, method: str, path: str) -> Answer | None:
        if method == "GET" and path.endswith(".jpg"):
            time.sleep(1.5)
        return None

    job = calm.model_copy(update={"predictions": f"{s3_prefix}/out"})
    with fault_server(slowly, s3.endpoint_url) as server:
        endpoint = {"AWS_ENDPOINT_URL": server.endpoint_url}
        said = run_to_the_end(SCRIPT, job.model_dump_json(), timeout_seconds=200, **endpoint)
    found = json.loads(said.strip().splitlines()[-1])
    assert len(set(found["nodes"])) == 2, found
    assert found["num_cpus"] == 3
    assert part_hashes(job.predictions) == part_hashes(calm.predictions)
