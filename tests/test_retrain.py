"""retrain.py: nights that nobody watches. Cheap stages; the registry, the lease, the gate and the kills are real."""

import datetime
import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fruitcnn import lease, registry, storage, versions
from fruitcnn.errors import UsageError
from fruitcnn.retrain import Outcome
from tests.night import CheapStages, night, world
from tests.tiny_bundle import write_bundle

ROOT = Path(__file__).parent.parent
LEASE_SECONDS = 3.0  # a busy machine stands still for a second now and then
ALL_POINTS = [f"{stage} {end}" for stage in ("take in", "train", "freeze", "compare", "report", "publish")
              for end in ("begins", "ends")]  # fmt: skip
POINTS = ALL_POINTS if "FRUITCNN_ROUNDS" in os.environ else ALL_POINTS[2::4]


class House:
    """A source, a data set and a registry, and nights over them."""

    def __init__(self, folder: Path, registry_uri: str) -> None:
        self.path, self.dataset, self.registry = folder / "world.json", str(folder / "dataset"), registry_uri
        self.called: list[str] = []
        world(self.path)

    def night(
        self, stages: CheapStages | None = None, *, config: dict[str, Any] | None = None, **changes: Any
    ) -> Outcome:
        stages = stages or CheapStages()
        source = world(self.path, **changes)
        outcome = night(source, self.dataset, self.registry, stages, lease_seconds=60, **(config or {}))
        self.called = stages.called
        return outcome

    def begin(self, pause_seconds: float) -> subprocess.Popen[str]:
        """A night in a process of its own."""
        arguments = [str(self.path), self.dataset, self.registry, str(LEASE_SECONDS), str(pause_seconds)]
        command = [sys.executable, "-m", "tests.night", *arguments]
        return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)

    def log(self) -> list[registry.Record]:
        return registry.read_log(self.registry)

    def story(self) -> list[str]:
        return [registry.in_words(record).replace("\N{NO-BREAK SPACE}", " ") for record in self.log()]

    def champion(self) -> int | None:
        return registry.champion(self.log())


@pytest.fixture
def house(tmp_path: Path, any_prefix: str) -> House:
    return House(tmp_path, any_prefix)


@pytest.fixture
def local(tmp_path: Path) -> House:
    return House(tmp_path, str(tmp_path / "registry"))


def wait_for(process: subprocess.Popen[str], wanted: str) -> None:
    assert process.stdout
    for line in process.stdout:
        if line.strip() == wanted:
            return
    raise AssertionError(f"the night ended before {wanted!r}")


def test_a_week_of_nights_is_told_by_the_log_in_words(house: House) -> None:
    assert house.night().outcome == "promoted"
    quiet = house.night()
    assert quiet.outcome == "nothing new"
    assert house.called == ["take in"]
    assert house.night(num_rows=150).outcome == "promoted"
    assert house.night(num_rows=250, num_classes=30, champion=0.98, challenger=0.98).outcome == "promoted"
    assert house.champion() == 3
    poisoned = house.night(num_rows=300, champion=0.98, challenger=1.0, swapped=True)
    assert poisoned.outcome == "rejected"
    assert house.night().outcome == "nothing new"  # not tried again every night
    assert house.champion() == 3
    assert house.night(num_rows=350, champion=0.9, challenger=0.98, swapped=False).outcome == "promoted"
    versions.roll_back(house.registry, None, "calls lemons limes")
    assert house.night().outcome == "nothing new"  # what was rolled back does not come again by itself
    assert house.champion() == 3
    expected = [
        "version 1 became champion: right on 98.00% of 500 held-out pictures",
        "version 2 became champion: right on 98.00% of 500 pictures where the champion is on 90.00%",
        "version 3 became champion: 20 new classes (fruit 10, fruit 11, fruit 12, fruit 13, fruit 14 and 15 more) and "
        "not worse",
        "challenger rejected, version 3 stays: ",
        "version 4 became champion: right on 98.00%",
        "rolled back to version 3: calls lemons limes",
    ]
    story = house.story()
    assert len(story) == len(expected)
    for line, begin in zip(story, expected, strict=True):
        assert line.startswith(begin), line
    assert "fell by more than 10%" in story[3]
    assert "fruit 00 from 98.0% to 50.0% of 50" in story[3]
    assert [record.evidence.get("dataset_version") for record in house.log()] == [1, 2, 3, 4, 5, None]
    assert not [finding for finding in versions.verify(house.registry) if finding.problem]


