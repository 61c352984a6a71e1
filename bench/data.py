"""What the cases work on, made once under work/bench: pictures, a data set, decoded pixels, a frozen model."""

import hashlib
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.measure import BenchError, run_process

DRAWN = "synthetic:24x240"
"""Where FRUITCNN_FRUITS360 is not set."""

SIZES = (15_000, 45_000)
"""Both with a crew, whose start would count as that of pictures otherwise."""
_INPUT_PX = 32
_TRAINED_IMAGES = 6_400
_FILES_IN_FOLDER = 1_000


class Data(NamedTuple):
    """Where the data lies; every part is made when it is first asked for."""

    source: str
    folder: Path
    sizes: tuple[int, int] = SIZES
    """Numbers of pictures of a whole job, small and large."""

    @property
    def label(self) -> str:
        """The source, without the path to it."""
        return Path(self.source).name

    def unpacked(self) -> Path:
        """The source as a folder with Training/<Class>/ and Test/<Class>/."""
        return _made(self.folder / "unpacked", self._unpack)

    def shard_source(self) -> str:
        """What jobs.shard reads: the source; drawn pictures as a folder, so that no drawing is measured."""
        return str(self.unpacked()) if self.source.startswith("synthetic") else self.source

    def pictures(self, num_images: int) -> Path:
        """A folder of `num_images` JPEGs: those of the source, over and over, and no two of the same bytes."""
        return _made(self.folder / f"distinct-{num_images}", lambda folder: self._number(folder, num_images))

    def repeated(self, num_images: int, num_files: int) -> Path:
        """A folder of `num_images` JPEGs: `num_files` of the source, over and over, as hard links."""
        name = f"repeated-{num_images}-of-{num_files}"
        return _made(self.folder / name, lambda folder: self._link(folder, num_images, num_files))

    def num_files(self) -> int:
        """Number of pictures of the source."""
        return len(self._files())

    def zipped(self, num_images: int) -> Path:
        """The distinct pictures as one zip, stored as they are."""
        made = _made(self.folder / f"zipped-distinct-{num_images}", lambda folder: self._zip(folder, num_images))
        return made / "pictures.zip"

    def photographs(self, num_images: int) -> Path:
        """A folder of drawn JPEGs of 3000x2000 px."""
        return _made(self.folder / f"photographs-{num_images}", lambda folder: _draw_photographs(folder, num_images))

    def listing(self, num_names: int) -> Path:
        """A .txt of names of pictures that are not there: enough to plan."""
        made = _made(self.folder / f"listing-{num_names}", lambda folder: _list(folder, num_names))
        return made / "names.txt"

    def dataset(self) -> Path:
        """The data set that jobs.shard writes."""
        return _made(self.folder / "dataset", lambda folder: _job("shard", source=self.shard_source(), dataset=folder))

    def model(self) -> Path:
        """A frozen model, trained for a moment only: it costs as much to run as a good one."""
        return _made(self.folder / "model", self._freeze)

    def run(self) -> Path:
        """The training run behind the model."""
        self.model()
        return self.folder / "run"

    def training_pixels(self, size_px: int = _INPUT_PX, split: str = "train") -> Path:
        """A folder of images.npy, uint8 (N, size_px, size_px, 3), and labels.npy, int64 (N,): a split, decoded."""
        name = f"pixels-{size_px}" if split == "train" else f"pixels-{size_px}-{split}"
        return _made(self.folder / name, lambda folder: self._decode(folder, size_px, split))

    def _unpack(self, folder: Path) -> None:
        from fruitcnn.sources import open_source

        source = open_source(self.source)
        for record in source.records:
            split = {"train": "Training", "test": "Test"}[record.split]
            path = folder / split / record.label / record.path.rpartition("/")[2]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source.read(record))

    def _files(self) -> list[Path]:
        return sorted(path for path in self.unpacked().rglob("*") if path.is_file())

    def _link(self, folder: Path, num_images: int, num_files: int) -> None:
        for file, path in _placed(_some(self._files(), num_files), folder, num_images):
            os.link(file, path)

    def _number(self, folder: Path, num_images: int) -> None:
        files = _some(self._files(), num_images)
        for number, (file, path) in enumerate(_placed(files, folder, num_images)):
            path.write_bytes(_with_comment(file.read_bytes(), f"{number:08d}".encode()))

    def _zip(self, folder: Path, num_images: int) -> None:
        pictures = self.pictures(num_images)
        with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
            for path in sorted(pictures.rglob("*.*")):
                archive.write(path, path.relative_to(pictures))

    def _freeze(self, folder: Path) -> None:
        run = folder.with_name("run")
        shutil.rmtree(run, ignore_errors=True)
        _job("train", dataset=self.dataset(), run=run, images_seen=_TRAINED_IMAGES, num_evaluations=1)
        _job("freeze", run=run, model=folder)

    def _decode(self, folder: Path, size_px: int, split: str) -> None:
        from fruitcnn.pixels import load_pixels

        found = load_pixels(str(self.dataset()), split, (size_px, size_px), cache_dir=str(self.folder / "cache"))
        np.save(folder / "images.npy", found.pixels)
        np.save(folder / "labels.npy", found.labels)


