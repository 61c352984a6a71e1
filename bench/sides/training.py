"""What the two training sides share: the pixels, and how long a measurement takes."""

from pathlib import Path

import numpy as np

BATCH = 64
PROBE_STEPS = 64
"""Steps of BATCH rows that warm up (graph building, memory pools), and then as many that tell how long to measure."""

INPUT_SECONDS = 3.0
_MEASURED_SECONDS = 6.0


def load(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 (N, H, W, 3) and labels int64 (N,), N cut to whole batches; both in memory."""
    images, labels = np.load(Path(folder) / "images.npy"), np.load(Path(folder) / "labels.npy")
    num_rows = len(labels) // BATCH * BATCH
    return images[:num_rows], labels[:num_rows]


def num_epochs(num_rows: int, probe_seconds: float) -> int:
    """Return the number of whole passes that come nearest to the time a measurement is to take."""
    rows_per_second = PROBE_STEPS * BATCH / probe_seconds
    return max(1, round(_MEASURED_SECONDS * rows_per_second / num_rows))
