"""A .txt or .parquet that names pictures -> their URIs, streamed. Used by inputs.py."""

import codecs
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from fruitcnn import storage
from fruitcnn.errors import UsageError

COLUMNS = ("uri", "id", "path", "url")
_BLOCK_BYTES = 4 << 20


def read(uri: str) -> Iterator[str]:
    """A URI per line of a .txt (UTF-8) or row of a .parquet (column uri, id, path, url, or the only text one).

    Blank lines and lines starting with # are passed over. Raises UsageError for a list without such a column, and for
    UTF-16.
    """
    names = _text_lines(uri) if uri.lower().endswith(".txt") else _parquet_names(uri)
    for name in names:
        yield storage.normalise(name)


def _text_lines(uri: str) -> Iterator[str]:
    size_bytes, rest = storage.size_bytes(uri), b""
    for start in range(0, size_bytes, _BLOCK_BYTES):
        block = storage.read_range(uri, start, _BLOCK_BYTES)
        if start == 0:
            block = _without_mark(uri, block)
        *lines, rest = (rest + block).split(b"\n")
        yield from _names(lines)
    yield from _names([rest])


def _without_mark(uri: str, block: bytes) -> bytes:
    """The first bytes of a text without the mark that Windows puts in front of UTF-8."""
    if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UsageError(f"--images {uri}: got a list in UTF-16, wanted UTF-8 (in PowerShell: Out-File -Encoding utf8)")
    return block.removeprefix(codecs.BOM_UTF8)


def _names(lines: list[bytes]) -> Iterator[str]:
    for raw in lines:
        line = raw.decode("utf-8", "surrogateescape").strip()
        if line and not line.startswith("#"):
            yield line


def _parquet_names(uri: str) -> Iterator[str]:
    filesystem, path = storage.parquet_filesystem(uri)
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        texts = [field.name for field in file.schema_arrow if field.type in (pa.string(), pa.large_string())]
        wanted = [name for name in COLUMNS if name in texts] or (texts if len(texts) == 1 else [])
        if not wanted:
            raise UsageError(
                f"--images {uri}: got the text columns {', '.join(texts) or 'none'}, wanted one of {', '.join(COLUMNS)}"
            )
        for batch in file.iter_batches(columns=[wanted[0]]):
            yield from (name for name in batch.column(0).to_pylist() if name)
