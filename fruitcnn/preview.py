"""Training pictures beside what the network sees of them: pixels + augment -> the report's first pictures."""

from __future__ import annotations

import numpy as np

from fruitcnn import storage
from fruitcnn.manifest import load_manifest
from fruitcnn.parquet import read_rows
from fruitcnn.recipe import TrainConfig
from fruitcnn.report import AugmentedPreview
from fruitcnn.sampling import row_keys

_SIZE_PX = (100, 100)


def preview(config: TrainConfig, num_pictures: int = 8) -> AugmentedPreview:
    """Return the first training pictures, as on disk (100x100 px) and augmented as in the run's first epoch.

    Raises UsageError without a data set, StorageError if its first shard cannot be read.
    """
    from fruitcnn import images
    from fruitcnn.runtimes import import_tensorflow

    import_tensorflow()
    from fruitcnn.augment import augment

    dataset = storage.normalise(config.dataset)
    manifest = load_manifest(dataset)
    first = next(read_rows(dataset, manifest.split("train").shards[0].path, ["image.bytes"], [0]))
    files = first["image"].field("bytes").slice(0, num_pictures).to_pylist()
    originals = np.stack([images.decode(data, _SIZE_PX, manifest.max_pixels).pixels for data in files])
    rows = np.arange(len(files))
    changed = augment(originals, row_keys(config.seed, np.zeros_like(rows), rows), config.augmentation)
    return AugmentedPreview(originals, np.asarray(changed).round().astype(np.uint8))
