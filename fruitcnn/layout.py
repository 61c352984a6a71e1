"""Pure: a listing of files -> labelled records. Called by sources.py for folders, archives and prefixes alike.

Two layouts are known, at any depth: Training|Train and Test|Testing side by side (any case), each with a folder per
class; or just a folder per class, which is then split here. Every file inside a class folder is a record, whatever its
ending, except hidden and system files: what is no picture, shard rejects by name.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from fruitcnn.errors import UsageError

Split = Literal["train", "test"]

TRAIN_FOLDERS = ("training", "train")
TEST_FOLDERS = ("test", "testing")
FRAMES_PER_RUN = 32  # neighbouring frames that a split never cuts apart
_MANY_FRAMES = 10 * FRAMES_PER_RUN  # of a class; of fewer, drawing each run by itself may hold out anything
_HIDDEN = re.compile(r"(?:^|/)(?:\.|(?:thumbs\.db|desktop\.ini|__macosx)(?:/|$))", re.IGNORECASE)
_FRUITS_360_NAME = re.compile(r"^(r\d*_|)(\d+)_\d+\.[^.]+$")  # r2_17_100.jpg: rotation axis, frame, size
_NUMBERED_NAME = re.compile(r"^(.*?)(\d*)(\.[^.]*)?$", re.DOTALL)
_NUM_NAMES = 5


class SourceError(UsageError):
    """A source that cannot be used as it is: says what was got, what was wanted and the next step."""


@dataclass(frozen=True, slots=True)
class Record:
    """One labelled file of a source, not read yet."""

    path: str  # relative to the folder that holds the splits or the classes; '/'-separated, unique
    label: str
    split: Split
    group: str  # the frame sequence: class, then any sub-folder, then the name without its frame number
    size_bytes: int


class Listed(NamedTuple):
    """One file of a listing, its path relative to the source."""

    path: str
    size_bytes: int


def is_hidden(path: str) -> bool:
    """Whether any part of the path is a hidden or system file (.DS_Store, __MACOSX, Thumbs.db, desktop.ini)."""
    return _HIDDEN.search(path) is not None


def find_root(paths: Iterable[str], wanted: str | None, uri: str) -> tuple[str, bool]:
    """The folder (relative, "" for the top) that holds the splits or else the classes, and whether it holds splits.

    SourceError where there are several (naming them), one split without the other, or no class folder.
    """
    folders = {path.rpartition("/")[0] for path in paths}
    if wanted is not None:
        wanted = wanted.strip("/")
        folders = {folder for folder in folders if not wanted or f"{folder}/".startswith(f"{wanted}/")}
    if not folders:
        under = f" under --root {wanted}" if wanted else ""
        raise SourceError(f"--source: {uri} holds no files{under}; wanted Training/Test folders or a folder per class")
    with_splits = _split_roots(folders)
    if len(with_splits) > 1 and wanted in with_splits:
        with_splits = {wanted}
    if len(with_splits) > 1:
        raise SourceError(
            f"--source: {uri} holds {len(with_splits)} data sets; pass one of them with --root: "
            + ", ".join(repr(root) for root in sorted(with_splits))
        )
    if with_splits:
        return with_splits.pop(), True
    return _plain_root(folders, wanted or "", uri), False


def group_of(path_in_class: str, label: str) -> tuple[str, int]:
    """(frame sequence, frame number) of a file, from its path inside the class folder.

    r_17_100.jpg -> ("Apple Red 1/r_", 17); IMG_0042.png -> ("Apple Red 1/IMG_", 42); a name without number has frame 0.
    """
    folder, _, name = path_in_class.rpartition("/")
    match = _FRUITS_360_NAME.match(name) or _NUMBERED_NAME.match(name)
    assert match
    inner = f"{label}/{folder}/" if folder else f"{label}/"
    return inner + match[1], int(match[2] or 0)


def split_records(files: Iterable[Listed], root: str) -> Iterator[Record]:
    """Records of a Training/Test root, paths relative to it; other files under it are left out."""
    for path, size_bytes in _under(files, root):
        split_folder, _, rest = path.partition("/")
        label, _, name = rest.partition("/")
        split = _split_of(split_folder)
        if split and name:
            yield Record(path, label, split, group_of(name, label)[0], size_bytes)


def plain_records(files: Iterable[Listed], root: str, test_fraction: float, seed: int) -> list[Record]:
    """Records of a folder per class, split into train and test so that neighbouring frames stay together.

    The unit is a run of FRAMES_PER_RUN consecutive frame numbers of one group; a unit is test if the hash of (seed,
    unit) falls below test_fraction. So a file keeps its split when the source grows. A class of less than ten runs'
    frames gives its units in the order of their hashes, until it has given what test_fraction asks for; of the last
    one the first frames.
    """
    by_class: dict[str, list[tuple[str, int, Listed]]] = defaultdict(list)
    for file in _under(files, root):
        label, _, name = file.path.partition("/")
        if name:
            by_class[label].append((*group_of(name, label), file))
    records = []
    for label, frames in by_class.items():
        test_paths = _held_out(frames, test_fraction, seed)
        records += [
            Record(file.path, label, "test" if file.path in test_paths else "train", group, file.size_bytes)
            for group, _, file in frames
        ]
    return records


def check_classes(records: Sequence[Record], uri: str, allow_mismatch: bool, has_splits: bool = True) -> list[str]:
    """The sorted class names; SourceError for no record, one class only, or (unless allowed) splits that differ."""
    if not records:
        raise SourceError(f"--source: {uri} holds no files in class folders; wanted <Class>/<picture>")
    classes: dict[str, set[str]] = {"train": set(), "test": set()}
    for record in records:
        classes[record.split].add(record.label)
    either = classes["train"] | classes["test"]
    if len(either) < 2:
        raise SourceError(
            f"--source: {uri} holds one class only ({either.pop()!r}); training needs at least two: "
            "add the other classes' folders, or name the folder above"
        )
    if classes["train"] != classes["test"] and not allow_mismatch and not has_splits:
        lone = _names(sorted(classes["train"] - classes["test"]))
        raise SourceError(
            f"--source: {uri} has one file only in {lone}, which cannot be in train and test both. "
            "Add pictures there, or pass --allow-class-mismatch"
        )
    if classes["train"] != classes["test"] and not allow_mismatch:
        only = [
            f"only in {split}: {_names(sorted(classes[split] - classes[other]))}"
            for split, other in (("train", "test"), ("test", "train"))
            if classes[split] - classes[other]
        ]
        raise SourceError(
            f"--source: {uri} has different classes in train and test; {'; '.join(only)}. "
            "Add the missing pictures, or pass --allow-class-mismatch"
        )
    return sorted(either)


def _under(files: Iterable[Listed], root: str) -> Iterator[Listed]:
    prefix = f"{root}/" if root else ""
    for path, size_bytes in files:
        if path.startswith(prefix):
            yield Listed(path[len(prefix) :], size_bytes)


def _split_of(folder: str) -> Split | None:
    name = folder.lower()
    return "train" if name in TRAIN_FOLDERS else "test" if name in TEST_FOLDERS else None


def _split_roots(folders: set[str]) -> set[str]:
    """Folders in which both a Training and a Test folder with class folders lie."""
    found: dict[str, set[str]] = defaultdict(set)
    for folder in folders:
        parts = folder.split("/")
        for depth, part in enumerate(parts[:-1]):  # the split folder must hold a class folder
            if split := _split_of(part):
                found["/".join(parts[:depth])].add(split)
                break
    return {root for root, splits in found.items() if len(splits) == 2}


def _plain_root(folders: set[str], root: str, uri: str) -> str:
    """The folder of class folders: down from `root` as long as there is a single folder with folders in it."""
    children = _children(folders, root)
    while len(children) == 1 and _children(folders, only := next(iter(children))) and not _lone_splits(folders, root):
        root, children = only, _children(folders, only)
    if lone := _lone_splits(folders, root):
        raise SourceError(
            f"--source: {uri} has {lone[0]!r} but not its counterpart (Training and Test belong side by side); "
            f"to split it here, pass --root {lone[0]!r}"
        )
    if not children:
        raise SourceError(
            f"--source: {uri} holds files but no class folders; wanted <Class>/<picture>, or "
            "Training/<Class>/<picture> beside Test/<Class>/<picture>"
        )
    return root


def _lone_splits(folders: set[str], root: str) -> list[str]:
    """Training or Test folders right under root, with class folders in them."""
    children = sorted(_children(folders, root))
    return [child for child in children if _split_of(child.rpartition("/")[2]) and _children(folders, child)]


def _children(folders: set[str], root: str) -> set[str]:
    prefix = f"{root}/" if root else ""
    return {
        prefix + folder[len(prefix) :].partition("/")[0]
        for folder in folders
        if folder.startswith(prefix) and len(folder) > len(prefix)
    }


def _held_out(frames: Sequence[tuple[str, int, Listed]], test_fraction: float, seed: int) -> set[str]:
    units: dict[tuple[str, int], list[tuple[int, str]]] = defaultdict(list)
    for group, number, file in frames:
        units[group, number // FRAMES_PER_RUN].append((number, file.path))
    draws = {unit: _draw(seed, *unit) for unit in units}
    test_units = [unit for unit, draw in draws.items() if draw < test_fraction]
    if len(frames) >= _MANY_FRAMES and 0 < len(test_units) < len(units):
        return {path for unit in test_units for _, path in units[unit]}
    num_test = min(max(1, round(test_fraction * len(frames))), len(frames) - 1)
    in_order = [path for unit in sorted(units, key=lambda unit: draws[unit]) for _, path in sorted(units[unit])]
    return set(in_order[:num_test])


def _draw(seed: int, group: str, run: int) -> float:
    """A number in [0, 1) that depends on nothing else."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{group}/{run}".encode()).digest()[:7], "big") / 2**56


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NUM_NAMES} more" if len(names) > _NUM_NAMES else ""
    return ", ".join(map(repr, names[:_NUM_NAMES])) + more