@pytest.mark.fault
@pytest.mark.timeout(300)
def test_killed_in_any_stage_the_next_night_finishes_and_nothing_is_done_twice(local: House) -> None:
    local.night()
    killed = 0
    for number, point in enumerate(POINTS):
        world(local.path, num_rows=200 + 100 * number)
        process = local.begin(0.4)
        wait_for(process, point)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += 1
        time.sleep(LEASE_SECONDS)
        before = len(local.log())
        was_published = point == "publish ends"
        outcome = local.night()
        assert outcome.outcome == ("nothing new" if was_published else "promoted"), point
        # The record of the take-over, and the decision, unless the killed one had written it.
        assert len(local.log()) == before + (1 if was_published else 2), point
        taken = local.log()[before]
        assert taken.kind == "taken over"
        assert point.rpartition(" ")[0] in taken.reason or point == "take in begins", (point, taken.reason)
    promoted = [record for record in local.log() if record.kind == "promoted"]
    assert [record.evidence["dataset_version"] for record in promoted] == list(range(1, killed + 2))
    assert [record.version for record in promoted] == list(range(1, killed + 2))
    assert not [finding for finding in versions.verify(local.registry) if finding.problem]
    print("\n".join(local.story()))


@pytest.mark.fault
def test_a_second_run_beside_a_running_one_stands_aside(local: House) -> None:
    process = local.begin(0.5)
    wait_for(process, "train begins")
    second = local.night()
    assert second.outcome == "stood aside"
    assert "runs since" in second.words
    assert local.called == []
    said, _ = process.communicate(timeout=60)
    assert "promoted: version 1 became champion" in said
    assert [record.kind for record in local.log()] == ["promoted"]


def test_a_night_frozen_past_its_lease_publishes_nothing_when_it_wakes(local: House) -> None:
    process = local.begin(0.5)
    wait_for(process, "compare begins")
    process.send_signal(signal.SIGSTOP)
    time.sleep(LEASE_SECONDS + 0.3)
    assert local.night().outcome == "promoted"
    before = local.story()
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert local.story() == before


def test_what_a_scheduler_stops_says_so_and_gives_the_lease_back(local: House) -> None:
    stages = CheapStages()

    def stop() -> None:
        raise SystemExit(1)

    stages.meanwhile = stop
    with pytest.raises(SystemExit):
        local.night(stages)
    (last,) = lease.read_attempts(local.registry, 1)
    assert (last.outcome, last.words) == (
        "stopped",
        "stopped from outside at compare; the next night goes on from there",
    )
    assert local.night().outcome == "promoted"


def test_a_decision_by_hand_during_the_night_stops_its_publication(local: House) -> None:
    local.night()
    local.night(num_rows=150)
    stages = CheapStages()
    stages.meanwhile = lambda: versions.roll_back(local.registry, None, "calls lemons limes") and None
    with pytest.raises(registry.OvertakenError, match="calls lemons limes"):
        local.night(stages, num_rows=200)
    assert local.champion() == 1
    (last,) = lease.read_attempts(local.registry, 1)
    assert (last.outcome, "overtaken" in last.words) == ("failed", True)
    assert local.night().outcome == "promoted"  # the next night compares with the champion of then


@pytest.mark.parametrize(
    ("config", "drift", "is_due"),
    [
        ({}, 0.0, False),
        ({"force": True}, 0.0, True),
        ({"max_age_days": 1e-9}, 0.0, True),
        ({"max_age_days": 1.0}, 0.0, False),
        ({"recent": "somewhere"}, 0.3, True),
        ({"recent": "somewhere"}, 0.2, False),
    ],
)
def test_without_new_pictures_a_night_trains_only_for_a_reason(
    local: House, config: dict[str, Any], drift: float, is_due: bool
) -> None:
    local.night()
    stages = CheapStages()
    stages.recent_drift = drift
    outcome = local.night(stages, config=config)
    assert (outcome.outcome != "nothing new") == is_due
    assert ("train" in stages.called) == is_due