def open_data(source: str | None, work: Path, sizes: tuple[int, int] = SIZES) -> Data:
    """The data of the source that FRUITCNN_FRUITS360 names, or of drawn fruit where `source` is empty.

    Raises BenchError if there is no such file.
    """
    if source and not Path(source).is_file():
        raise BenchError(f"FRUITCNN_FRUITS360: got {source}, wanted a zip of pictures")
    chosen = str(Path(source).expanduser().resolve()) if source else DRAWN
    said = f"{chosen} {Path(chosen).stat().st_size if source else ''}"
    return Data(chosen, work / hashlib.sha256(said.encode()).hexdigest()[:12], sizes)


def _some(files: Sequence[Path], num: int) -> Sequence[Path]:
    """At most so many of the files, of every class: neighbours show the same fruit."""
    return files[:: max(1, len(files) // num)][:num]


def _placed(files: Sequence[Path], folder: Path, num_images: int) -> Iterator[tuple[Path, Path]]:
    """Yield (file, place below folder), the files over and over."""
    for number, file in enumerate(islice(cycle(files), num_images)):
        path = folder / f"{number // _FILES_IN_FOLDER:04d}" / f"{number:08d}{file.suffix}"
        path.parent.mkdir(exist_ok=True)
        yield file, path


def _with_comment(jpeg: bytes, text: bytes) -> bytes:
    """The same picture with other bytes: whoever remembers files by their bytes has never seen it."""
    if jpeg[:2] != b"\xff\xd8":
        raise BenchError(f"pictures: got a file that starts with {jpeg[:4]!r}, wanted JPEGs only")
    # Behind the header of JFIF, which comes first where there is one.
    start = 4 + int.from_bytes(jpeg[4:6]) if jpeg[2:4] == b"\xff\xe0" else 2
    return jpeg[:start] + b"\xff\xfe" + (2 + len(text)).to_bytes(2) + text + jpeg[start:]


def _draw_photographs(folder: Path, num_images: int) -> None:
    from PIL import Image

    draw = np.random.default_rng(0)
    for number in range(num_images):
        coarse = Image.fromarray(draw.integers(0, 256, (40, 60, 3), dtype=np.uint8))
        coarse.resize((3000, 2000), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.jpg", quality=88)


def _list(folder: Path, num_names: int) -> None:
    with (folder / "names.txt").open("w") as file:
        # Far apart in the alphabet, so that sorting has work to do.
        file.writelines(f"/archive/{number * 7919 % num_names:09d}/picture.jpg\n" for number in range(num_names))


def _made(folder: Path, make: Callable[[Path], None]) -> Path:
    """Make `folder` unless it is whole; one that was cut off is made again."""
    done = folder.with_name(f"{folder.name}.done")
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(folder)
        done.touch()
    return folder


def _job(name: str, **arguments: object) -> None:
    flags = [text for key, value in arguments.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    run_process([sys.executable, "-m", f"jobs.{name}", *flags])
