"""A frozen model behind a web address: a page at /, POST /classify, /health, /model, and its description at /docs.

    python -m jobs.serve --model work/model
    curl --data-binary @apple.jpg http://127.0.0.1:8000/classify
    curl -F image=@apple.jpg -F image=@pear.jpg http://127.0.0.1:8000/classify

It serves until Ctrl-C or SIGTERM. --model may be registry:NAME@champion: the champion at the start. With RAY_ADDRESS
set it runs on that cluster; give a --host that others reach.
"""

import io
import signal
import threading
import time
from contextlib import ExitStack, redirect_stdout

from fruitcnn import serving
from fruitcnn.serving import ServeConfig
from jobs.cli import progress, ray_session, run, summary


def main(config: ServeConfig) -> None:
    """Serve until told to stop."""
    began = time.monotonic()
    serving.check(config)
    serving.prepare(config)
    told_to_stop = threading.Event()
    checked = time.monotonic()
    with ExitStack() as last, ray_session():
        has_ray = time.monotonic()
        with progress("serve", None, "replica" if config.min_replicas == 1 else "replicas") as update:
            url = serving.start(config)
            update(config.min_replicas)
        ready = time.monotonic()
        signal.signal(signal.SIGTERM, lambda *_: told_to_stop.set())
        parts = f"model {checked - began:.1f}, Ray {has_ray - checked:.1f}, replicas {ready - has_ray:.1f}"
        rows = {"model": config.model, "seconds": f"{ready - began:.0f} = {parts}"}
        summary("serving until Ctrl-C", rows, {"page": url, "description": f"{url}docs"})
        try:
            while not told_to_stop.wait(1.0):
                pass
        except KeyboardInterrupt:
            pass
        finally:
            # Until the session has ended, Ray tells on stdout of a task of the controller that it kills itself.
            last.enter_context(redirect_stdout(io.StringIO()))
            serving.stop()


if __name__ == "__main__":
    run(ServeConfig, main, __doc__)
