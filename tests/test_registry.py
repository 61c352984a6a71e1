"""registry.py and versions.py: one champion at a time, a log without gaps, versions that never change."""

import datetime
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import BaseModel

from fruitcnn import registry, storage, versions
from fruitcnn.bundle import FrozenModelError
from fruitcnn.errors import UsageError
from fruitcnn.registry import OvertakenError, Record
from jobs.cli import run
from tests.tiny_bundle import write_bundle

NUM_PROMOTERS = int(os.environ.get("FRUITCNN_TEST_PROMOTERS", "50"))
ROOT = Path(__file__).parent.parent


def with_versions(tmp_path: Path, uri: str, num: int) -> str:
    for number in range(1, num + 1):
        model = write_bundle(tmp_path / f"model-{number}", sharpness=0.01 * number)
        assert versions.add(uri, model) == number
    return uri


@pytest.fixture
def three(tmp_path: Path, any_prefix: str) -> str:
    """A registry with versions 1, 2 and 3 and no champion yet, on a folder and on S3."""
    return with_versions(tmp_path, any_prefix, 3)


def test_the_champion_is_what_the_last_record_names(three: str) -> None:
    assert registry.champion(registry.read_log(three)) is None
    for version in (1, 2, 3):
        versions.promote(three, version, f"number {version} is better")
        assert registry.champion(registry.read_log(three)) == version
        assert registry.resolve(f"registry:{three}@champion") == registry.version_uri(three, version)
    assert [record.number for record in registry.read_log(three)] == [1, 2, 3]
    assert registry.in_words(registry.read_log(three)[1]) == "version 2 became champion: number 2 is better"


def test_a_roll_back_goes_one_champion_back_each_time_and_the_log_keeps_everything(three: str) -> None:
    for version in (1, 2, 3):
        versions.promote(three, version, "better")
    assert versions.roll_back(three, None, "calls lemons limes").version == 2
    assert versions.roll_back(three, None, "that one too").version == 1
    with pytest.raises(UsageError, match="no champion before the present one"):
        versions.roll_back(three, None, "and on")
    versions.promote(three, 3, "it was the camera")
    assert versions.roll_back(three, None, "no, it was not").version == 1
    kinds = [record.kind for record in registry.read_log(three)]
    assert kinds == ["promoted", "promoted", "promoted", "rolled back", "rolled back", "promoted", "rolled back"]


def test_what_was_champion_when_is_answered_for_every_day_and_moment(tmp_path: Path) -> None:
    uri = with_versions(tmp_path, str(tmp_path / "registry"), 2)
    days = [datetime.datetime(2026, 11, day, 3, 0, tzinfo=datetime.UTC) for day in (20, 22)]
    for number, day in enumerate(days, 1):
        record = Record(number=number, kind="promoted", version=number, reason="better", by="test", created_at=day)
        storage.write(registry.record_uri(uri, number), record.to_bytes())
    expected = {"2026-11-20": 1, "2026-11-21": 1, "2026-11-22": 2, "2026-11-22T02:59+00:00": 1, "2026-11-24": 2}
    for selector, version in expected.items():
        assert registry.resolve(f"registry:{uri}@{selector}") == registry.version_uri(uri, version), selector
    with pytest.raises(UsageError, match="no champion at 2026-11-19"):
        registry.resolve(f"registry:{uri}@2026-11-19")


def test_a_name_is_looked_up_under_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = with_versions(tmp_path, str(tmp_path / "all" / "fruits"), 1)
    monkeypatch.setenv("FRUITCNN_REGISTRIES", str(tmp_path / "all"))
    assert registry.resolve("registry:fruits@1") == registry.version_uri(uri, 1)
    assert registry.resolve("work/model") == "work/model"


@pytest.mark.parametrize("model", ["registry:fruits", "registry:@7", "registry:fruits@", "registry:fruits@yesterday"])
def test_what_means_no_model_is_refused_with_what_was_wanted(model: str) -> None:
    with pytest.raises(UsageError, match="@champion, @7"):
        registry.resolve(model)


def test_a_version_that_is_not_there_is_refused(three: str) -> None:
    for model in (f"registry:{three}@9", f"registry:{three}@champion"):
        with pytest.raises(UsageError, match=r"registry"):
            registry.resolve(model)


