"""A budget of memory that the threads of one process share. Used by infer."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Budget:
    """So many bytes, handed out: whoever wants more than is left waits until others are done."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._left_bytes = total_bytes
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, num_bytes: int) -> Iterator[None]:
        """Take num_bytes for as long as the context lasts; what exceeds the whole budget is taken alone."""
        taken_bytes = min(num_bytes, self.total_bytes)
        with self._changed:
            self._changed.wait_for(lambda: self._left_bytes >= taken_bytes)
            self._left_bytes -= taken_bytes
        try:
            yield
        finally:
            with self._changed:
                self._left_bytes += taken_bytes
                self._changed.notify_all()
