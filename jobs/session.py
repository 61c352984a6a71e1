"""The Ray session of a job: started once, quiet, and ended by whoever started it."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ray_session() -> Iterator[None]:
    """A Ray session: the one already running in this process, the cluster at RAY_ADDRESS, or a new local one."""
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(include_dashboard=False)
    try:
        yield
    finally:
        ray.shutdown()
