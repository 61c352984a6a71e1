"""Nights with nothing injected, over drawn pictures that keep coming; also a process of its own to kill.

    python -m tests.week SOURCE DATASET REGISTRY THRESHOLDS STAGE WHAT SHARE

The process runs one night and, once it is in the middle of WHAT of STAGE (SHARE of it is done), says so on stdout and
waits to be killed.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fruitcnn import registry, shards, synthetic
from fruitcnn.retrain import Challenge, Comparison, Session, retrain
from fruitcnn.retrain_config import RetrainConfig
from fruitcnn.stages import RayStages

NUM_FRAMES = 48
NUM_BATCHES = 4
IMAGES_SEEN = 60_000


def deliver(source: Path, names: list[str], batches: tuple[int, ...]) -> None:
    """Lay some of the four batches of frames of each class into the source."""
    for name in names:
        for prefix in synthetic.PREFIXES:
            for frame in range(NUM_FRAMES):
                if frame // 4 % NUM_BATCHES in batches:
                    draw(source, name, name, prefix, frame, NUM_FRAMES)


def deliver_swapped(source: Path, first: str, second: str, num_frames: int) -> None:
    """Lay new frames of two classes into the source, each in the other's folder."""
    for name, folder in ((first, second), (second, first)):
        for prefix in synthetic.PREFIXES:
            for frame in range(num_frames):
                draw(source, name, folder, prefix, frame, num_frames, number=1_000 + frame)


def draw(source: Path, name: str, folder: str, prefix: str, frame: int, num_frames: int, number: int = -1) -> None:
    """Write one picture, under the number of another frame where one is given."""
    split = {"train": "Training", "test": "Test"}[synthetic.frame_split(frame)]
    path = source / split / folder / synthetic.frame_name(prefix, frame if number < 0 else number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(synthetic.frame_jpeg(name, prefix, frame, num_frames, 0))


def night_config(source: str, dataset: str, uri: str, thresholds: str) -> RetrainConfig:
    """The same every night."""
    return RetrainConfig(
        source=source, dataset=dataset, registry=uri, thresholds=thresholds, images_seen=IMAGES_SEEN, num_workers=1
    )


class Point:
    """Where the night is to be killed."""

    def __init__(self, stage: str, what: str, share: str) -> None:
        self.stage, self.what, self.share = stage, what, float(share)
        self.now = ""

    def say(self, text: str) -> None:
        print(text, flush=True)
        self.now = text

    def pass_by(self, what: str, share: float) -> None:
        if (self.now, what) == (self.stage, self.what) and share >= self.share:
            print("in the middle", flush=True)
            time.sleep(600)

    @contextmanager
    def progress(self, title: str, total: int | None, unit: str, already: int = 0) -> Iterator[Callable[..., None]]:
        def update(done: int, note: str = "") -> None:
            self.pass_by(title, done / (total or 1))

        yield update

    def before(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def passing(*arguments: Any, **more: Any) -> Any:
            self.pass_by(what, 0.0)
            return function(*arguments, **more)

        return passing


class KilledStages(RayStages):
    """The real stages, which tell champion and challenger apart."""

    def __init__(self, point: Point, session: Session) -> None:
        super().__init__(point.progress, session)
        self.point = point

    def report(self, challenge: Challenge, comparison: Comparison, report_uri: str) -> None:
        self.point.pass_by("report", 0.0)
        super().report(challenge, comparison, report_uri)

    def _classified(self, challenge: Challenge, model: str, who: str, images: str, split: str | None) -> str:
        self.point.pass_by(who, 0.0)
        found = super()._classified(challenge, model, who, images, split)
        self.point.pass_by(who, 1.0)
        return found


def main() -> None:
    from jobs.session import ray_when_needed

    point = Point(*sys.argv[5:])
    shards.publish = point.before("manifest", shards.publish)
    registry.append = point.before("record", registry.append)
    with ray_when_needed() as session:
        outcome = retrain(night_config(*sys.argv[1:5]), KilledStages(point, session), point.say)
    print(json.dumps({"outcome": outcome.outcome, "words": outcome.words}), flush=True)


if __name__ == "__main__":
    main()