def test_the_same_model_keeps_its_number_and_a_version_never_changes(three: str, tmp_path: Path) -> None:
    assert versions.add(three, str(tmp_path / "model-2")) == 2
    before = {e.uri: storage.read(e.uri) for e in storage.list_files(registry.version_uri(three, 2))}
    versions.add(three, str(tmp_path / "model-2"))
    assert before == {e.uri: storage.read(e.uri) for e in storage.list_files(registry.version_uri(three, 2))}


def test_a_copy_that_was_cut_off_is_finished_under_the_same_number(three: str, tmp_path: Path) -> None:
    storage.delete(storage.join(registry.version_uri(three, 3), "model.json"))
    storage.delete(storage.join(registry.version_uri(three, 3), "model.onnx"))
    assert versions.add(three, str(tmp_path / "model-3")) == 3
    assert not [finding for finding in versions.verify(three) if finding.problem]


def test_who_decides_on_an_old_log_is_told_what_happened_and_writes_nothing(three: str) -> None:
    versions.promote(three, 1, "the first one")
    with pytest.raises(OvertakenError, match=r"record 1 was written meanwhile .*version 1 became champion"):
        registry.append(three, "promoted", 2, "better", after=0)
    assert registry.champion(registry.read_log(three)) == 1


def test_promoting_the_champion_or_a_damaged_version_is_refused(three: str) -> None:
    versions.promote(three, 1, "the first one")
    with pytest.raises(UsageError, match="is the champion already, since record 1"):
        versions.promote(three, 1, "again")
    uri = storage.join(registry.version_uri(three, 2), "model.onnx")
    storage.write(uri, storage.read(uri)[:-1] + b"x")
    with pytest.raises(FrozenModelError, match="model.onnx"):
        versions.promote(three, 2, "better")


def promote_until_written(uri: str, version: int, seed: int) -> int:
    """What a promoter does that is overtaken and still wants it; returns the number of its record."""
    pause = random.Random(seed)
    while True:
        try:
            after = registry.newest_number(uri)
            return registry.append(uri, "promoted", version, f"promoter {seed}", after=after).number
        except OvertakenError:
            time.sleep(pause.uniform(0, 0.2))


@pytest.mark.fault
def test_of_fifty_concurrent_promoters_each_writes_one_record_without_gap_or_double(any_prefix: str) -> None:
    with ThreadPoolExecutor(NUM_PROMOTERS) as pool:
        numbers = list(pool.map(lambda i: promote_until_written(any_prefix, i, i), range(1, NUM_PROMOTERS + 1)))
    assert sorted(numbers) == list(range(1, NUM_PROMOTERS + 1))
    log = registry.read_log(any_prefix)
    assert [record.number for record in log] == list(range(1, NUM_PROMOTERS + 1))
    # Who was told that it wrote record n wrote it: one winner a number.
    assert [record.version for record in log] == [1 + numbers.index(n) for n in range(1, NUM_PROMOTERS + 1)]
    assert len(list(storage.list_files(storage.join(any_prefix, "promotions")))) == NUM_PROMOTERS


def test_verify_finds_one_flipped_byte_wherever_it_is(three: str) -> None:
    versions.promote(three, 1, "the first one")
    assert not [finding for finding in versions.verify(three) if finding.problem]
    files = [e.uri for place in ("versions", "promotions") for e in storage.list_files(storage.join(three, place))]
    assert len(files) > 10
    draw = random.Random(0)
    for uri in files:
        data = storage.read(uri)
        at = draw.randrange(len(data))
        storage.write(uri, data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :])
        problems = [finding for finding in versions.verify(three) if finding.problem]
        assert len(problems) == 1, (uri, at, problems)
        storage.write(uri, data)


def test_verify_finds_what_is_missing(three: str) -> None:
    versions.promote(three, 1, "the first one")
    versions.promote(three, 2, "better")
    storage.delete(registry.record_uri(three, 1))
    storage.delete_prefix(registry.version_uri(three, 2))
    problems = {finding.what: finding.problem for finding in versions.verify(three) if finding.problem}
    assert problems.keys() == {"record 1", "version 2"}
    assert "its last file is missing, as when a promotion was stopped: promote " in str(problems["version 2"])


