"""Numbers -> charts as inline SVG that takes its colours and font from the page. Pure; matplotlib loads when drawing.

Drawn narrow, so that the labels keep their size on a phone; colours are CSS variables, so dark mode reaches them.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH_INCHES = 5.6
# matplotlib wants real colours: these stand for the page's variables until the SVG is written.
_COLOURS = {
    "#010101": "var(--ink)",
    "#010102": "var(--muted)",
    "#010103": "var(--rule)",
    "#010104": "var(--first)",
    "#010105": "var(--second)",
    "#010106": "var(--right)",
    "#010107": "var(--wrong)",
    **{f"#01020{number}": f"var(--run-{number})" for number in range(1, 7)},
}
_VARIABLE = {variable.removeprefix("var(--").removesuffix(")"): colour for colour, variable in _COLOURS.items()}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fruitcnn",
    "font.size": 11,
    "axes.edgecolor": _VARIABLE["rule"],
    "axes.labelcolor": _VARIABLE["muted"],
    "text.color": _VARIABLE["ink"],
    "xtick.color": _VARIABLE["rule"],
    "ytick.color": _VARIABLE["rule"],
    "xtick.labelcolor": _VARIABLE["muted"],
    "ytick.labelcolor": _VARIABLE["muted"],
    "grid.color": _VARIABLE["rule"],
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "axes.unicode_minus": True,
}
_GROUP_COLOURS = {"right": "right", "ok": "first", "unsure": "muted", "wrong": "wrong"}
_LOG_FROM_RATIO = 20
# A <style> inside an inline <svg> would reach the whole page, and ids would stand in it twice.
_LEFT_OUT = [
    re.compile(r"<defs>\s*<style.*?</style>\s*</defs>\s*", re.DOTALL),
    re.compile(r'(?<=<g) id="[^"]*"'),
    re.compile(r" font-family: [^;]*;"),
    re.compile(r' transform="rotate\(-0 [^"]*"'),
    re.compile(r"<g/>\s*"),
    re.compile(r"^ +", re.MULTILINE),
]


class Curve(NamedTuple):
    """One line: x (images seen) and y, equally long. A measured curve has its points marked and its line dashed.

    colour: the page's variable for it, run-1 to run-6; without one, training and validation differ by colour.
    """

    x: Sequence[float]
    y: Sequence[float]
    is_measured: bool
    colour: str = ""


def loss_curves(curves: Sequence[Curve]) -> str:
    """SVG of losses over images seen; on a log scale where they fall twentyfold or more."""
    values = [y for curve in curves for y in curve.y if math.isfinite(y)]
    is_log = bool(values) and min(values) > 0 and max(values) > _LOG_FROM_RATIO * min(values)
    return _lines(curves, "log" if is_log else "linear")


def accuracy_curves(curves: Sequence[Curve]) -> str:
    """SVG of accuracies (0..1) over images seen."""
    return _lines(curves, "percent")


def histogram(groups: Mapping[str, npt.NDArray[np.int64]]) -> str:
    """SVG of a panel per group, one above the other, each to its own scale: rows in equal bins of confidence 0..1."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with _style():
        figure = Figure((_WIDTH_INCHES, 0.55 + 1.35 * len(groups)), layout="constrained")
        panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (group, counts) in zip(panels, groups.items(), strict=True):
            edges = np.linspace(0, 1, len(counts) + 1)
            axes.bar(edges[:-1], counts, np.diff(edges) * 0.86, align="edge", color=_VARIABLE[_GROUP_COLOURS[group]])
            axes.set_title(f"{group}: {counts.sum():,}", loc="left", fontsize=11)
            axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        panels[-1].set_xlim(0, 1)
        panels[-1].xaxis.set_major_formatter(_percent())
        panels[-1].set_xlabel("confidence")
        return _svg(figure)


def calibration(points: Sequence[tuple[float, float]]) -> str:
    """SVG of (confidence, share of right answers) of each bin, beside the line where both are equal."""
    with _style():
        figure, axes = _square()
        axes.plot([0, 1], [0, 1], color=_VARIABLE["rule"], linewidth=1.2)
        confidence, right = zip(*points, strict=True) if points else ((), ())
        axes.plot(confidence, right, color=_VARIABLE["second"], marker="o", markersize=5, linewidth=1.6, clip_on=False)
        axes.set_xlabel("confidence")
        axes.set_ylabel("right")
        axes.set_ylim(0, 1)
        return _svg(figure)


def risk_coverage(curves: Sequence[Sequence[tuple[float, float]]], here: tuple[float, float] | None) -> str:
    """SVG of (coverage, risk) lines, the second one dashed, and the point where the model's limits stand."""
    from matplotlib.ticker import FuncFormatter

    with _style():
        figure, axes = _square()
        looks: tuple[dict[str, Any], ...] = (
            {"color": _VARIABLE["first"]},
            {"color": _VARIABLE["second"], "linestyle": (0, (4, 2))},
        )
        for curve, look in zip(curves, looks, strict=False):
            coverage, risk = zip(*curve, strict=True)
            axes.plot(coverage, risk, linewidth=1.6, clip_on=False, **look)
        if here:
            axes.plot(*here, marker="D", markersize=7, color=_VARIABLE["ink"], clip_on=False)
        axes.set_xlabel("answered")
        axes.set_ylabel("of them wrong")
        axes.set_ylim(bottom=0)
        if axes.get_ylim()[1] < 0.05:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.1f} %"))
        return _svg(figure)


def _square() -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure((_WIDTH_INCHES, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(_percent())
    axes.yaxis.set_major_formatter(_percent())
    return figure, axes


def _lines(curves: Sequence[Curve], scale: str) -> str:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with _style():
        figure = Figure((_WIDTH_INCHES, 3.3), layout="constrained")
        axes = figure.subplots()
        for curve in curves:
            look: dict[str, Any] = {"color": _VARIABLE[curve.colour or "first"]}
            if curve.is_measured:
                colour = _VARIABLE[curve.colour or "second"]
                look = {"color": colour, "marker": "o", "markersize": 4, "linestyle": (0, (4, 2))}
            axes.plot(curve.x, curve.y, linewidth=1.6, clip_on=False, **look)
        _scale_y(axes, scale)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel("images seen")
        return _svg(figure)


def _scale_y(axes: "Axes", scale: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if scale == "percent":
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(_percent())
    elif scale == "log":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(10, (1, 3)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_ylim(bottom=0)


def _style() -> AbstractContextManager[None]:
    from matplotlib import rc_context

    return rc_context(dict[Any, Any](_STYLE))


def _percent() -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: f"{100 * value:.0f} %")


def _svg(figure: "Figure") -> str:
    """The figure as an <svg> for the middle of a page: no XML head, no ids of groups, no font, page colours."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    for pattern in _LEFT_OUT:
        svg = pattern.sub("", svg)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, variable)
    return svg
