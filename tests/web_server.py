"""The web application on uvicorn in a thread of the test: as jobs.serve answers, without Ray."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import uvicorn

from fruitcnn import frozen, serving
from fruitcnn.serving import ServeConfig


@contextmanager
def serve_without_ray(config: ServeConfig) -> Iterator[str]:
    """Serve config.model at a free port; yields the URL."""
    model = frozen.load(config.model)

    async def predict(pixels: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], np.float32]:
        (probabilities,), (unlike,) = model.answer(pixels[np.newaxis])
        return probabilities, unlike

    app = serving.build_app(config, model, predict, ThreadPoolExecutor(2))
    # Its default log_config closes all log handlers. absl's (TensorFlow) then closes the stream it writes to:
    # pytest's own, while a test captures, and pytest could not go on.
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="error"))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join(20)
