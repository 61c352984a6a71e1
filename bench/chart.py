"""results.json -> bench/results.png: every ratio with its range, on a logarithmic axis. Called by run."""

from pathlib import Path
from typing import Any

from bench.measure import plain

_BAR_INCHES = 0.34


def draw(about: dict[str, Any], measured: dict[str, dict[str, Any]], file: Path) -> None:
    """Write a PNG with one bar per ratio (ours / other, median), a whisker from the smallest round to the largest."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [
        (f"{name}: {plain(figure['measured'])}\nagainst {figure['other']}", figure["ratio"])
        for name, case in measured.items()
        for figure in case["figures"]
        if figure["ratio"]
    ][::-1]
    if not rows:
        return
    figure = Figure(figsize=(10, 1.6 + 2 * _BAR_INCHES * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    medians = [ratio["median"] for _, ratio in rows]
    axes.barh(range(len(rows)), [median - 1 for median in medians], left=1, height=0.6, color=[
        "#2f7d4f" if median >= 1 else "#b3541e" for median in medians
    ])  # fmt: skip
    ranges = [[ratio["median"] - ratio["minimum"], ratio["maximum"] - ratio["median"]] for _, ratio in rows]
    lower, upper = zip(*ranges, strict=True)
    axes.errorbar(medians, range(len(rows)), xerr=[lower, upper], fmt="none", ecolor="black", capsize=3, linewidth=1)
    for row, median in enumerate(medians):
        axes.annotate(
            f"{median:.2f}", (max(rows[row][1]["maximum"], 1), row), (6, 0), textcoords="offset points", va="center"
        )
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=8)
    axes.margins(x=0.15)
    here = about["machine"]
    axes.set_xlabel(
        f"ours / other; median of {about['num_rounds']} rounds, whisker: all rounds; right of 1: ours is faster\n"
        f"{here['cpu']}, {here['cores']} cores; {about['source']}; {about['started_at']}",
        fontsize=8,
    )
    figure.savefig(file, dpi=110)
