"""Sorts listings that do not fit in memory: sorted runs on local disk, merged a few at a time. Used by inputs.py."""

import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count, islice
from operator import itemgetter
from pathlib import Path

import pyarrow as pa

Named = tuple[str, int]
"""(name, size in bytes)."""

RUN_NAMES = 500_000
MERGED_RUNS = 32
"""Runs merged at a time: a billion names are 2,000 runs, too many to have open or to hold a block of each."""

_SCHEMA = pa.schema([("name", pa.binary()), ("size", pa.int64())])
_BATCH_NAMES = 4096
_NAME = itemgetter(0)  # sorting by it takes half of the time of sorting the pairs


def sort_unique(named: Iterable[Named], on_repeated: Callable[[], None], run_names: int = RUN_NAMES) -> Iterator[Named]:
    """The items sorted by name, each name once (its first size); on_repeated() is called for every one left out.

    At most about run_names items are in memory; what is beyond waits in the system's temporary folder.
    """
    items = iter(named)
    first = sorted(islice(items, run_names), key=_NAME)
    if len(first) < run_names:
        yield from _unique(first, on_repeated)
        return
    with tempfile.TemporaryDirectory(prefix="fruitcnn-sort-") as folder:
        runs = _Runs(Path(folder))
        runs.add([first])
        del first
        while run := sorted(islice(items, run_names), key=_NAME):
            runs.add([run])
        yield from _unique(chain.from_iterable(runs.merged()), on_repeated)


class _Runs:
    """Sorted runs on disk; each time MERGED_RUNS of one size have come together, they become one of the next size."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._numbers = folder, count()
        self._by_size: list[list[Path]] = []

    def add(self, blocks: Iterable[list[Named]], size: int = 0) -> None:
        """Keep one more run, given in blocks."""
        if size == len(self._by_size):
            self._by_size.append([])
        runs = self._by_size[size]
        runs.append(_spill(blocks, self._folder / str(next(self._numbers))))
        if len(runs) == MERGED_RUNS:
            self._by_size[size] = []
            self.add(_merge([_read_run(run) for run in runs]), size + 1)
            for run in runs:
                run.unlink()

    def merged(self) -> Iterator[list[Named]]:
        """All items in order, in blocks."""
        return _merge([_read_run(run) for runs in self._by_size for run in runs])


def _merge(runs: list[Iterator[list[Named]]]) -> Iterator[list[Named]]:
    """One sorted stream of several, all in blocks: Python's sort merges pieces that are sorted faster than a heap."""
    heads = [(block, run) for run in runs if (block := next(run, []))]
    while heads:
        # What any run has yet to give is not below the last item of its block here.
        limit = min(block[-1][0] for block, _ in heads)
        ready: list[Named] = []
        left = []
        for block, run in heads:
            cut = bisect_right(block, limit, key=_NAME)
            ready += block[:cut]
            if rest := block[cut:] or next(run, []):
                left.append((rest, run))
        heads = left
        ready.sort(key=_NAME)
        yield ready


def _unique(items: Iterable[Named], on_repeated: Callable[[], None]) -> Iterator[Named]:
    last = None
    for item in items:
        if item[0] == last:
            on_repeated()
        else:
            yield item
            last = item[0]


def _spill(blocks: Iterable[list[Named]], path: Path) -> Path:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
        for block in blocks:
            for start in range(0, len(block), _BATCH_NAMES):
                names, sizes = zip(*block[start : start + _BATCH_NAMES], strict=True)
                raw = pa.array([name.encode("utf-8", "surrogateescape") for name in names], pa.binary())
                writer.write_batch(pa.record_batch([raw, pa.array(sizes, pa.int64())], schema=_SCHEMA))
    return path


def _read_run(path: Path) -> Iterator[list[Named]]:
    with pa.OSFile(str(path), "rb") as source, pa.ipc.open_stream(source) as reader:
        for batch in reader:
            names = [name.decode("utf-8", "surrogateescape") for name in batch.column(0).to_pylist()]
            yield list(zip(names, batch.column(1).to_pylist(), strict=True))
