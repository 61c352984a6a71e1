"""A frozen model on Ray Serve: replicas with the application of endpoints, batching, limits, autoscaling.

    proxy (uvicorn) -> replica: read, decode in threads, wait for a batch, model -> answers

A replica loads the model as every process does: hashes, then golden answers; one that answers otherwise never starts.
Past `max_ongoing_requests` in each replica and `max_queued_requests` waiting, requests are answered 503 at once.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import shutil
import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fruitcnn.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_APPLICATION = "fruitcnn"
# What Ray's RAY_SERVE_THROUGHPUT_OPTIMIZED sets, without ports of replicas: our code never blocks the event loop; and
# without gRPC to the replicas, which cut off one in eight downloads of 14 MB, with status 200.
_SETTINGS = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "0",
    "RAY_SERVE_FREEZE_GC_ON_STARTUP": "1",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # 5 by default: a busy machine takes longer to import Ray
}
_HAPROXY_SETTINGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",  # 30 by default, for balancers that we have not
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "30",
    # A picture may be asked about twice: what a lost replica did not answer, another one does.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "3",
    "RAY_SERVE_HAPROXY_CLOSE_SPREAD_TIME_S": "5",  # at a reload, idle connections are told to go instead of cut
}
CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"


class ServeConfig(BaseModel):
    """What `python -m jobs.serve` takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="frozen model: the URI that jobs.freeze wrote, or registry:NAME@champion")
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 is every network of this machine")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    runtime: Literal["auto", "openvino", "onnxruntime", "tensorflow", "keras"] = Field(
        "auto", description="what runs the model; auto takes the fastest whose golden answers agree"
    )
    top_k: int = Field(5, ge=1, description="labels and scores in an answer")
    min_confidence: float = Field(0.0, ge=0, le=1, description="less confidence than this is answered unsure")
    max_body_bytes: int = Field(32_000_000, ge=1, description="largest body of a request, bytes")
    max_pictures: int = Field(64, ge=1, le=1000, description="pictures in one request")
    max_pixels: int = Field(200_000_000, ge=1, description="reject pictures of more pixels (width x height)")
    request_seconds: float = Field(30.0, gt=0, description="a request that takes longer is answered 408, seconds")
    batch_size: int = Field(32, ge=1, le=256, description="pictures per call of the model; 1 turns batching off")
    batch_wait_seconds: float = Field(0.002, ge=0, description="how long a picture waits for others, seconds")
    min_replicas: int = Field(1, ge=1, description="fewest processes that hold the model")
    max_replicas: int = Field(2, ge=1, description="most processes that hold the model, under load")
    cpus_per_replica: int = Field(1, ge=1, description="CPUs of a replica: threads of the model and of decoding")
    max_ongoing_requests: int = Field(32, ge=1, description="requests that a replica works on at a time")
    max_queued_requests: int = Field(64, ge=0, description="requests that wait for a replica; more are answered 503")
    haproxy: bool = Field(
        False,
        description="put Ray's HAProxy in front, which hands requests straight to the replicas: much less CPU a "
        "request; its statistics (numbers of requests) are then open on two ports of every network of this machine",
    )

    @model_validator(mode="after")
    def _replicas_in_order(self) -> ServeConfig:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"--max-replicas: got {self.max_replicas}, wanted at least {self.min_replicas}")
        return self


def check(config: ServeConfig) -> None:
    """Look at what can be wrong before Ray starts: UsageError for the model, and for a port in use."""
    from fruitcnn import bundle, frozen

    with bundle.argument("--model", config.model):
        frozen.identify(config.model, config.runtime)
    with socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise UsageError(
                f"--host {config.host} --port {config.port}: cannot listen there ({error.strerror}); name another port"
            ) from None


def prepare(config: ServeConfig) -> None:
    """Say to Ray's processes, which inherit the environment, what the proxy must limit; before the session starts."""
    from fruitcnn import uploads

    os.environ[uploads.MAX_BODY_VARIABLE] = str(config.max_body_bytes)
    os.environ[CALLBACK_VARIABLE] = f"{uploads.__name__}.{uploads.proxy_middlewares.__name__}"
    settings = _SETTINGS | (_haproxy_settings() if config.haproxy else {})
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _haproxy_settings() -> dict[str, str]:
    """Ray's defaults are one folder and two ports for all of a machine: each server gets its own, closed to others."""
    folder = tempfile.mkdtemp(prefix="hap-", dir="/tmp")  # Ray adds 57 characters, and a socket's path has at most 97
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    files = {
        "CONFIG_FILE_LOC": "haproxy.cfg", "SOCKET_PATH": "admin.sock", "SERVER_STATE_BASE": "",
        "SERVER_STATE_FILE": "server-state",
    }  # fmt: skip
    places = {f"RAY_SERVE_HAPROXY_{name}": os.path.join(folder, file) for name, file in files.items()}  # noqa: PTH118
    with socket.socket() as first, socket.socket() as second:
        ports = {}
        for probe, name in ((first, "STATS"), (second, "METRICS")):
            probe.bind(("", 0))
            ports[f"RAY_SERVE_HAPROXY_{name}_PORT"] = str(probe.getsockname()[1])
    return _HAPROXY_SETTINGS | places | ports


