"""Numbers -> the words and figures of a report. Pure; the filters of report.html.jinja."""

import json
import math
from typing import Any

_SPACE = "\N{NO-BREAK SPACE}"
_DASH = "\N{EN DASH}"


def count(value: float) -> str:
    """1234567 -> 1,234,567."""
    return f"{value:,.0f}"


def percent(value: float | None, digits: int = 1) -> str:
    """0.98765 -> 98.8 %; what is not all never reads 100 %, what is not nothing never 0 %."""
    if value is None or not math.isfinite(value):
        return _DASH
    step = 10.0**-digits
    shown = round(100 * value, digits)
    if value < 1 and shown >= 100:
        return f"> {100 - step:.{digits}f}{_SPACE}%"
    if value > 0 and shown == 0:
        return f"< {step:.{digits}f}{_SPACE}%"
    return f"{shown:.{digits}f}{_SPACE}%"


def share(part: float, whole: float, digits: int = 1) -> str:
    """Part of a whole in per cent; a dash of nothing."""
    return percent(part / whole, digits) if whole else _DASH


def seconds(value: float) -> str:
    """4.21 -> 4.2 s; 83 -> 1 min 23 s; 7300 -> 2 h 2 min."""
    if value < 60:
        return f"{value:.1f}{_SPACE}s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{_SPACE}h {minutes}{_SPACE}min" if hours else f"{minutes}{_SPACE}min {rest}{_SPACE}s"


def figure(value: Any) -> str:
    """A number of any size in about three digits; None as a dash."""
    if value is None:
        return _DASH
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return count(value) if isinstance(value, int) or abs(value) >= 100 else f"{value:.3g}"


def setting(value: Any) -> str:
    """A value of a configuration as it would be written in JSON; text as it is."""
    return value if isinstance(value, str) else json.dumps(_short(value), ensure_ascii=False)


def _short(value: Any) -> Any:
    """Six digits of every number with a fraction: more are noise to a reader."""
    if isinstance(value, dict):
        return {name: _short(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_short(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def plural(num: int, noun: str) -> str:
    """1 picture, 1,200 pictures."""
    return f"{count(num)}{_SPACE}{noun}" + ("" if num == 1 else "es" if noun.endswith("s") else "s")


FILTERS = {
    "count": count,
    "percent": percent,
    "share": share,
    "seconds": seconds,
    "figure": figure,
    "setting": setting,
    "plural": plural,
}
