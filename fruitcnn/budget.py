"""A budget of memory that the threads of one process share, and how it is given back. Used by infer, checkpoints."""

import contextlib
import ctypes
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RESERVED_BYTES = 160 << 20
"""Kept from large pictures for the files and pixels of ordinary ones, and for the rows of parts."""

_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES = -3, 1 << 20


def return_large_blocks() -> None:
    """Have glibc give blocks of a megabyte and more back when they are freed.

    By itself it raises that limit with the sizes it sees, and keeps what the largest pictures took, once per thread.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


def give_back() -> None:
    """Have glibc give back what was freed: by itself it keeps the small blocks between those that are in use."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def left_for_pictures(total_bytes: int) -> int:
    """How much of what a process may take in all is left for large pictures, once its models are open.

    At least a quarter of it: with less they would be decoded one after the other, and not take less.
    """
    taken_bytes = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return max(total_bytes // 4, total_bytes - taken_bytes - RESERVED_BYTES)


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
