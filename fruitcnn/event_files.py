"""Metrics -> TensorBoard event files in the run folder, local or S3; between runs and loop.

    <run>/tensorboard/events.out.tfevents.0000000400.fruitcnn     the records after those of the file before, up to 400

Object stores cannot append, so every checkpoint adds a file, and a resumed run takes away those after its step.
TensorBoard reads them in the order of their names: `tensorboard --logdir RUN/tensorboard`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fruitcnn import storage

_NOT_CURVES = ("kind", "step", "time")


def write(run: str, lines: Sequence[dict[str, Any]]) -> None:
    """Write the next file, of these lines of metrics.jsonl; nothing where there are none. Raises StorageError."""
    if lines:
        name = f"events.out.tfevents.{lines[-1]['step']:010d}.fruitcnn"
        storage.write(storage.join(run, "tensorboard", name), _encode(lines))


def cut(run: str, after_step: int) -> None:
    """Delete the files that hold steps after `after_step`. Raises StorageError."""
    for entry in list(storage.list_files(storage.join(run, "tensorboard"))):
        if int(storage.name(entry.uri).split(".")[3]) > after_step:
            storage.delete(entry.uri)


def _encode(lines: Sequence[dict[str, Any]]) -> bytes:
    import tensorflow as tf
    from tensorflow.core.framework.summary_pb2 import Summary
    from tensorflow.core.util.event_pb2 import Event

    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "events")
        with tf.io.TFRecordWriter(file) as writer:
            writer.write(Event(wall_time=lines[0]["time"], file_version="brain.Event:2").SerializeToString())
            for line in lines:
                named = {name: value for name, value in line.items() if name not in _NOT_CURVES}
                values = [
                    Summary.Value(tag=f"{line['kind']}/{name}", simple_value=value) for name, value in named.items()
                ]
                event = Event(wall_time=line["time"], step=line["step"], summary=Summary(value=values))
                writer.write(event.SerializeToString())
        return Path(file).read_bytes()
