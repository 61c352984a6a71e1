"""What was measured -> the table on the screen. After measure, called by run."""

from collections.abc import Sequence
from typing import Any

from bench.measure import in_units, plain

COLUMNS = ("case", "measured", "against", "ours", "other", "ratio", "min", "max", "warm-up", "rounds")
_NUM_WORDS = 3  # columns of text, left-aligned


def report(about: dict[str, Any], measured: dict[str, dict[str, Any]]) -> str:
    """The table, and what one must know to read it."""
    rows = [COLUMNS, *(row for name, case in measured.items() for row in _rows(name, case))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    loads = [each["load"] for case in measured.values() for each in [case["warm_up"], *case["rounds"]]]
    here = about["machine"]
    return "\n".join(
        [
            "",
            *(line.rstrip() for line in lines),
            "",
            *(f"{name}: {case['ours']}: {case['what']}" for name, case in measured.items()),
            "rates, durations and ratio (above 1: ours is faster): medians of the rounds, A B A B after one of warm-up",
            f"pictures: {about['source']}",
            f"machine: {here['cpu']} ({here['vector_instructions']}), {here['cores']} cores, "
            f"{here['memory_bytes'] / 2**30:.0f} GiB, {here['system']}; load average before a round "
            f"{min(loads):.1f} to {max(loads):.1f}",
            f"versions: {', '.join(f'{name} {version}' for name, version in about['versions'].items())}",
        ]
    )


def _rows(name: str, case: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            name if number == 0 else "",
            plain(figure["measured"]),
            figure["other"],
            _value(figure["measured"], figure["ours_per_second"]),
            _value(figure["measured"], figure["other_per_second"]),
            *(_number(figure["ratio"] and figure["ratio"][key]) for key in ("median", "minimum", "maximum")),
            _number(figure["warm_up_ratio"]),
            str(figure["ratio"]["num_rounds"]) if figure["ratio"] else "-",
        )
        for number, figure in enumerate(case["figures"])
    ]


def _value(name: str, found: dict[str, float] | None) -> str:
    return in_units(name, found["median"]) if found else "-"


def _number(ratio: float | None) -> str:
    return f"{ratio:.2f}" if ratio is not None else "-"


def _line(row: tuple[str, ...], widths: Sequence[int]) -> str:
    words = [text.ljust(width) for text, width in zip(row[:_NUM_WORDS], widths, strict=False)]
    figures = [text.rjust(width) for text, width in zip(row[_NUM_WORDS:], widths[_NUM_WORDS:], strict=True)]
    return "  ".join([*words, *figures])