def test_too_few_new_pictures_wait_until_there_are_enough(local: House) -> None:
    local.night()
    assert local.night(num_rows=120, config={"min_new_images": 50}).outcome == "nothing new"
    assert local.night(num_rows=150, config={"min_new_images": 50}).outcome == "promoted"
    assert local.log()[-1].evidence["why"] == "50 new training pictures"


def test_each_challenger_has_a_seed_of_its_own_and_a_killed_one_keeps_it(local: House) -> None:
    for number in range(3):
        local.night(num_rows=100 + number)
    runs = [storage.join(local.registry, "work", r.evidence["work"], "run", "result.json") for r in local.log()]
    assert [storage.read_json(run)["seed"] for run in runs] == [0, 1, 2]


def test_gc_clears_the_work_of_decided_challengers_but_the_champions_and_keeps_all_champions(local: House) -> None:
    local.night()
    local.night(num_rows=150)
    works = [f"work/{record.evidence['work']}" for record in local.log()]
    assert versions.collect(local.registry, "old", datetime.timedelta()) == works[:1]
    assert storage.exists(storage.join(local.registry, works[1], "run", "result.json"))
    assert not [finding for finding in versions.verify(local.registry) if finding.problem]
    assert local.night().outcome == "nothing new"


def test_a_champion_of_an_older_schema_stops_the_night_before_it_trains_and_says_what_to_do(
    local: House, tmp_path: Path
) -> None:
    local.night()
    run = storage.join(local.registry, "work", local.log()[0].evidence["work"], "run")
    older = tmp_path / "older"
    write_bundle(older)
    said = json.loads((older / "model.json").read_text()) | {"schema_version": 1, "training": {"run": run}}
    text = json.dumps(said).encode()
    shutil.copytree(older, registry.version_uri(local.registry, 1), dirs_exist_ok=True)
    Path(registry.version_uri(local.registry, 1), "model.json").write_bytes(text)
    entry = versions.read(local.registry, 1).model_copy(
        update={"seal": "0" * 64, "model_hash": hashlib.sha256(text).hexdigest()}
    )
    Path(local.registry, "versions", "000001.json").write_bytes(registry.sealed(entry.model_dump_json(indent=1)))
    with pytest.raises(registry.RegistryError, match="cannot be compared.*got schema version 1") as stopped:
        local.night(num_rows=150)
    assert f"jobs.freeze --run {run} --model" in str(stopped.value)
    assert not [finding for finding in versions.verify(local.registry) if finding.problem]  # old, but not damaged
    versions.promote(local.registry, versions.add(local.registry, write_bundle(tmp_path / "refrozen")), "frozen again")


class Hook(http.server.BaseHTTPRequestHandler):
    """A webhook that keeps what it gets."""

    got: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        self.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[str]:
    Hook.got.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/fruit"
    server.shutdown()


def test_promotion_rejection_and_failure_are_posted_once_each(local: House, hook: str) -> None:
    config = {"notify": hook}
    local.night(config=config)
    local.night(config=config)  # nothing new: no word
    local.night(num_rows=150, challenger=0.8, config=config)
    local.path.write_text("{}")
    with pytest.raises(KeyError):
        local.night(config=config)
    assert [each["event"] for each in Hook.got] == ["promoted", "rejected", "failed"]
    assert Hook.got[0]["champion"] == 1
    assert "not shown to be better" in Hook.got[1]["reason"]
    assert storage.exists(Hook.got[1]["report"])


def test_a_decision_whose_word_was_lost_with_its_process_is_posted_by_the_next_night(local: House, hook: str) -> None:
    local.night()
    assert local.night(config={"notify": hook}).outcome == "nothing new"
    assert [each["event"] for each in Hook.got] == ["promoted"]


def test_a_receiver_that_is_down_does_not_undo_a_promotion(
    local: House, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fruitcnn.notify._PAUSE_SECONDS", 0.01)
    assert local.night(config={"notify": "http://127.0.0.1:9/nobody"}).outcome == "promoted"
    said = capsys.readouterr().err
    assert "no word reached 127.0.0.1:9: " in said
    assert "nobody" not in said, "a webhook's path is a key"


def test_what_is_wrong_with_the_thresholds_is_said_before_anything_starts(local: House, tmp_path: Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text("max_pee: 1")
    with pytest.raises(UsageError, match="max_pee"):
        local.night(config={"thresholds": str(path)})
    assert lease.read_attempts(local.registry, 1) == []
