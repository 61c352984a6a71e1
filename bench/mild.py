"""Test pictures with mild changes -> how many a frozen model still answers, and how many of these are right.

python -m bench.mild --model work/model --source fruits-360-sample.zip
"""

from __future__ import annotations

import argparse
import io
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

Change = Callable[[Image.Image], bytes]
WHITE = (255, 255, 255)


def main() -> None:
    """Print a line for each change."""
    from fruitcnn import frozen, images

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="frozen model")
    parser.add_argument("--source", required=True, help="zip with Test/CLASS/, as Fruits-360")
    given = parser.parse_args()
    model = frozen.load(given.model)
    with zipfile.ZipFile(given.source) as archive:
        names = sorted(name for name in archive.namelist() if "/Test/" in name and name.endswith(".jpg"))
        pictures = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]
    truth = np.array([model.labels.index(PurePosixPath(name).parent.name) for name in names])
    for name, change in changes():
        files = [change(picture) for picture in pictures]
        pixels = [images.decode(file, model.input_px, images.DEFAULT_MAX_PIXELS).pixels for file in files]
        answers = model.answer(np.stack(pixels))
        stands = np.array([cause is None for cause in model.causes(answers)])
        right = answers.probabilities.argmax(axis=1) == truth
        print(f"{name:16s} answered {stands.mean():.2%} of {len(truth):,}, right among them {right[stands].mean():.2%}")


def changes() -> Iterator[tuple[str, Change]]:
    """Name and function of each change."""
    yield "as it is", _png
    yield "JPEG quality 40", partial(_file, format="JPEG", quality=40)
    for factor in (1.2, 0.8):
        yield f"brightness {factor - 1:+.0%}", partial(_brighter, factor=factor)
    for x, y in ((0.05, 0.0), (-0.05, 0.0), (0.0, 0.05), (0.0, -0.05)):
        yield f"shift {x:+.0%} {y:+.0%}", partial(_shifted, x=x, y=y)
    for degrees in (10, -10):
        yield f"rotation {degrees:+d}", partial(_turned, degrees=degrees)


def _brighter(picture: Image.Image, factor: float) -> bytes:
    return _png(Image.fromarray(np.clip(np.asarray(picture, np.float32) * factor, 0, 255).astype(np.uint8)))


def _shifted(picture: Image.Image, x: float, y: float) -> bytes:
    moved = (1, 0, -x * picture.width, 0, 1, -y * picture.height)
    return _png(picture.transform(picture.size, Image.Transform.AFFINE, moved, fillcolor=WHITE))


def _turned(picture: Image.Image, degrees: float) -> bytes:
    return _png(picture.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=WHITE))


def _png(picture: Image.Image) -> bytes:
    return _file(picture, format="PNG", compress_level=0)


def _file(picture: Image.Image, **how: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, **how)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