def test_gc_removes_what_was_never_champion_and_nothing_else(three: str) -> None:
    versions.promote(three, 1, "the first one")
    versions.promote(three, 3, "better")
    versions.roll_back(three, None, "worse")
    assert versions.collect(three, "old") == []  # all are young
    assert versions.collect(three, "old", datetime.timedelta()) == ["version 2"]
    assert not [finding for finding in versions.verify(three) if finding.problem]
    assert registry.in_words(registry.read_log(three)[-1]) == "removed versions 2: old"
    assert registry.champion(registry.read_log(three)) == 1
    with pytest.raises(UsageError, match="was removed by gc"):
        registry.resolve(f"registry:{three}@2")
    assert versions.roll_back(three, 3, "was right after all").version == 3
    assert versions.collect(three, "old", datetime.timedelta()) == []


def test_a_removed_number_is_never_used_again(three: str, tmp_path: Path) -> None:
    versions.promote(three, 1, "the first one")
    versions.collect(three, "old", datetime.timedelta())
    assert versions.add(three, write_bundle(tmp_path / "new", sharpness=0.5)) == 4
    assert versions.add(three, str(tmp_path / "model-3")) == 5


def test_a_promotion_during_gc_and_gc_itself_never_both_happen(three: str, monkeypatch: pytest.MonkeyPatch) -> None:
    versions.promote(three, 1, "the first one")
    read_all = versions.read_all

    def and_then_somebody_promotes(uri: str) -> list[versions.Version]:
        found = read_all(uri)
        monkeypatch.setattr(versions, "read_all", read_all)
        versions.promote(uri, 2, "in that very moment")
        return found

    monkeypatch.setattr(versions, "read_all", and_then_somebody_promotes)
    with pytest.raises(OvertakenError, match="version 2 became champion: in that very moment"):
        versions.collect(three, "old", datetime.timedelta())
    assert not [finding for finding in versions.verify(three) if finding.problem]


class Asked(BaseModel):
    model: str
    note: str = ""


def test_every_job_takes_the_champion_as_its_model_and_refuses_what_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = with_versions(tmp_path, str(tmp_path / "registry"), 1)
    taken: list[str] = []

    def main(config: Asked) -> None:
        taken.append(config.model)

    def code() -> object:
        with pytest.raises(SystemExit) as end:
            run(Asked, main, "", ["--model", f"registry:{uri}@champion"])
        return end.value.code

    assert code() == 2
    assert "no champion yet" in capsys.readouterr().err
    versions.promote(uri, 1, "the first one")
    assert code() == 0
    assert taken == [registry.version_uri(uri, 1)]


def job(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.registry", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("command", ["verify", "gc"])
def test_a_place_without_a_registry_is_named_and_stays_empty(command: str, tmp_path: Path) -> None:
    done = job(command, "--registry", str(tmp_path / "regstry"), "--reason", "a slip of the pen")
    assert done.returncode == 2
    assert f"--registry {tmp_path}/regstry: there is no registry yet; jobs.retrain, or promote" in done.stderr
    assert not (tmp_path / "regstry").exists()


def test_the_commands_tell_the_story_and_refuse_what_cannot_be(tmp_path: Path) -> None:
    uri = str(tmp_path / "registry")
    assert f"no champion yet in {uri}: jobs.retrain, or promote --model" in job("list", "--registry", uri).stdout
    wrong = job("promote", "--registry", uri, "--model", str(tmp_path / "none"), "--reason", "asked for")
    assert wrong.returncode == 2
    assert f"--model {tmp_path}/none: no {tmp_path}/none/model.json: there is no frozen model" in wrong.stderr
    models = [write_bundle(tmp_path / f"model-{n}", sharpness=0.01 * n) for n in (1, 2)]
    for model in models:
        done = job("promote", "--registry", uri, "--model", model, "--reason", "asked for")
        assert done.returncode == 0, done.stderr
    assert job("rollback", "--registry", uri, "--reason", "calls lemons limes").returncode == 0
    said = job("list", "--registry", uri).stdout
    assert "rolled back to version 1: calls lemons limes" in said
    assert said.count("<- champion") == 1
    assert "red, green, blue" in job("show", "--registry", uri).stdout
    assert job("verify", "--registry", uri).returncode == 0
    missing = job("rollback", "--registry", uri)
    assert missing.returncode == 2
    assert "--reason" in missing.stderr
    none = job("promote", "--registry", uri, "--version", "9", "--reason", "better")
    assert none.returncode == 2
    assert "--version 9: there is none" in none.stderr
    path = Path(registry.version_uri(uri, 2), "model.onnx")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    broken = job("verify", "--registry", uri)
    assert broken.returncode == 1
    assert "version 2" in broken.stderr
    assert "Traceback" not in broken.stderr
