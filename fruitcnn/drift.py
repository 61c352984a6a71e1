"""How far the labels given lie from those trained on: a first sign that the pictures are others. Used by report.

The training shares come from the data set that model.json names, where it can still be read; only the label column of
its train shards is.
"""

import io
from collections import Counter
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fruitcnn import bundle, storage
from fruitcnn.errors import UsageError
from fruitcnn.manifest import load_manifest


def training_shares(model_uri: str) -> dict[str, float] | None:
    """Label -> its share of the training pictures, 0..1; None where model or data set cannot be read any more."""
    try:
        description, _ = bundle.read_description(model_uri)
        uri = storage.normalise(description.dataset["uri"])
        manifest = load_manifest(uri, description.dataset.get("version"))
        counts: Counter[int] = Counter()
        for shard in manifest.split("train").shards:
            data = storage.read(storage.join(uri, shard.path))
            labels = pq.read_table(io.BytesIO(data), columns=["label"])["label"]
            counts.update({each["values"]: each["counts"] for each in pc.value_counts(labels).to_pylist()})
    except (bundle.FrozenModelError, storage.StorageError, UsageError, ValueError, KeyError, pa.ArrowException):
        return None  # the report does without: a model may be far from where it was trained
    total = counts.total()
    return {name: counts[number] / total for number, name in enumerate(manifest.classes)} if total else None


def distance(counts: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """Share of the pictures, 0..1, that would have to bear another label for the shares of training to come out."""
    total = sum(counts.values())
    if not total:
        return 0.0
    names = counts.keys() | shares.keys()
    return sum(abs(counts.get(name, 0) / total - shares.get(name, 0.0)) for name in names) / 2
