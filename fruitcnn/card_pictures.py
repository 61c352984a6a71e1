"""The pictures of a model card, as PNG files on white; called by model_card. matplotlib loads when drawing.

card/classes.png      a picture of each class, from the split that was compared
card/curves.png       loss and accuracy over training
card/accuracy.png     accuracy of each class, worst first
card/confusion.png    what was taken for what
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fruitcnn import images

_TILE_PX, _CAPTION_PX = 72, 14
_MAX_CLASSES_SHOWN = 240
_MAX_NAMED = 40
"""With more classes than this, names beside the axes of the confusion would lie over each other."""

_BLUE, _ORANGE, _GREY = "#2563ab", "#d2691e", "#8d867c"


def classes(file: Path, names: Sequence[str], labels: npt.NDArray[np.int64], encoded: Sequence[bytes]) -> None:
    """Draw the first picture of each class with its name. encoded: files that images decodes, as long as labels."""
    seen, first = np.unique(labels, return_index=True)
    shown = list(zip(seen, first, strict=True))[:_MAX_CLASSES_SHOWN]
    columns = min(12, len(shown))
    rows = math.ceil(len(shown) / columns)
    width, height = _TILE_PX + 8, _TILE_PX + _CAPTION_PX + 6
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for place, (label, row) in enumerate(shown):
        left, top = place % columns * width + 4, place // columns * height + 2
        sheet.paste(Image.fromarray(images.decode(encoded[row], (_TILE_PX, _TILE_PX)).pixels), (left, top))
        draw.text((left, top + _TILE_PX + 1), _short(names[label], draw, font), fill="black", font=font)
    sheet.save(file)


def _short(name: str, draw: Any, font: Any) -> str:
    while draw.textlength(name, font) > _TILE_PX + 4:
        name = name.rstrip("…")[:-1] + "…"
    return name


def curves(file: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Draw loss and accuracy of a run's metrics, training and validation, over the pictures seen."""
    figure, both = _figure(9.6, 3.4, 2)
    for axes, value in zip(both, ("loss", "accuracy"), strict=True):
        for kind, colour, mark in (("train", _BLUE, ""), ("validation", _ORANGE, "o")):
            points = [(each["images_seen"], each[value]) for each in metrics if each["kind"] == kind and value in each]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, marker=mark, markersize=4, label=kind)
        axes.set_xlabel("pictures seen")
        axes.locator_params(axis="x", nbins=4)  # more numbers of six digits would run into each other
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_title(value, loc="left")
        if axes.lines:
            axes.legend(frameon=False)
    _save(figure, file)


def accuracy(file: Path, shares: npt.NDArray[np.float64]) -> None:
    """Draw the accuracies of the classes (C,), 0..1, worst first; a class without pictures (no number) is left out."""
    figure, (axes,) = _figure(9.6, 2.8, 1)
    known = np.sort(shares[np.isfinite(shares)])
    axes.bar(np.arange(len(known)), 100 * known, 1.0, color=_BLUE, edgecolor="white", linewidth=0.4)
    axes.set_ylim(0, 100)
    axes.set_xlim(-0.5, max(len(known), 1) - 0.5)
    axes.set_ylabel("right, %")
    axes.set_xlabel("classes, worst first")
    axes.xaxis.get_major_locator().set_params(integer=True)
    _save(figure, file)


def confusion(file: Path, names: Sequence[str], shares: npt.NDArray[np.float64]) -> None:
    """Draw (C, C): of the pictures of a class (row), the share taken for each class (column)."""
    size = 4.6 if len(names) > _MAX_NAMED else 2.2 + 0.16 * len(names)
    figure, (axes,) = _figure(size + 1.2, size, 1)
    # The root makes one mistake in a hundred visible beside the diagonal.
    image = axes.imshow(np.sqrt(np.nan_to_num(shares)), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    if len(names) <= _MAX_NAMED:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
    marks = (0, 0.01, 0.1, 0.5, 1)
    bar = figure.colorbar(image, ticks=[math.sqrt(each) for each in marks], fraction=0.046)
    bar.ax.set_yticklabels([f"{each:.0%}" for each in marks])
    _save(figure, file)


def _figure(width: float, height: float, count: int) -> Any:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "axes.edgecolor": _GREY}):
        figure = Figure((width, height), layout="constrained", dpi=110)
        return figure, figure.subplots(1, count, squeeze=False)[0]


def _save(figure: Any, file: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    file.write_bytes(buffer.getvalue())
