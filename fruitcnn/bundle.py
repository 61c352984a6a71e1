"""The frozen model as files: what model.json says, its seal, and no byte used before its hash was checked.

    <model>/model.json   written LAST: everything about the model, with sha256 and size of every other file

Between freezing, which writes a bundle, and frozen, which opens one. Only JSON is parsed to decide whether the rest may
be opened. The seal is a hash over model.json itself, so that a changed label or number is noticed like any other byte;
it guards against damage and mistakes, and is no signature. Pure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from fruitcnn import cache, storage
from fruitcnn.duplicates import NearDuplicates
from fruitcnn.errors import UsageError
from fruitcnn.familiar import NO_LIMITS, Limits

SCHEMA_VERSION = 2
DESCRIPTION = "model.json"
GOLDEN = "golden.npz"
STATISTICS = "statistics.npz"
_NO_SEAL = "0" * 64


class FrozenModelError(ValueError):
    """A frozen model that must not be used, or cannot be made; the message names the file or the runtime."""


class SchemaError(FrozenModelError):
    """A frozen model that an older or a newer version of this library wrote; it need not be damaged."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class StoredFile(_Model):
    """One file of the bundle."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    num_bytes: int = Field(ge=0)


class Agreement(_Model):
    """How the answers of one format, in one runtime, compare with those of Keras before the export."""

    format: str
    file: str
    num_images: int
    same_top1: float = Field(description="Share of the images with the same most probable label, 0..1.")
    max_difference: float = Field(description="Largest absolute difference of any probability.")
    accuracy: float | None = Field(None, description="Share of the images with the right label most probable, 0..1.")
    images_per_second: float | None = Field(None, description="In calls of 256 images, where it was frozen.")
    one_image_ms: float | None = Field(None, description="Median time of a call with one image, there, ms.")
    score_difference: float = Field(0.0, description="Largest difference of the score `unlike`, relative to its size.")
    is_bound: bool = Field(True, description="Held to the limits; what decodes by itself, or is quantised, is not.")


class Description(_Model):
    """The contents of model.json."""

    schema_version: int = SCHEMA_VERSION
    seal: str = Field(_NO_SEAL, description="sha256 of this file's bytes with 64 zeros in place of the seal.")
    identity: str = Field(description="sha256 over weights, labels and input: the same again is the same model.")
    architecture: str
    labels: tuple[str, ...]
    input_px: tuple[int, int] = Field(description="Height and width of the input, px.")
    preprocessing: dict[str, Any] = Field(description="How bytes become the uint8 pixels that the model takes.")
    tensors: dict[str, dict[str, Any]] = Field(description="Names of inputs and outputs, by file.")
    limits: Limits = Field(NO_LIMITS, description="From where on an answer is unsure.")
    near_duplicates: NearDuplicates | None = Field(None, description="Test pictures that training nearly saw.")
    metrics: dict[str, Any] = Field(description="What the training run measured.")
    dataset: dict[str, Any] = Field(description="Which pictures: URI, version, sha256 of the manifest, licence.")
    training: dict[str, Any] = Field(description="Run, checkpoint and complete training config.")
    versions: dict[str, str] = Field(description="Of the libraries that made this bundle.")
    agreement: tuple[Agreement, ...]
    compared_split: str = Field(description="The split that the compared and the golden images come from.")
    created_at: AwareDatetime
    files: dict[str, StoredFile] = Field(description="Every other file, by its path in the bundle.")

    @field_validator("files")
    @classmethod
    def _inside_with_golden(cls, files: dict[str, StoredFile]) -> dict[str, StoredFile]:
        if outside := [name for name in files if name.startswith("/") or ".." in name.split("/")]:
            raise ValueError(f"{outside[0]!r} leaves the folder of the model")
        if GOLDEN not in files:
            raise ValueError(f"{GOLDEN} is not among them")
        return files

    def to_bytes(self) -> bytes:
        """The JSON text, sealed."""
        unsealed = self.model_copy(update={"seal": _NO_SEAL}).model_dump_json(indent=1).encode() + b"\n"
        return unsealed.replace(_NO_SEAL.encode(), hashlib.sha256(unsealed).hexdigest().encode(), 1)


@contextmanager
def argument(flag: str, model_uri: str) -> Iterator[None]:
    """Before work starts: what is wrong with the model given as `flag`, or its place, becomes a UsageError."""
    try:
        with storage.argument(flag):
            yield
    except FrozenModelError as error:
        raise UsageError(f"{flag} {model_uri}: {error}") from error


def read_description(model_uri: str) -> tuple[Description, str]:
    """Return what model.json says and the model hash (sha256 of its bytes).

    FrozenModelError if there is none, or if it was changed after it was written; SchemaError if it is of another schema
    version.
    """
    uri = storage.join(storage.normalise(model_uri), DESCRIPTION)
    try:
        text = storage.read(uri)
    except storage.NotFoundError as error:
        raise FrozenModelError(
            f'no {uri}: there is no frozen model; run "python -m jobs.freeze --run RUN --model {model_uri}" first'
        ) from error
    return _parse(text, uri), hashlib.sha256(text).hexdigest()


def check_files(model_uri: str, description: Description, names: Iterable[str]) -> None:
    """Compare files where they lie with their hashes; FrozenModelError names the first that is missing or differs.

    A file too many in a sub-folder is refused as well.
    """
    _check(storage.normalise(model_uri), description.files, list(names))


def check_bytes(model_uri: str) -> str:
    """Compare all files with their hashes, whatever the schema version; returns the model hash. Errors as check_files.

    Of an older version nothing else is known: whether its model.json was changed, the model hash tells.
    """
    try:
        description, model_hash = read_description(model_uri)
        files = description.files
    except SchemaError:
        text = storage.read(storage.join(storage.normalise(model_uri), DESCRIPTION))
        model_hash = hashlib.sha256(text).hexdigest()
        files = {name: StoredFile.model_validate(each) for name, each in json.loads(text).get("files", {}).items()}
    _check(storage.normalise(model_uri), files, list(files))
    return model_hash


def fetch(
    model_uri: str, description: Description, model_hash: str, names: Iterable[str], cache_dir: str | None
) -> Path:
    """Return a local folder in which the files `names` are there and have their hashes.

    A local bundle is used where it lies. One on S3 is copied once to this node, file by file into a folder named after
    the model hash; a copy that does not have its hash is made again. FrozenModelError as check_files.
    """
    model_uri, names = storage.normalise(model_uri), list(names)
    folder = Path(model_uri)
    if storage.is_s3(model_uri):
        folder = cache.folder(cache_dir) / "models" / model_hash
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            for name in names:
                _copy(storage.join(model_uri, name), storage.join(str(folder), name), description.files[name])
    check_files(str(folder), description, names)
    return folder


def stored_files(folder: Path) -> dict[str, StoredFile]:
    """Return hash and size of every file under a local folder, by its path in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): StoredFile(sha256=_digest(str(path)) or "", num_bytes=path.stat().st_size)
        for path in paths
    }


