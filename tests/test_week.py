"""A week of nights with nothing injected: drawn pictures, real training, real decisions, real kills."""

import datetime
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fruitcnn import bundle, lease, registry, storage, synthetic, versions
from fruitcnn.retrain import Outcome, retrain
from fruitcnn.stages import RayStages
from jobs.cli import progress
from jobs.session import ray_session as session
from tests.week import deliver, deliver_swapped, night_config

ROOT = Path(__file__).parent.parent
# Few held-out pictures: what may still be lost is not known better.
THRESHOLDS = "max_loss: 0.05\nmin_first_accuracy: 0.3\nmin_new_class_accuracy: 0.3\n"

# In the middle of: stage, what of it, share of that.
KILLS = (
    ("take in", "shard", 0.1),
    ("take in", "manifest", 0.0),
    ("train", "train", 0.0),
    ("train", "train", 0.3),
    ("train", "train", 0.7),
    ("freeze", "freeze", 0.3),
    ("freeze", "freeze", 0.6),
    ("compare", "classify", 1.0),
    ("compare", "champion", 0.0),
    ("report", "report", 0.0),
    ("publish", "record", 0.0),
)


class Week:
    """A source that pictures are delivered to, and the nights over it."""

    def __init__(self, folder: Path) -> None:
        self.source, self.dataset, self.registry = (str(folder / name) for name in ("source", "dataset", "registry"))
        self.thresholds = folder / "gate.yaml"
        self.stages: list[str] = []

    @property
    def arguments(self) -> tuple[str, str, str, str]:
        return self.source, self.dataset, self.registry, str(self.thresholds)

    def night(self, during: str = "", then: "Week | None" = None) -> Outcome:
        """One night in this process; when it comes to stage `during`, the night of `then` begins beside it."""
        self.stages = []
        self.beside: Outcome | None = None

        def say(stage: str) -> None:
            self.stages.append(stage)
            if then and stage == during:
                self.beside = then.night()

        return retrain(night_config(*self.arguments), RayStages(progress, session), say)

    def killed(self, stage: str, what: str, share: float) -> None:
        """One night in a process of its own, killed in the middle of something."""
        command = [sys.executable, "-m", "tests.week", *self.arguments, stage, what, str(share)]
        process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)
        assert process.stdout
        said = []
        for line in process.stdout:
            said.append(line.strip())
            if said[-1] == "in the middle":
                break
        left = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert said[-1] == "in the middle", (stage, what, share, said)
        psutil.wait_procs(left, timeout=30)
        for each in left:
            if each.is_running():
                each.kill()
        self.let_the_lease_end()

    def let_the_lease_end(self) -> None:
        """The next night is a day later; here its attempt's time is over at once."""
        (attempt,) = lease.read_attempts(self.registry, 1)
        assert not attempt.outcome
        over = attempt.model_copy(update={"expires_at": datetime.datetime.now(datetime.UTC)})
        path = Path(self.registry, "attempts", f"{attempt.attempt:06d}.json")
        path.write_text(over.model_dump_json(indent=1))

    def tried_out(self) -> tuple[str, str, str]:
        """What a night that nothing disturbs would come to: its outcome, its reason, its champion; all is put back."""
        places = [Path(each) for each in (self.dataset, self.registry)]
        for place in places:
            shutil.copytree(place, place.with_suffix(".before"))
        found = self.night().outcome, self.log()[-1].reason, self.identity()
        for place in places:
            shutil.rmtree(place)
            place.with_suffix(".before").rename(place)
        return found

    def log(self) -> list[registry.Record]:
        return registry.read_log(self.registry)

    def identity(self) -> str:
        """What the champion says of itself: equal for equal answers."""
        return bundle.read_description(registry.resolve(f"registry:{self.registry}@champion"))[0].identity


def rolled_back(uri: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.registry", "rollback", "--registry", uri, "--reason", "calls pears plums"]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)


@pytest.mark.long
@pytest.mark.fault
@pytest.mark.flow
@pytest.mark.ray
@pytest.mark.timeout(3600)
def test_a_week_of_real_nights_is_told_by_the_log_in_words(ray_session: None, tmp_path: Path) -> None:
    week = Week(tmp_path / "house")
    source = Path(week.source)
    week.thresholds.parent.mkdir()
    week.thresholds.write_text(THRESHOLDS)
    old = synthetic.class_names(10)
    new = sorted(set(synthetic.class_names(30)) - set(old))

    # Monday: the first pictures.
    deliver(source, old, (0,))
    assert week.night().outcome == "promoted"

    # Tuesday: nothing new. Ends in seconds, trains nothing.
    began = time.monotonic()
    assert week.night().outcome == "nothing new"
    assert week.stages == ["take in"]
    assert time.monotonic() - began < 10

    # Wednesday: three times as many frames.
    deliver(source, old, (1, 2))
    assert week.night().outcome == "promoted"

    # Thursday: 20 new classes; and the scheduler starts a second run beside the first.
    deliver(source, new, (0, 1, 2))
    assert week.night("train", Week(tmp_path / "house")).outcome == "promoted"
    assert week.beside
    assert week.beside.outcome == "stood aside"
    assert len(bundle.read_description(registry.resolve(f"registry:{week.registry}@champion"))[0].labels) == 30

    # Friday: more frames, and a machine that dies eleven times; then it goes on, as if nothing had been.
    deliver(source, old + new, (3,))
    undisturbed = week.tried_out()
    for kill in KILLS:
        week.killed(*kill)
    assert (week.night().outcome, week.log()[-1].reason, week.identity()) == undisturbed

    # Saturday: a batch with swapped labels is rejected, with the reason, and not tried again.
    before = registry.champion(week.log())
    deliver_swapped(source, old[0], old[1], 100)
    poisoned = week.night()
    assert poisoned.outcome == "rejected"
    assert "fell by more than 10%" in poisoned.words
    assert old[0] in poisoned.words
    assert week.night().outcome == "nothing new"

    # Sunday: a person promotes it all the same, and takes it back with one command; it does not come again by itself.
    work = week.log()[-1].evidence["work"]
    bad = versions.add(week.registry, storage.join(week.registry, "work", work, "model"))
    versions.promote(week.registry, bad, "the shop wants the new labels")
    done = rolled_back(week.registry)
    assert done.returncode == 0, done.stderr
    assert week.night().outcome == "nothing new"
    assert registry.champion(week.log()) == before

    _require_a_whole_story(week)


def _require_a_whole_story(week: Week) -> None:
    story = [registry.in_words(record).replace("\N{NO-BREAK SPACE}", " ") for record in week.log()]
    print("\n".join(f"{number:3}  {line}" for number, line in enumerate(story, 1)))
    kinds = [record.kind for record in week.log()]
    assert kinds[:3] == ["promoted"] * 3
    assert kinds[3:14] == ["taken over"] * len(KILLS)
    assert kinds[14] in ("promoted", "rejected")
    assert kinds[15:] == ["rejected", "promoted", "rolled back"]
    for (stage, *_), line in zip(KILLS, story[3:14], strict=True):
        assert f"stopped without a word at {stage}" in line
    assert "20 new classes" in story[2]
    assert story[-1].endswith("calls pears plums")
    assert not [finding for finding in versions.verify(week.registry) if finding.problem]
