"""Sums of arrays over the processes of one node, through memory that they share; below group. Pure, Linux only.

Each process sums its share of all arrays in the order of the ranks, copies the shares of the others into a piece of
memory of its own for them to read, and sees the whole sum: the same bits in every process and in every run. They wait
for each other with a byte over a Unix socket: a process that ends closes its end, so that nobody waits for the dead.
Neither the memory nor the socket has a name in a file system: nothing stays behind, whichever way the processes end.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import socket
import struct
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

IS_POSSIBLE = hasattr(os, "memfd_create")
_MEETING_SECONDS = 300.0
# What TensorFlow takes without a copy.
_ALIGNMENT = 64


class PeerLostError(ConnectionError):
    """Another process of the group has ended."""


class SharedSum:
    """One process's part in the sums of a group; all of them must call `add` together, with arrays of equal shapes."""

    def __init__(self, meeting: str, rank: int, size: int) -> None:
        """Meet the others under the name `meeting`, no other group's. Raises PeerLostError after five minutes."""
        self.rank, self.size = rank, size
        self._peers, self._file = _gather(meeting, size) if rank == 0 else _join(meeting)
        self._pieces = np.zeros((size + 1, 0), np.uint8)
        self._layouts: dict[tuple, _Layout] = {}

    def add(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """Return the sums over the ranks, as views of shared memory that hold until the next call.

        `arrays` are of one type of number; in the next call they may be others. Raises PeerLostError.
        """
        layout = self._layout(arrays, len(self._pieces) - 1)
        self._sum_own(layout, arrays)
        self._meet()
        return layout.whole

    def close(self) -> None:
        """Leave the group: the others' next call raises PeerLostError."""
        for peer in self._peers:
            peer.close()

    def _meet(self) -> None:
        """Return when all have come here: they tell the first, which then tells all."""
        try:
            if self.rank == 0:
                for peer in self._peers:
                    _receive(peer)
            for peer in self._peers:
                peer.sendall(b".")
            if self.rank:
                _receive(self._peers[0])
        except OSError as error:
            self.close()
            raise PeerLostError(f"rank {self.rank} of {self.size} waited for a worker that has ended") from error

    def _sum_own(self, layout: _Layout, arrays: Sequence[np.ndarray]) -> None:
        flat = [array.reshape(-1) for array in arrays]
        for number, numbers, place in layout.of_others:
            np.copyto(place, flat[number][numbers])
        self._meet()
        # No word of infinities, as in TensorFlow.
        with np.errstate(all="ignore"):
            for number, numbers, pieces, out in layout.own:
                first, second, *others = (flat[number][numbers] if piece is None else piece for piece in pieces)
                np.add(first, second, out=out)
                for other in others:
                    np.add(out, other, out=out)

    def _layout(self, arrays: Sequence[np.ndarray], place_of_sums: int) -> _Layout:
        signature = (arrays[0].dtype, *(array.shape for array in arrays))
        if signature not in self._layouts:
            num_bytes = sum(_aligned(array.nbytes) for array in arrays)
            if num_bytes > self._pieces.shape[1]:
                self._grow(num_bytes)
            self._layouts[signature] = _lay_out(arrays, self._pieces[:, :num_bytes], self.rank, place_of_sums)
        return self._layouts[signature]

    def _grow(self, num_bytes: int) -> None:
        """Make pieces of `num_bytes`, one for each rank and the sum's: what a rank may write in is always its own."""
        if self.rank == 0:
            os.ftruncate(self._file, (self.size + 1) * num_bytes)
        self._meet()
        memory = mmap.mmap(self._file, (self.size + 1) * num_bytes)
        self._pieces = np.frombuffer(memory, np.uint8).reshape(self.size + 1, num_bytes)
        self._layouts.clear()


class SharedShares(SharedSum):
    """Sums of which each process gets its share only, to make its share of something else of; all see all of that."""

    def __init__(self, meeting: str, rank: int, size: int, arrays: Sequence[np.ndarray]) -> None:
        """`arrays`: what is summed is always of these shapes, and of this one type."""
        super().__init__(f"{meeting} shares", rank, size)
        self._all = self._layout(arrays, rank)

    def share_of(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Return this rank's share of arrays that are the same everywhere, (n,): which part that is does not matter."""
        flat = np.zeros(self._pieces.shape[1], np.uint8)
        for place, array in zip(_views(flat, arrays), arrays, strict=True):
            np.copyto(place, array)
        return flat[self._all.cuts[self.rank] : self._all.cuts[self.rank + 1]].view(arrays[0].dtype)

    def sum(self, *arrays: np.ndarray) -> np.ndarray:
        """Return this rank's share of the sums, (n,), a view that holds until the next call; `spread` must follow."""
        self._sum_own(self._all, arrays)
        return self._of_rank(self.rank, self.rank)

    def spread(self, share: np.ndarray) -> list[np.ndarray]:
        """Return all shares joined to arrays of the known shapes: views that hold until this rank's next sum."""
        np.copyto(self._of_rank(-1, self.rank), share)
        self._meet()
        return self._all.whole

    def collect(self, share: np.ndarray) -> list[np.ndarray]:
        """Return the same as copies, beside what `spread` has returned."""
        np.copyto(self._of_rank(self.rank, self.rank), share)
        self._meet()
        flat = np.concatenate([self._of_rank(rank, rank) for rank in range(self.size)])
        self._meet()
        return _views(flat.view(np.uint8), self._all.whole)

    def _of_rank(self, piece: int, rank: int) -> np.ndarray:
        return self._pieces[piece, self._all.cuts[rank] : self._all.cuts[rank + 1]].view(self._all.whole[0].dtype)


class _Layout(NamedTuple):
    """Where arrays of certain shapes lie; a part of one is its place among the arrays, and the numbers in it."""

    cuts: list[int]
    """The bytes between which the share of each rank lies in a piece."""
    of_others: list[tuple[int, slice, np.ndarray]]
    """The parts that other ranks sum, and where this rank hands them over."""
    own: list[tuple[int, slice, list[np.ndarray | None], np.ndarray]]
    """The parts that this rank sums, where every rank hands them over (None: this one, which need not), and the sum."""
    whole: list[np.ndarray]
    """The arrays as all see them."""


def _lay_out(arrays: Sequence[np.ndarray], pieces: np.ndarray, rank: int, place_of_sums: int) -> _Layout:
    """Lay `arrays` out in `pieces`, uint8 (ranks + 1, n): one for each rank, and the one that all see."""
    size, num_lines = len(pieces) - 1, pieces.shape[1] // _ALIGNMENT
    cuts = [num_lines * each // size * _ALIGNMENT for each in range(size + 1)]
    layout, start = _Layout(cuts, [], [], _views(pieces[-1], arrays)), 0
    for number, array in enumerate(arrays):
        for owner, cut in enumerate(pairwise(cuts)):
            begin, end = max(cut[0], start), min(cut[1], start + array.nbytes)
            if begin >= end:
                continue
            numbers = slice((begin - start) // array.itemsize, (end - start) // array.itemsize)
            handed = [piece[begin:end].view(array.dtype) for piece in pieces]
            if owner == rank:
                others = [None if each == rank else handed[each] for each in range(size)]
                layout.own.append((number, numbers, others, handed[place_of_sums]))
            else:
                layout.of_others.append((number, numbers, handed[rank]))
        start += _aligned(array.nbytes)
    return layout


def _views(piece: np.ndarray, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    views, start = [], 0
    for array in arrays:
        views.append(piece[start : start + array.nbytes].view(array.dtype).reshape(array.shape))
        start += _aligned(array.nbytes)
    return views


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def _gather(meeting: str, size: int) -> tuple[list[socket.socket], int]:
    """Wait for all others, and hand them the shared memory."""
    memory = os.memfd_create("fruitcnn")
    peers: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(_address(meeting))
        door.listen(size)
        door.settimeout(_MEETING_SECONDS)
        while len(peers) < size - 1:
            try:
                peer, _ = door.accept()
            except TimeoutError as error:
                raise PeerLostError(f"{len(peers) + 1} of {size} workers came within {_MEETING_SECONDS:g} s") from error
            if _is_own(peer):
                socket.send_fds(peer, [b"."], [memory])
                peers.append(peer)
            else:
                peer.close()
    return peers, memory


def _join(meeting: str) -> tuple[list[socket.socket], int]:
    first, give_up_at = socket.socket(socket.AF_UNIX), time.monotonic() + _MEETING_SECONDS
    while first.connect_ex(_address(meeting)):
        if time.monotonic() > give_up_at:
            raise PeerLostError(f"the first worker did not come within {_MEETING_SECONDS:g} s")
        time.sleep(0.05)
    _, files, _, _ = socket.recv_fds(first, 1, 1) if _is_own(first) else (b"", [], 0, None)
    if not files:
        raise PeerLostError("the first worker ended while the group was gathering")
    return [first], files[0]


def _address(meeting: str) -> str:
    # A name that begins with a zero byte is no file; it has room for 107 bytes.
    return f"\0fruitcnn-{hashlib.sha256(meeting.encode()).hexdigest()}"


def _is_own(peer: socket.socket) -> bool:
    """Whether the other end is a process of this user: anyone may connect to such a name."""
    _, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return bool(user == os.getuid())


def _receive(peer: socket.socket) -> None:
    if not peer.recv(1):
        raise ConnectionResetError
