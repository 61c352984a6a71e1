"""The user's cache folder: what was downloaded or inflated once, for sources.py and archives.py."""

import os
from pathlib import Path


def folder(cache_dir: str | None = None) -> Path:
    """The given folder, else FRUITCNN_CACHE, else ~/.cache/fruitcnn (XDG_CACHE_HOME honoured); not created here."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache_dir or os.environ.get("FRUITCNN_CACHE") or Path(home) / "fruitcnn").expanduser().absolute()
