"""Sorts listings that do not fit in memory: sorted runs on local disk, then one merge. Used by inputs.py."""

import heapq
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa

Named = tuple[str, int]
"""(name, size in bytes)."""

RUN_NAMES = 500_000
_SCHEMA = pa.schema([("name", pa.binary()), ("size", pa.int64())])
_BATCH_NAMES = 4096


def sort_unique(named: Iterable[Named], on_repeated: Callable[[], None], run_names: int = RUN_NAMES) -> Iterator[Named]:
    """The items sorted by name, each name once (its first size); on_repeated() is called for every one left out.

    At most about run_names items are in memory; what is beyond waits in the system's temporary folder.
    """
    items = iter(named)
    first = sorted(islice(items, run_names))
    if len(first) < run_names:
        yield from _unique(first, on_repeated)
        return
    with tempfile.TemporaryDirectory(prefix="fruitcnn-sort-") as folder:
        runs = [_spill(first, Path(folder) / "0")]
        del first
        while run := sorted(islice(items, run_names)):
            runs.append(_spill(run, Path(folder) / str(len(runs))))
        yield from _unique(heapq.merge(*map(_read_run, runs)), on_repeated)


def _unique(items: Iterable[Named], on_repeated: Callable[[], None]) -> Iterator[Named]:
    last = None
    for item in items:
        if item[0] == last:
            on_repeated()
        else:
            yield item
            last = item[0]


def _spill(run: list[Named], path: Path) -> Path:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
        for start in range(0, len(run), _BATCH_NAMES):
            names, sizes = zip(*run[start : start + _BATCH_NAMES], strict=True)
            raw = pa.array([name.encode("utf-8", "surrogateescape") for name in names], pa.binary())
            writer.write_batch(pa.record_batch([raw, pa.array(sizes, pa.int64())], schema=_SCHEMA))
    return path


def _read_run(path: Path) -> Iterator[Named]:
    with pa.OSFile(str(path), "rb") as source, pa.ipc.open_stream(source) as reader:
        for batch in reader:
            names = (name.decode("utf-8", "surrogateescape") for name in batch.column(0).to_pylist())
            yield from zip(names, batch.column(1).to_pylist(), strict=True)
