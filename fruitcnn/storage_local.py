"""The local half of storage.py: files of this machine, through the standard library alone.

obstore is not used here: it refuses names that are not UTF-8, reads "%41" in a name as an escape, gives up on a
symlink loop, and puts its temporary names into listings. Paths are absolute strings, as storage.normalise returns.
"""
# Plain strings, not Path: over a million names they cost a tenth, and they keep a name as it is.
# ruff: noqa: PTH103, PTH105, PTH108, PTH110, PTH112, PTH116, PTH118, PTH120, PTH121

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO
from uuid import uuid4

from fruitcnn.storage_errors import NotFoundError, StorageError, from_os

# Names of files being written. A kill may leave one behind: listings skip it, delete_prefix removes it.
TEMPORARY = ".fruitcnn-tmp-"
_FIRST_READ_BYTES = 64 << 10  # a picture of a data set whole, and below what malloc asks the system for
BROKEN_LINK_BYTES = -1
"""Size of a link that leads nowhere, or in a circle."""

_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES)


@contextlib.contextmanager
def _errors_of(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise from_os(path, error) from error


def read(path: str) -> bytes:
    """The whole file."""
    # As read_range: the fewer system calls, the less a thread waits for the interpreter lock.
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.read(file, _FIRST_READ_BYTES)
            if more := os.read(file, _FIRST_READ_BYTES) if data else b"":
                with open(file, "rb", closefd=False) as rest:
                    data = b"".join((data, more, rest.read()))
            return data
        finally:
            os.close(file)
    except (OSError, ValueError) as error:
        raise from_os(path, error) from error


def read_range(path: str, start: int, length: int) -> bytes:
    """At most `length` bytes from `start` on."""
    # Three system calls where open(), seek() and read() make seven: half the time of a 5 KB member of an archive.
    with _errors_of(path):
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(file, length, start)
            while len(data) < length and (more := os.pread(file, length - len(data), start + len(data))):
                data += more
            return data
        finally:
            os.close(file)


def size_bytes(path: str) -> int:
    """Size of the file behind `path`; NotFoundError for a folder, as a bucket has none."""
    with _errors_of(path):
        status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise NotFoundError(path, "not a file")
    return status.st_size


def require_writable(path: str) -> None:
    """Raise what a write of this file would, as far as modes and mounts tell; nothing is written."""
    folder = os.path.dirname(path)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    with _errors_of(path):
        if not os.path.isdir(folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(folder, os.W_OK | os.X_OK):
            code = errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(code, os.strerror(code))


def write(path: str, data: bytes) -> None:
    """Replace the file in one step: a reader sees the old bytes or the new ones, never a mixture."""
    with _errors_of(path), _temporary_beside(path, lambda file: file.write(data)) as temporary:
        os.replace(temporary, path)


def copy(source: str, path: str) -> None:
    """Copy one local file to `path`, in one step."""
    with _errors_of(source):
        reader = open(source, "rb")  # noqa: SIM115 - closed by the next with; opened here to blame the right path
    with reader, _errors_of(path), _temporary_beside(path, lambda file: shutil.copyfileobj(reader, file)) as temporary:
        os.replace(temporary, path)


def fill(path: str, fill_file: Callable[[BinaryIO], object]) -> None:
    """Let `fill_file` write into a temporary file that then becomes `path`, in one step."""
    with _errors_of(path), _temporary_beside(path, fill_file) as temporary:
        os.replace(temporary, path)


def put_if_absent(path: str, data: bytes) -> bool:
    """Exactly one caller ever gets True for a path; the file appears complete or not at all."""
    with _errors_of(path):
        if os.path.lexists(path):
            return False
        with _temporary_beside(path, lambda file: file.write(data)) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                return _rename_if_absent(temporary, path)
            return True


def _rename_if_absent(temporary: str, path: str) -> bool:
    """For file systems without hard links (FAT, some network mounts): the folder's lock joins look and rename."""
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if os.path.lexists(path):
            return False
        os.replace(temporary, path)
        return True
    finally:
        os.close(folder)


@contextlib.contextmanager
def _temporary_beside(path: str, fill_file: Callable[[BinaryIO], object]) -> Iterator[str]:
    """A filled, closed file in the folder of `path` (made when missing); gone again at the end, renamed or not."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f"{TEMPORARY}{uuid4().hex}")
    try:
        # mkstemp would make it readable by its owner alone, and results are for others to read.
        with open(temporary, "xb") as file:
            fill_file(file)
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def list_files(path: str, *, broken_links: bool = False) -> Iterator[tuple[str, int]]:
    """Stream (path, size in bytes) of every file under a folder, following links but no loop of folders.

    A folder that is not there holds nothing, as on S3. Sockets and pipes are not files; links to nowhere only where
    they are asked for, with BROKEN_LINK_BYTES. Memory holds the names of the folders still to visit, never those of the
    files.
    """
    least_bytes = BROKEN_LINK_BYTES if broken_links else 0
    folders = [path]
    while folders:
        folder = folders.pop()
        with _errors_of(folder):
            try:
                entries = os.scandir(folder)
            except (FileNotFoundError, NotADirectoryError):
                continue
        with entries, _errors_of(folder):  # around all of them: what the taker of a name raises does not come by here
            for entry in entries:
                found = _look_at(entry)
                if found == "folder":
                    folders.append(entry.path)
                elif isinstance(found, int) and found >= least_bytes:
                    yield entry.path, found


def _look_at(entry: os.DirEntry[str]) -> int | str | None:
    """The size of a file or broken link, "folder" for a folder to visit, None for what does not count."""
    try:
        if entry.is_dir():
            return None if entry.is_symlink() and _leads_back(entry.path) else "folder"
        if not entry.is_file():
            return BROKEN_LINK_BYTES if entry.is_symlink() and not os.path.exists(entry.path) else None
        return None if entry.name.startswith(TEMPORARY) else entry.stat().st_size
    except FileNotFoundError:  # deleted while we looked
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return BROKEN_LINK_BYTES
        raise


def _leads_back(link: str) -> bool:
    """Whether a linked folder is one of the folders the link itself lies in."""
    folder = os.path.dirname(link)
    while not os.path.samefile(folder, link):
        parent = os.path.dirname(folder)
        if parent == folder:
            return False
        folder = parent
    return True


def delete(path: str) -> None:
    """Remove a file; one that is not there is fine."""
    with _errors_of(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(path)


def delete_prefix(path: str) -> None:
    """Remove a folder and all in it; links in it are removed, never followed."""
    if path == os.sep:
        raise StorageError(path, "refusing to delete the root folder")
    with _errors_of(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        shutil.rmtree(path)
