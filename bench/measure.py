"""Two sides in turn, A B A B, each turn made of whole processes; their ratios. Between cases and run."""

import json
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent

Rates = dict[str, float]
"""What a turn of one side measured: name -> images a second; what could not be told is left out. SECONDS: durations."""

SECONDS, PERCENT = ", seconds", ", %"
"""How the names of durations end, of which the smaller is the better one, and of shares."""

# Settings of the person who runs this that would change one side only.
_DROPPED = re.compile(r"PYTHONDONTWRITEBYTECODE|RAY_ADDRESS|FRUITCNN_(?!CACHE$).*")


class BenchError(ValueError):
    """A measurement that cannot be made; the message says why."""


class Side(NamedTuple):
    """One of the ways to do the same work; `turn(folder)` does it once, in a fresh empty folder."""

    name: str
    turn: Callable[[Path], Rates]
    is_slow: bool = False
    """Takes part in one round only, and not in the warm-up: it takes a minute, and the others seconds."""


class Case(NamedTuple):
    """What is compared: ours with each of the others; or what ours takes, where there is nothing like it."""

    name: str
    what: str
    ours: Side
    others: tuple[Side, ...] = ()
    is_slow: bool = False
    """One round without a warm-up: each turn takes half a minute or more."""


class Round(NamedTuple):
    """One turn of each side, by its name; the load is the machine's one-minute average before it."""

    rates: dict[str, Rates]
    load: float


class Ratio(NamedTuple):
    """Ours divided by the other, round by round."""

    median: float
    minimum: float
    maximum: float
    num_rounds: int


class Finished(NamedTuple):
    """A process that ended well; `seconds` from its start to its end, every start-up counted."""

    seconds: float
    stdout: str

    def json(self) -> dict[str, Any]:
        """Return the object that one of bench.sides printed last."""
        found: dict[str, Any] = json.loads(self.stdout.splitlines()[-1])
        return found


def run_process(argv: Sequence[str], keep: Sequence[str] = ()) -> Finished:
    """Run one process to its end; `keep` names variables that it is to see as they are here.

    Raises BenchError with the end of its stderr if it fails.
    """
    kept = {name: os.environ[name] for name in keep}
    started = time.perf_counter()
    done = subprocess.run(argv, cwd=ROOT, env=environment() | kept, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise BenchError(f"exit code {done.returncode} of {' '.join(argv)}\n{done.stderr[-2000:]}")
    return Finished(seconds, done.stdout)


def environment() -> dict[str, str]:
    """The variables that both sides run with."""
    kept = {name: value for name, value in os.environ.items() if not _DROPPED.fullmatch(name)}
    return kept | {"TF_CPP_MIN_LOG_LEVEL": "3"}


def play(case: Case, num_rounds: int, scratch: Path, said: Callable[[str], None]) -> list[Round]:
    """Play `num_rounds` rounds after one that warms up; that one comes first in the list, empty for a slow case."""
    if case.is_slow:
        return [Round({}, os.getloadavg()[0]), _round(case, 1, scratch, said)]
    return [_round(case, number, scratch, said) for number in range(num_rounds + 1)]


def _round(case: Case, number: int, scratch: Path, said: Callable[[str], None]) -> Round:
    load = os.getloadavg()[0]
    playing = [side for side in case.others if number == 1 or not side.is_slow]
    rates = {case.ours.name: _turn(case.ours, case.name, number, scratch, said)}
    return Round(rates | {side.name: _others_turn(side, case.name, number, scratch, said) for side in playing}, load)


def _others_turn(side: Side, case: str, number: int, scratch: Path, said: Callable[[str], None]) -> Rates:
    """A turn of one of the others, which may fail without ending it all: then once more, then nothing."""
    for _ in range(2):
        try:
            return _turn(side, case, number, scratch, said)
        except BenchError as error:
            said(f"{case}: {side.name} failed, left out unless it works the second time: {str(error)[:500]}")
    return {}


def ratio(rounds: Sequence[Round], ours: str, other: str, name: str) -> Ratio | None:
    """Compare one measurement over the rounds in which both sides have it; None if there are none."""
    pairs = [(each.rates.get(ours, {}), each.rates.get(other, {})) for each in rounds]
    values = [here[name] / there[name] for here, there in pairs if name in here and name in there]
    if name.endswith(SECONDS):
        values = [1 / value for value in values]
    return Ratio(statistics.median(values), min(values), max(values), len(values)) if values else None


def rate_range(rounds: Sequence[Round], side: str, name: str) -> dict[str, float] | None:
    """Median, minimum and maximum of one side's rate; None if no turn measured it."""
    values = [each.rates[side][name] for each in rounds if name in each.rates.get(side, {})]
    return {"median": statistics.median(values), "minimum": min(values), "maximum": max(values)} if values else None


def _turn(side: Side, case: str, number: int, scratch: Path, said: Callable[[str], None]) -> Rates:
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        rates = side.turn(Path(folder))
    said(f"{case}: {f'round {number}' if number else 'warm-up'}, {side.name}: " + _worded(rates))
    return rates


def _worded(rates: Rates) -> str:
    return ", ".join(worded(name, rate) for name, rate in rates.items())


def worded(name: str, figure: float) -> str:
    """Name, figure and unit."""
    return f"{plain(name)} {in_units(name, figure)}"


def plain(name: str) -> str:
    """The name of a measurement without its unit."""
    return name.removesuffix(SECONDS).removesuffix(PERCENT)


def in_units(name: str, figure: float) -> str:
    """The figure with the unit that the name tells."""
    unit = " s" if name.endswith(SECONDS) else " %" if name.endswith(PERCENT) else "/s"
    return f"{figure:,.{0 if figure >= 100 else 2}f}{unit}"
