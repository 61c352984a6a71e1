"""A source of pictures -> what its LICENSE file says, for the model card. Called by freezing; reads no picture."""

from __future__ import annotations

from pathlib import PurePosixPath

from fruitcnn import archives, kaggle_source, storage

_NAMES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
_LONGEST_CHARS = 120
_MAX_DEPTH = 3


def of_source(source: str) -> str | None:
    """The first line of a LICENSE file at the top of a source ("MIT License"), None where none is found.

    source: as a data set's manifest names it. What cannot be read any more (moved, no rights) has none.
    """
    if source.startswith("synthetic"):
        return "drawn by fruitcnn, free of rights"
    try:
        text = (
            _of_archive(source) if source.startswith("kaggle:") or archives.is_archive(source) else _in_folder(source)
        )
    except (storage.StorageError, archives.ArchiveError, ValueError, OSError):
        return None
    lines = (line.strip(" #*") for line in (text or b"").decode("utf-8", "replace").splitlines())
    return next((line[:_LONGEST_CHARS] for line in lines if line), None)


def _in_folder(uri: str) -> bytes | None:
    for name in _NAMES:
        if storage.exists(place := storage.join(uri, name)):
            return storage.read(place)
    return None


def _of_archive(source: str) -> bytes | None:
    is_kaggle = source.startswith("kaggle:")
    file = kaggle_source.kept(source.removeprefix("kaggle:")) if is_kaggle else source
    if not file or not file.lower().endswith(".zip"):
        return None  # a tar has no list of members: all of it would be read for this
    for member in archives.list_members(file):
        path = PurePosixPath(member.name)
        if path.name in _NAMES and len(path.parts) <= _MAX_DEPTH:
            return archives.read_member(file, member)
    return None
