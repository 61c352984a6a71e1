"""The books of a data set: what its manifest says, and how a version of it is published. Between shards and pixels.

    <dataset>/manifest.json           the newest version; written last: no manifest, no data set
    <dataset>/manifests/000001.json   every version, never changed once written (put-if-absent)

Classes keep their order of arrival: sorted within the version that brought them, later ones behind. So the label of a
row never changes, however often the data set grows. A shard's own Hugging Face metadata names the classes known when
it was written: of a data set that gained classes, give `datasets` a newest shard first, or features=.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, computed_field

from fruitcnn import storage
from fruitcnn.errors import UsageError

SCHEMA_VERSION = 1


class DatasetError(ValueError):
    """The pictures, or what lies at the data set URI, are not what a data set needs; the message says what to do."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class StoredFile(_Model):
    """A Parquet file of the data set."""

    path: str = Field(description="Relative to the data set, '/'-separated.")
    num_rows: int = Field(ge=0)
    num_bytes: int = Field(ge=0, description="Size of the file.")
    sha256: str = Field(description="Of the whole file, lower-case hexadecimal.")


class Split(_Model):
    """The shards of one split; their order is the order of its rows."""

    shards: tuple[StoredFile, ...] = ()

    @computed_field  # type: ignore[prop-decorator]
    @property
    def num_rows(self) -> int:
        """Rows of all shards together."""
        return sum(shard.num_rows for shard in self.shards)


class Manifest(_Model):
    """One version of a data set."""

    schema_version: Literal[1] = 1
    version: int = Field(ge=1, description="1, and one more each time the data set grew.")
    classes: tuple[str, ...] = Field(description="Class names; a row's label is an index into them. Order of arrival.")
    splits: dict[str, Split]
    num_rejected_by_cause: dict[str, int] = Field(description="Rows of rejected.parquet by cause.")
    source: str = Field(description="URI of the source that the newest files came from.")
    source_fingerprint: str = Field(description="sha256 of the source's listing, as sources.py defines it.")
    listings: tuple[StoredFile, ...] = Field(description="Every source file ever listed, one listing a version.")
    config: dict[str, Any] = Field(description="The complete configuration of the run that wrote this version.")
    library_version: str
    created_at: AwareDatetime

    def to_bytes(self) -> bytes:
        """The JSON text of this manifest, as it is stored."""
        return self.model_dump_json(indent=1).encode() + b"\n"

    @property
    def sha256(self) -> str:
        """Hash of the stored text: names this version of this data set, in a model's papers for one."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def max_pixels(self) -> int:
        """Pixel limit per picture under which the rows were accepted; decoding them needs the same."""
        return int(self.config["max_pixels"])

    def shards(self) -> list[StoredFile]:
        """All shards of all splits."""
        return [shard for split in self.splits.values() for shard in split.shards]

    def split(self, name: str) -> Split:
        """The split `name`; UsageError names the others if there is no row of it."""
        if name not in self.splits:
            wanted = " or ".join(sorted(self.splits))
            raise UsageError(f"split: got {name!r}, wanted {wanted}: the data set made from {self.source} has no other")
        return self.splits[name]


def manifest_uri(dataset_uri: str, version: int | None = None) -> str:
    """Where a version of the manifest lies; None: the newest."""
    if version is None:
        return storage.join(dataset_uri, "manifest.json")
    return storage.join(dataset_uri, "manifests", f"{version:06d}.json")


def load_manifest(dataset_uri: str, version: int | None = None) -> Manifest:
    """The newest manifest of a data set, or the one of `version`. UsageError if absent, torn or of another schema."""
    uri = manifest_uri(dataset_uri, version)
    try:
        text = storage.read(uri)
    except storage.NotFoundError as error:
        raise UsageError(
            f'no {uri}: there is no finished data set; run "python -m jobs.shard --source SOURCE --dataset '
            f'{dataset_uri}" first'
        ) from error
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"{uri} is not a manifest of schema version {SCHEMA_VERSION} ({'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}): write the data set anew, or use the fruitcnn that wrote it"
        ) from error


def publish(dataset_uri: str, manifest: Manifest) -> Manifest:
    """Write `manifest` as its version, then as the newest; returns what is now the newest.

    Of two runs that publish the same version one wins; the other takes over the winner's text if both say the same,
    and raises DatasetError if not.
    """
    uri = manifest_uri(dataset_uri, manifest.version)
    if not storage.put_if_absent(uri, manifest.to_bytes()):
        winner = load_manifest(dataset_uri, manifest.version)
        if _content(winner) != _content(manifest):
            raise DatasetError(f"{uri} was published by another run with other contents: run the same command again")
        manifest = winner
    storage.write(manifest_uri(dataset_uri), manifest.to_bytes())
    return manifest


def _content(manifest: Manifest) -> Mapping[str, Any]:
    return manifest.model_dump(exclude={"created_at", "library_version", "config", "source"})