_REMEDY = "restore the file, or freeze the run again into another folder"


def _parse(text: bytes, uri: str) -> Description:
    try:
        said = json.loads(text)
        version = said["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise FrozenModelError(f"{uri}: damaged, not the description of a model ({error}); {_REMEDY}") from error
    if version != SCHEMA_VERSION:
        older = isinstance(version, int) and version < SCHEMA_VERSION
        remedy = "freeze its run again into another folder" if older else "use the fruitcnn that wrote it"
        raise SchemaError(f"{uri}: got schema version {version!r}, wanted {SCHEMA_VERSION}: {remedy}")
    seal = said.get("seal")
    unsealed = text.replace(str(seal).encode(), _NO_SEAL.encode(), 1)
    if hashlib.sha256(unsealed).hexdigest() != seal:
        raise FrozenModelError(f"{uri}: changed after it was written (its seal does not match); {_REMEDY}")
    try:
        return Description.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise FrozenModelError(f"{uri}: {where}: {first['msg']}; {_REMEDY}") from error


def _digest(uri: str) -> str | None:
    """Return the sha256 of a file, None if there is none."""
    try:
        if storage.is_s3(uri):
            return hashlib.sha256(storage.read(uri)).hexdigest()
        with open(uri, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, storage.NotFoundError):
        return None


def _copy(uri: str, path: str, stored: StoredFile) -> None:
    if _digest(path) == stored.sha256:
        return
    try:
        data = storage.read(uri)
    except storage.NotFoundError as error:
        raise FrozenModelError(f"{uri}: missing, although model.json lists it; {_REMEDY}") from error
    if hashlib.sha256(data).hexdigest() != stored.sha256:
        raise FrozenModelError(f"{uri}: its sha256 is not the one in model.json: damaged or changed; {_REMEDY}")
    storage.write(path, data)


def _check(model_uri: str, files: Mapping[str, StoredFile], names: Sequence[str]) -> None:
    for name in names:
        uri = storage.join(model_uri, name)
        found = _digest(uri)
        if found is None:
            raise FrozenModelError(f"{uri}: missing, although model.json lists it; {_REMEDY}")
        if found != files[name].sha256:
            raise FrozenModelError(f"{uri}: its sha256 is not the one in model.json: damaged or changed; {_REMEDY}")
    for folder in sorted({name.split("/")[0] for name in names if "/" in name}):
        _refuse_strangers(model_uri, files, folder)


def _refuse_strangers(model_uri: str, files: Mapping[str, StoredFile], folder: str) -> None:
    """Refuse files in a sub-folder that model.json does not list: TensorFlow would read them all the same."""
    for entry in storage.list_files(storage.join(model_uri, folder)):
        if entry.uri.removeprefix(model_uri).strip("/") not in files:
            raise FrozenModelError(f"{entry.uri}: not one of the files that model.json lists; remove it")
