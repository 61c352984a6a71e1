"""Measures speed side by side on this machine, prints one table and writes bench/results.json.

make bench                                  # all cases but the longest
python bench/run.py train classify          # some of them
FRUITCNN_FRUITS360=fruits.zip make bench    # on real pictures; without it, on drawn ones
"""

import argparse
import datetime
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.cases import BY_DEFAULT, CASES
from bench.chart import draw
from bench.data import SIZES, Data, open_data
from bench.machine import machine, versions
from bench.measure import ROOT, BenchError, Case, Round, play, rate_range, ratio
from bench.table import report

RESULTS = ROOT / "bench" / "results.json"
PICTURE = RESULTS.with_suffix(".png")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is asked for; the exit code is 1 if a case could not be measured."""
    asked = _arguments(argv)
    try:
        return _run(asked, open_data(os.environ.get("FRUITCNN_FRUITS360"), asked.work.absolute(), asked.sizes))
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # What was measured until then is shown and kept.


def _run(asked: argparse.Namespace, data: Data) -> int:
    about = {
        "started_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "source": data.label,
        "num_rounds": asked.rounds,
    }
    measured: dict[str, dict[str, Any]] = {}
    try:
        for name in dict.fromkeys(asked.names or BY_DEFAULT):
            measured[name] = _measure(name, data, asked.rounds)
            RESULTS.write_text(json.dumps(about | {"cases": measured}, indent=1) + "\n")
    finally:
        if measured:
            draw(about, measured, PICTURE)
            print(f"{report(about, measured)}\neverything: {RESULTS}, {PICTURE}")
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("bench/run.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"cases: {', '.join(CASES)}\n(default: {', '.join(BY_DEFAULT)})"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds after the warm-up (default: 3)")
    parser.add_argument(
        "--sizes",
        type=_sizes,
        default=SIZES,
        metavar="N,M",
        help="pictures of classify and archive (default: 15000,45000)",
    )
    parser.add_argument("--work", type=Path, default=ROOT / "work" / "bench", help="where the data is made and kept")
    asked = parser.parse_args(argv)
    if unknown := [name for name in asked.names if name not in CASES]:
        parser.error(f"got {', '.join(unknown)}, wanted {', '.join(CASES)}")
    if asked.rounds < 1:
        parser.error(f"--rounds: got {asked.rounds}, wanted at least 1")
    return asked


def _sizes(text: str) -> tuple[int, int]:
    small, large = (int(number) for number in text.split(","))
    if not 0 < small < large:
        raise argparse.ArgumentTypeError(f"got {text}, wanted two numbers, the smaller first")
    return small, large


def _measure(name: str, data: Data, num_rounds: int) -> dict[str, Any]:
    """Play one case in a scratch folder of its own, and return what results.json keeps of it."""
    data.folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    _say(f"{name}: making what is missing under {data.folder}")
    case = CASES[name](data)
    scratch = Path(tempfile.mkdtemp(prefix="scratch-", dir=data.folder))
    try:
        rounds = play(case, num_rounds, scratch, _say)
    finally:
        shutil.rmtree(scratch)
    return _kept(case, rounds) | {"seconds": round(time.monotonic() - started, 1)}


def _kept(case: Case, rounds: Sequence[Round]) -> dict[str, Any]:
    warm_up, *counted = rounds
    figures = []
    for other in [side.name for side in case.others] or [""]:
        names = (name for each in rounds for side in (case.ours.name, other) for name in each.rates.get(side, {}))
        for name in dict.fromkeys(names):
            here, before = (ratio(which, case.ours.name, other, name) for which in (counted, [warm_up]))
            figures.append({
                "measured": name,
                "other": other,
                "ours_per_second": rate_range(counted, case.ours.name, name),
                "other_per_second": rate_range(counted, other, name),
                "ratio": here._asdict() if here else None,
                "warm_up_ratio": before.median if before else None,
            })  # fmt: skip
    return {
        "what": case.what,
        "ours": case.ours.name,
        # What only ours measured stands once, and not beside every other side.
        "figures": [figure for figure in figures if figure["other_per_second"] or not case.others],
        "warm_up": warm_up._asdict(),
        "rounds": [each._asdict() for each in counted],
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
