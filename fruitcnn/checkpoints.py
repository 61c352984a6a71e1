"""Training state <-> run folder: complete or absent, written beside the step loop; between replica and train. Pure.

    <run>/checkpoints/step-00000123/weights.npz optimizer.npz   arrays without pickle, in the order of the variables
    <run>/checkpoints/step-00000123/manifest.json               written LAST, with the hashes of both

Because the order of rows and their augmentation are functions of the step, weights + optimizer + step is all there is.
"""

from __future__ import annotations

import hashlib
import io
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from fruitcnn import storage
from fruitcnn.budget import give_back

_LOG = logging.getLogger(__name__)
OUTAGE_SECONDS = 180.0
"""How long a store may be away while a checkpoint is due; training goes on meanwhile, until the next one is due."""

_PAUSE_SECONDS = 2.0


class State(NamedTuple):
    """What training goes on from: `weights` and `optimizer` in the order of the Keras variables."""

    step: int
    weights: list[np.ndarray]
    optimizer: list[np.ndarray]


def checkpoint_name(step: int) -> str:
    """Return the folder name of the checkpoint taken after `step` steps."""
    return f"step-{step:08d}"


def save(run: str, state: State, facts: dict[str, Any]) -> str:
    """Write one checkpoint, its manifest last, with `facts` in it; return its name. Raises StorageError."""
    name = checkpoint_name(state.step)
    folder = storage.join(run, "checkpoints", name)
    # One after the other: each is as large as the network.
    hashes = {
        "weights.npz": _write_arrays(storage.join(folder, "weights.npz"), state.weights),
        "optimizer.npz": _write_arrays(storage.join(folder, "optimizer.npz"), state.optimizer),
    }
    storage.write_json(storage.join(folder, "manifest.json"), facts | {"step": state.step, "sha256": hashes})
    return name


def load(run: str, name: str) -> State:
    """Read one checkpoint. Raises ValueError if a file does not match its hash, StorageError if one is missing."""
    folder = storage.join(run, "checkpoints", name)
    manifest = storage.read_json(storage.join(folder, "manifest.json"))
    arrays = {}
    for file, wanted in manifest["sha256"].items():
        data = storage.read(storage.join(folder, file))
        if hashlib.sha256(data).hexdigest() != wanted:
            raise ValueError(f"{storage.join(folder, file)}: its sha256 differs from manifest.json's: torn or changed")
        arrays[file] = _unpack(data)
    return State(manifest["step"], arrays["weights.npz"], arrays["optimizer.npz"])


def facts(run: str, name: str) -> dict[str, Any]:
    """Return the manifest of one checkpoint. Raises StorageError if there is none."""
    return storage.read_json(storage.join(run, "checkpoints", name, "manifest.json"))


def complete(run: str) -> list[str]:
    """Return the names of the checkpoints that have a manifest, oldest first."""
    folder = storage.join(run, "checkpoints")
    manifests = (entry.uri for entry in storage.list_files(folder) if entry.uri.endswith("/manifest.json"))
    return sorted(storage.name(uri.removesuffix("/manifest.json")) for uri in manifests)


def latest(run: str) -> State | None:
    """Return the newest checkpoint that is whole, or None. A torn one is passed over with a warning."""
    for name in reversed(complete(run)):
        try:
            return load(run, name)
        except (ValueError, storage.StorageError) as error:
            _LOG.warning("checkpoint %s is passed over: %s", name, error)
    return None


def prune(run: str, keep: int, best: str | None) -> None:
    """Delete all but the newest `keep` checkpoints and the `best` one."""
    for name in complete(run)[:-keep]:
        if name != best:
            folder = storage.join(run, "checkpoints", name)
            # The manifest goes first, so that a half-deleted checkpoint is none.
            storage.delete(storage.join(folder, "manifest.json"))
            storage.delete_prefix(folder)


class Writer:
    """Writes checkpoints in a thread of its own, one at a time and in order."""

    def __init__(self, run: str, keep: int, best: str | None = None, best_score: float = -1.0) -> None:
        """`best` and `best_score` come from a run that is resumed."""
        self.run, self.keep, self.best, self.best_score = run, keep, best, best_score
        # One thread for all: glibc gives threads arenas in turn, and each keeps what a checkpoint took there.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._last: Future[None] | None = None

    def submit(
        self, state: State, score: float | None, facts: dict[str, Any], first: Callable[[], None] = lambda: None
    ) -> None:
        """Write `state` beside the caller, after calling `first` there; waits only for the write before it.

        Raises what that one met.
        """
        self.wait()
        # In a list that the thread empties: arguments of its own it would keep to the end of the call.
        self._last = self._thread.submit(self._run, [(state, score, facts, first)])

    def wait(self) -> None:
        """Wait until all is written. Raises StorageError where a write failed."""
        last, self._last = self._last, None
        if last:
            last.result()

    def _run(self, handed: list[tuple[State, float | None, dict[str, Any], Callable[[], None]]]) -> None:
        self._write(*handed.pop())
        give_back()

    def _write(self, state: State, score: float | None, facts: dict[str, Any], first: Callable[[], None]) -> None:
        give_up_at = time.monotonic() + OUTAGE_SECONDS
        while True:
            try:
                self._write_once(state, score, facts, first)
                return
            except storage.UnavailableError as error:
                if time.monotonic() > give_up_at:
                    raise
                _LOG.warning("checkpoint of step %d waits: %s", state.step, error)
                time.sleep(_PAUSE_SECONDS)

    def _write_once(self, state: State, score: float | None, facts: dict[str, Any], first: Callable[[], None]) -> None:
        first()
        name = save(self.run, state, facts)
        if score is not None and score >= self.best_score:
            self.best, self.best_score = name, score
        prune(self.run, self.keep, self.best)


def _write_arrays(uri: str, arrays: Sequence[np.ndarray]) -> str:
    """Write a file of arrays; return its sha256."""
    data = _pack(arrays)
    storage.write(uri, data)
    return hashlib.sha256(data).hexdigest()


def _pack(arrays: Sequence[np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    named: dict[str, Any] = {f"{index:05d}": array for index, array in enumerate(arrays)}
    np.savez(buffer, **named)
    return buffer.getvalue()


def _unpack(data: bytes) -> list[np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return [archive[name] for name in sorted(archive.files)]
