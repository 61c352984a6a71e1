"""Ray Train, as a run needs it: its trainer, who the workers are to each other, and which failures are lost workers.

Between train (the driver) and worker (what runs in each process).
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerHealthCheckTimeoutError
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import PlacementGroup

# TensorFlow's errors in a collective whose other side is gone.
_ERRORS_OF_PEERS = ("UnavailableError", "AbortedError", "CancelledError", "DeadlineExceededError", "InternalError")
# shared_sum's, on its way through TensorFlow.
_PEER_LOST = "PeerLostError"


class Trainer(DataParallelTrainer):
    """Ray's trainer with a limit to its start, without its PlacementGroupCleaner and its answer to Ctrl-C.

    On a busy machine the cleaner took an empty answer of Ray's state API for a dead controller and took the workers
    away from a healthy run (seen with Ray 2.60). What a controller leaves behind goes at the end of fit instead.
    """

    def __init__(self, *arguments: Any, has_started: Callable[[], bool], start_seconds: float, **named: Any) -> None:
        """`has_started` is asked until it says yes; where it does not within `start_seconds`, fit raises RayActorError.

        Ray waits without a limit for a worker that freezes before the training function runs.
        """
        super().__init__(*arguments, **named)
        self._has_started, self._start_seconds, self._ended = has_started, start_seconds, threading.Event()

    def fit(self) -> Any:
        """Run the training function on the group. Raises as Ray's does."""
        before = _placement_groups()
        try:
            return super().fit()
        finally:
            self._ended.set()
            # What a killed controller held stays until the driver ends, a frozen worker in it too.
            for left in _placement_groups() - before:
                ray.util.remove_placement_group(PlacementGroup(left))

    def _initialize_and_run_controller(self, **named: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            named["scaling_policy"] = _Dividing(self.scaling_config, self.train_loop_config["group_sizes"])
        return super()._initialize_and_run_controller(**named)

    def _watch_start(self, controller: Any) -> None:
        give_up_at = time.monotonic() + self._start_seconds
        while not self._ended.wait(1):
            if self._has_started():
                return
            if time.monotonic() > give_up_at:
                ray.kill(controller)
                return

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [each for each in callbacks if not isinstance(each, PlacementGroupCleanerCallback)]

    def _register_sigint_handler(self, controller: Any) -> None:
        # Ray's handler ends the process with exit code 1 and not a word, and stays when the run is over. Python's own
        # raises KeyboardInterrupt, and the workers go with the session or with the last reference to the controller.
        threading.Thread(target=self._watch_start, args=(controller,), daemon=True, name="start").start()


def _placement_groups() -> set[ray.PlacementGroupID]:
    """Return those of this driver that are not removed; the end of an id is that of the job."""
    job = ray.get_runtime_context().get_job_id()
    found = ray.util.placement_group_table()
    living = [key for key, each in found.items() if key.endswith(job) and each["state"] != "REMOVED"]
    return {ray.PlacementGroupID(bytes.fromhex(key)) for key in living}


class _Dividing(ElasticScalingPolicy):
    """As many workers as the cluster has room for, of the group sizes into which the global batch divides."""

    def __init__(self, scaling_config: ray.train.ScalingConfig, sizes: Sequence[int]) -> None:
        super().__init__(scaling_config)
        self._sizes = sizes

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        # Ray's coordinator counts a node that died for a while yet, and waits for it until the start is given up.
        room = min(super()._count_possible_workers(reserved_resources), self._room_on_living_nodes())
        return max((size for size in self._sizes if size <= room), default=0)

    def _room_on_living_nodes(self) -> int:
        wanted = {name: number for name, number in self.scaling_config._resources_per_worker_not_none.items() if number}
        living = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(min(int(there.get(name, 0) // number) for name, number in wanted.items()) for there in living)


class TensorFlow(BackendConfig):
    """Tells the workers of each other (TF_CONFIG), as Ray's TensorflowConfig does.

    Importing Ray's would import TensorFlow into the driver, which takes four seconds and is not needed there.
    """

    @property
    def backend_cls(self) -> type[Backend]:
        """What Ray starts on the group."""
        return _TensorFlowBackend


class _TensorFlowBackend(Backend):
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:  # noqa: ARG002 - Ray's signature
        """Give every worker the addresses of all, before the training function starts."""
        addresses = worker_group.execute(_free_address)
        ray.get(
            [
                worker_group.execute_single_async(index, _introduce, addresses=addresses, index=index)
                for index in range(len(addresses))
            ]
        )


def _free_address() -> str:
    from ray.train._internal.utils import get_address_and_port

    address, port = get_address_and_port()
    return f"{address}:{port}"


def _introduce(addresses: list[str], index: int) -> None:
    task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    os.environ["TF_CONFIG"] = json.dumps(task)


def is_loss_of_workers(error: BaseException) -> bool:
    """Whether processes or nodes went away, rather than that some code of ours raised."""
    if isinstance(error, ray.exceptions.RayActorError):  # the controller: see Trainer
        return True
    failures = [_innermost(failure) for failure in getattr(error, "worker_failures", {}).values()]
    lost = (ray.exceptions.RayActorError, ray.exceptions.NodeDiedError, WorkerHealthCheckTimeoutError)
    return bool(failures) and all(isinstance(failure, lost) or _is_of_a_peer(failure) for failure in failures)


def _is_of_a_peer(failure: BaseException) -> bool:
    return type(failure).__name__ in (*_ERRORS_OF_PEERS, _PEER_LOST) or _PEER_LOST in str(failure)


def _innermost(failure: Any) -> Any:
    for wrapped in ("health_check_failure", "_base_exc", "cause"):
        if isinstance(getattr(failure, wrapped, None), BaseException):
            return _innermost(getattr(failure, wrapped))
    return failure