def start(config: ServeConfig) -> str:
    """Start serving in the running Ray session, and wait until a replica answers; returns the URL."""
    from ray import serve
    from ray.serve.schema import LoggingConfig

    options = {"host": config.host, "port": config.port, "request_timeout_s": config.request_seconds}
    quiet = LoggingConfig(log_level="ERROR", enable_access_log=False)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options=options, logging_config=quiet)
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="classifier",
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        ray_actor_options={"num_cpus": config.cpus_per_replica},
        autoscaling_config={
            "min_replicas": config.min_replicas,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": max(1, config.max_ongoing_requests // 2),
        },
        logging_config=quiet,
    )
    serve.run(deployment.bind(config.model_dump(mode="json")), name=_APPLICATION, route_prefix="/")
    return f"http://{config.host}:{config.port}/"


def stop() -> None:
    """End serving; the Ray session stays."""
    from ray import serve

    serve.shutdown()


class Replica:
    """One process with the model and the application; Ray Serve starts and ends it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from fruitcnn import frozen

        self.config = ServeConfig(**settings)
        self.model = frozen.load(self.config.model, self.config.runtime, self.config.cpus_per_replica)
        self.decoders = ThreadPoolExecutor(self.config.cpus_per_replica, thread_name_prefix="decode")
        self.caller = ThreadPoolExecutor(1, thread_name_prefix="model")

    def __serve_build_asgi_app__(self) -> Any:
        return build_app(self.config, self.model, self._batched(), self.decoders)

    def _batched(self) -> Any:
        """Pixels of one picture -> probabilities and score, in calls with the pictures of whoever else is waiting."""
        import numpy as np
        from ray import serve

        async def predict_all(
            pictures: list[npt.NDArray[np.uint8]],
        ) -> list[tuple[npt.NDArray[np.float32], np.float32]]:
            pixels = np.stack(pictures)
            loop = asyncio.get_running_loop()
            answers = await loop.run_in_executor(self.caller, self.model.answer, pixels)
            return list(zip(answers.probabilities, answers.unlike, strict=True))

        async def predict_one(picture: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], np.float32]:
            return (await predict_all([picture]))[0]

        if self.config.batch_size == 1:
            return predict_one
        wait_seconds = self.config.batch_wait_seconds
        return serve.batch(max_batch_size=self.config.batch_size, batch_wait_timeout_s=wait_seconds)(predict_all)


def build_app(config: ServeConfig, model: Any, predict: Any, decoders: ThreadPoolExecutor) -> Any:
    """Return the FastAPI application over a loaded frozen.FrozenModel; predict and decoders as in endpoints.build."""
    from fruitcnn import endpoints
    from fruitcnn.answers import Rules

    file = model.description.files.get(endpoints.BROWSER_FILE)
    about = endpoints.About(
        model_hash=model.model_hash,
        architecture=model.description.architecture,
        labels=model.labels,
        input_px=list(model.input_px),
        runtime=model.runtime,
        metrics=model.description.metrics,
        limits=model.limits.model_dump(),
        created_at=model.description.created_at.isoformat(),
        browser={"path": endpoints.BROWSER_FILE, **file.model_dump()} if file else None,
        has_browser_runtime=endpoints.BROWSER_RUNTIME.exists(),
        **config.model_dump(include={"top_k", "min_confidence", "max_body_bytes", "max_pictures", "max_pixels"}),
    )
    rules = Rules(model.labels, model.input_px, config.top_k, config.min_confidence, config.max_pixels, model.limits)
    limits = endpoints.Limits(config.max_body_bytes, config.max_pictures, config.request_seconds)
    return endpoints.build(about, rules, limits, predict, decoders, _browser_file(config.model, model, file))


def _browser_file(model_uri: str, model: Any, stored: Any) -> Path | None:
    from fruitcnn import bundle, endpoints

    if stored is None:
        return None
    folder = bundle.fetch(model_uri, model.description, model.model_hash, [endpoints.BROWSER_FILE], None)
    return folder / endpoints.BROWSER_FILE
