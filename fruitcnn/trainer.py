"""Ray Train, as a run needs it: its trainer, who the workers are to each other, and which failures are lost workers.

Between train (the driver) and worker (what runs in each process).
"""

from __future__ import annotations

import json
import os
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerHealthCheckTimeoutError
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

# TensorFlow's errors in a collective whose other side is gone.
_ERRORS_OF_PEERS = ("UnavailableError", "AbortedError", "CancelledError", "DeadlineExceededError", "InternalError")


class Trainer(DataParallelTrainer):
    """Ray's trainer without its PlacementGroupCleaner and without its answer to Ctrl-C.

    On a busy machine the cleaner took an empty answer of Ray's state API for a dead controller and took the workers
    away from a healthy run (seen with Ray 2.60). Without it they go when the driver's job ends.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [each for each in callbacks if not isinstance(each, PlacementGroupCleanerCallback)]

    def _register_sigint_handler(self, controller: Any) -> None:
        # Ray's handler ends the process with exit code 1 and not a word, and stays when the run is over. Python's own
        # raises KeyboardInterrupt, and the workers go with the session or with the last reference to the controller.
        pass


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
    failures = [_innermost(failure) for failure in getattr(error, "worker_failures", {}).values()]
    lost = (ray.exceptions.RayActorError, ray.exceptions.NodeDiedError, WorkerHealthCheckTimeoutError)
    return bool(failures) and all(
        isinstance(failure, lost) or type(failure).__name__ in _ERRORS_OF_PEERS for failure in failures
    )


def _innermost(failure: Any) -> Any:
    for wrapped in ("health_check_failure", "_base_exc", "cause"):
        if isinstance(getattr(failure, wrapped, None), BaseException):
            return _innermost(getattr(failure, wrapped))
    return failure
