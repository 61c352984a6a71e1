"""What pictures show, as far as somebody said so: a data set's labels, a labels.csv, or folders' names. For evaluate.

A labels.csv has the columns `file` and `family` or `label`: a class, the first words of several ("Pear"), alternatives
("Mandarine|Clementine"), or NONE for what is of no class. Pure.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from fruitcnn import fetch, storage
from fruitcnn.errors import UsageError
from fruitcnn.figures import matching
from fruitcnn.inputs import Input, Listing
from fruitcnn.manifest import load_manifest
from fruitcnn.parquet import read_rows

LABELS_FILE = "labels.csv"
STRANGER = "NONE"


class Found(NamedTuple):
    """What is known of the pictures of one evaluation."""

    inputs: list[Input]
    """All but the labels.csv."""
    names: list[str | None]
    """The truth of each, None where nobody said."""
    unused: list[str]
    """Files of the labels.csv that are not among the inputs."""


def find(listing: Listing, inputs: list[Input], labels_uri: str | None, labels: Sequence[str]) -> Found:
    """Return the truth of every input; labels: the model's classes. UsageError for a labels.csv that says no such."""
    if listing.kind == "dataset":
        return Found(inputs, _of_dataset(listing.images, inputs), [])
    text = _labels_file(inputs, labels_uri)
    if text is None:
        folders = [PurePosixPath(item.name).parent.name for item in inputs]
        return Found(
            inputs, [name if name == STRANGER or (name and matching(name, labels)) else None for name in folders], []
        )
    known = parse(text, labels_uri or LABELS_FILE)
    inputs = [item for item in inputs if PurePosixPath(item.name).name != LABELS_FILE]
    files = [next((name for name in _names(item, listing.images) if name in known), None) for item in inputs]
    used = {*files}
    unused = [name for name in known if name not in used]
    return Found(inputs, [None if name is None else known[name] for name in files], unused)


def _names(item: Input, images: str) -> tuple[str, str, str]:
    """How a labels.csv may name an input: whole, from the folder that was given, or without any folder."""
    return item.name, item.name.removeprefix(f"{images}/"), PurePosixPath(item.name).name


def parse(text: bytes, name: str) -> dict[str, str]:
    """Return file -> truth of a labels.csv; UsageError without its columns, or where it says two things of a file."""
    rows = csv.DictReader(io.StringIO(text.decode("utf-8-sig", "replace")))
    columns = rows.fieldnames or []
    truth = next((column for column in ("family", "label") if column in columns), None)
    if "file" not in columns or truth is None:
        raise UsageError(
            f"--labels {name}: got the columns {', '.join(columns) or 'none'}, wanted file and family (or label)"
        )
    found: dict[str, str] = {}
    for row in rows:
        if row["file"] and row[truth]:
            said = row[truth].strip()
            if found.setdefault(row["file"], said) != said:
                raise UsageError(f"--labels {name}: got {found[row['file']]} and {said} for {row['file']}, wanted one")
    return found


def _labels_file(inputs: Iterable[Input], labels_uri: str | None) -> bytes | None:
    if labels_uri:
        with storage.argument("--labels"):
            return storage.read(storage.normalise(labels_uri))
    found = next((item for item in inputs if PurePosixPath(item.name).name == LABELS_FILE), None)
    return next(fetch.fetch([found])).data if found else None


def _of_dataset(dataset: str, inputs: Iterable[Input]) -> list[str | None]:
    manifest = load_manifest(dataset)
    labels = {
        storage.join(dataset, shard.path): [
            manifest.classes[label]
            for batch in read_rows(dataset, shard.path, columns=["label"])
            for label in batch["label"].to_pylist()
        ]
        for shard in manifest.shards()
    }
    return [labels[item.container][item.offset] for item in inputs]
