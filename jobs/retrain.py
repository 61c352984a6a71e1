"""A night: take in what is new, train a challenger if it is due, and let it replace the champion only on evidence.

    python -m jobs.retrain --source s3://pictures/fruits --dataset work/dataset --registry work/registry

Start it as often as you like, from any scheduler: if nothing is new it ends within seconds, a second run beside a
running one ends at once, and a run that was killed is finished by the next. The decision is in the registry's log; its
report says why.
"""

import signal
from typing import TYPE_CHECKING, NoReturn

from fruitcnn.retrain_config import RetrainConfig
from jobs.cli import progress, ray_when_needed, run, summary
from jobs.session import be_quiet

if TYPE_CHECKING:
    from fruitcnn.retrain import Outcome


def main(config: RetrainConfig) -> None:
    """Run one night, and say how it ended."""
    be_quiet()  # Ray itself starts when the first stage needs it
    from fruitcnn import registry, tracking
    from fruitcnn.retrain import retrain
    from fruitcnn.stages import RayStages

    # What a scheduler sends when the time limit is over: the attempt ends in words instead of without.
    signal.signal(signal.SIGTERM, _stop)
    with ray_when_needed() as session:
        outcome = retrain(config, RayStages(progress, session), lambda stage: print(f"retrain: {stage}", flush=True))
    if outcome.outcome != "stood aside":
        tracking.follow(registry.locate(config.registry))
    summary(f"retrain: {outcome.outcome}", describe(outcome), _where(config, outcome))


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt("stopped from outside: its time was over")


def describe(outcome: "Outcome") -> dict[str, str]:
    """Name -> value of the closing table."""
    rows = {"outcome": outcome.words}
    if outcome.record:
        rows["record"] = str(outcome.record.number)
        rows["champion"] = f"version {outcome.record.version}" if outcome.record.version else "none yet"
        rows |= {check["name"]: check["words"] for check in outcome.record.evidence["checks"]}
    return rows


def _where(config: RetrainConfig, outcome: "Outcome") -> dict[str, str]:
    where = {"registry": config.registry, "dataset": config.dataset}
    return where | ({"report": outcome.report} if outcome.report else {})


if __name__ == "__main__":
    run(RetrainConfig, main, __doc__)
