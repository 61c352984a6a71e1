"""What the two training sides share: the pixels, and how many of them a measurement takes."""

from pathlib import Path

import numpy as np

BATCH = 64
WARM_UP_STEPS = 64
"""Steps before the clock starts: graph building, memory pools."""

_MEASURED_IMAGES = 40_000


def load(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 (N, H, W, 3) and labels int64 (N,), N cut to whole batches; both in memory."""
    images, labels = np.load(Path(folder) / "images.npy"), np.load(Path(folder) / "labels.npy")
    num_rows = len(labels) // BATCH * BATCH
    return images[:num_rows], labels[:num_rows]


def num_epochs(num_rows: int) -> int:
    """Return the number of passes that a measurement takes."""
    return max(1, round(_MEASURED_IMAGES / num_rows))
