"""What a person may get wrong: a message that says what to do, the exit code of the contract, no traceback.

2: wrong usage, nothing was started, nothing was written. 1: the job failed. 130: stopped by Ctrl-C.
"""

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest
from pydantic import BaseModel
from tiny_bundle import write_bundle

from fruitcnn import checkpoints, synthetic
from fruitcnn.classify import prepare
from fruitcnn.classify_config import ClassifyConfig
from fruitcnn.freeze_config import FreezeConfig
from fruitcnn.recipe import TrainConfig
from fruitcnn.retrain_config import RetrainConfig
from fruitcnn.shard_config import ShardConfig
from fruitcnn.shards import write_dataset
from jobs.cli import progress, run
from jobs.pipeline import PipelineConfig
from tests import frozen_run
from tests.disks import disk

CONFIGS: dict[str, type[BaseModel]] = {
    "shard": ShardConfig, "train": TrainConfig, "freeze": FreezeConfig, "classify": ClassifyConfig,
    "pipeline": PipelineConfig, "retrain": RetrainConfig,
}  # fmt: skip
NOTHING_WRITTEN = "new"


class Outcome(NamedTuple):
    code: int
    said: str


Shell = Callable[..., Outcome]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    """shell("train", "--dataset", ...) does what `python -m jobs.train --dataset ...` does, in this process."""

    def call(job: str, *argv: str) -> Outcome:
        module = importlib.import_module(f"jobs.{job}")
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run(CONFIGS[job], module.main, module.__doc__, argv)
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert "traceback:" not in said, "a mistake of the user is no surprise"
        return Outcome(int(caught.value.code or 0), said)

    return call


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Things that are not right: empty, none, apple (one class), cut.zip, half (a data set without manifest); model."""
    # Ray's loggers keep the stderr of the moment they are imported: not that of one test, which is closed after it.
    importlib.import_module("fruitcnn.train")
    place = tmp_path_factory.mktemp("wrong")
    (place / "empty").mkdir()
    pictures = [synthetic.frame_jpeg("Apple", "", frame, 4, 0) for frame in range(4)]
    for number, data in enumerate(pictures):
        for folder in ("apple/Apple", "two/Apple", "two/Pear", "lone/Apple", *["lone/Pear"] * (number == 0)):
            (place / folder).mkdir(parents=True, exist_ok=True)
            (place / folder / f"{number}.jpg").write_bytes(data)
    with zipfile.ZipFile(place / "whole.zip", "w") as archive:
        for number, data in enumerate(pictures * 2):
            archive.writestr(f"{'AB'[number // 4]}/{number}.jpg", data)
    whole = (place / "whole.zip").read_bytes()
    (place / "cut.zip").write_bytes(whole[: len(whole) * 2 // 3])
    (place / "half/shards").mkdir(parents=True)
    (place / "half/shards/train-00000.parquet").write_bytes(b"PAR1")
    shutil.copytree(place / "half", place / "half2")
    (place / "half2/manifest.json").write_text("{}")
    (place / "page").mkdir()
    (place / "page/report.html").write_text("my page")
    (place / "site/dataset").mkdir(parents=True)
    (place / "site/dataset/note.txt").write_text("mine")
    (place / "done").mkdir()
    (place / "done/plan.json").write_text("{}")
    (place / "bad.yaml").write_text("source: [")
    frozen_run.write_dataset(place / "whole")
    write_bundle(place / "model")
    return place


WRONG = {
    "no such source": (
        "shard --source {}/none --dataset {}/new",
        r"--source: \S+/none does not exist; wanted a folder",
    ),
    "empty source": ("shard --source {}/empty --dataset {}/new", r"--source: \S+/empty is empty; wanted a folder"),
    "one class": (
        "shard --source {}/apple --dataset {}/new",
        r"--source: \S+/apple holds one class only \('Apple'\).*at least two: add the other",
    ),
    "cut source": ("shard --source {}/cut.zip --dataset {}/new", r"--source: \S+/cut.zip .* is cut off .*download it"),
    "source of the pipeline": ("pipeline --source {}/none --work {}/new", r"--source: \S+/none does not exist; wanted"),
    "report of somebody else": (
        "pipeline --source synthetic:4x24 --work {}/page",
        r"--work: \S+/page/report.html is there and was not written by a pipeline; name another folder",
    ),
    "data set as source": (
        "shard --source {}/half2 --dataset {}/new",
        r"--source: \S+/half2 is a data set already, as jobs.train --dataset takes it, wanted labelled pictures",
    ),
    "class of one file": (
        "shard --source {}/lone --dataset {}/new",
        r"--source: \S+/lone has one file only in 'Pear', which cannot be in train and test both. Add pictures there",
    ),
    "data set of the pipeline": (
        "pipeline --source {}/two --work {}/site",
        r"--work: \S+/site/dataset is not empty and holds no data set of ours",
    ),
    "scheme of notify": (
        "retrain --source synthetic --dataset {}/new --registry {}/new --notify ftp://host/key",
        r"--notify: got ftp\.\.\., wanted an http:// or https:// URL",
    ),
    "no work folder": ("pipeline --work ''", r"--work: '': not a location: give a local path or s3://"),
    "train without manifest": (
        "train --dataset {}/half --run {}/new",
        r"no \S+/half/manifest.json: .*run \"python -m jobs.shard --source SOURCE --dataset \S+/half\" first",
    ),
    "classify without manifest": (
        "classify --model {}/model --images {}/half --predictions {}/new",
        r"--images \S+/half: got the shards of a data set without .* run \"python -m jobs.shard .*to the end first",
    ),
    "file for a run": (
        "train --dataset {}/whole --run {}/bad.yaml",
        r"--run: \S+/bad.yaml/config.json: a file lies where its folder would be: name another folder",
    ),
    "number of workers": (
        "train --dataset {}/half --run {}/new --num-workers two",
        r"--num-workers: got two, wanted a whole number, or a range as in 1:4",
    ),
    "range of workers": (
        "train --dataset {}/half --run {}/new --num-workers 1:many",
        r"--num-workers: got 1:many, wanted a whole number, or a range as in 1:4",
    ),
    "batch of train": (
        "train --dataset {}/half --run {}/new --num-workers 3 --global-batch-size 64",
        r"--global-batch-size: got 64 with --num-workers 3, wanted a multiple of 96 .*: try --global-batch-size 96",
    ),
    "batch of pipeline": (
        "pipeline --source synthetic --work {}/new --num-workers 3",
        r"--global-batch-size: got 64 with --num-workers 3, wanted a multiple of 96 .*: try --global-batch-size 96",
    ),
    "architecture of train": (
        "train --dataset {}/half --run {}/new --architecture base_cn",
        r"--architecture: got 'base_cn', wanted small_cnn or base_cnn .*did you mean base_cnn",
    ),
    "architecture of pipeline": (
        "pipeline --source synthetic --work {}/new --architecture resnet99",
        r"--architecture: got 'resnet99', wanted small_cnn or base_cnn",
    ),
    "no model": (
        "classify --model {}/empty --images {}/apple --predictions {}/new",
        r"--model \S+/empty: no \S+/model.json: there is no frozen model; run \"python -m jobs.freeze --run RUN",
    ),
    "no pictures": (
        "classify --model {}/model --images {}/none --predictions {}/new",
        r"--images \S+/none: nothing is there; wanted a folder, prefix, archive or list",
    ),
    "predictions for pictures": (
        "classify --model {}/model --images {}/done --predictions {}/new",
        r"--images \S+/done: got predictions of jobs.classify, wanted pictures",
    ),
    "cause without a retry": (
        "classify --model {}/model --images {}/apple --predictions {}/new --cause not-found",
        r"--cause: got not-found without --retry-rejected",
    ),
    "cut archive": (
        "classify --model {}/model --images {}/cut.zip --predictions {}/new",
        r"--images \S+/cut.zip .* is cut off .*download it again",
    ),
    "foreign folder": (
        "classify --model {}/model --images {}/apple --predictions {}/half",
        r"--predictions \S+/half: got a folder that holds \S+ and no plan.json, wanted an empty one",
    ),
    "no run": (
        "freeze --run {}/empty --model {}/new",
        r"no \S+/empty/config.json: there is no finished training run; run \"python -m jobs.train",
    ),
    "unknown flag": ("shard --source {}/apple --dataset {}/new --frobnicate 1", r"--frobnicate: no such argument"),
    "misspelled flag": (
        "shard --sorce {}/apple --dataset {}/new",
        r"--sorce: no such argument; did you mean --source",
    ),
    "positional": (
        "shard --source {}/apple extra --dataset {}/new",
        r"got 'extra' without a flag, wanted --flag extra",
    ),
    "YAML": ("shard --config {}/bad.yaml --dataset {}/new", r"--config: got \S+/bad.yaml, wanted YAML: .* line \d"),
    "no YAML": ("shard --config {}/none.yaml --dataset {}/new", r"--config: got \S+/none.yaml, wanted .* can be read"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_named_and_starts_nothing(case: str, shell: Shell, place: Path) -> None:
    command, message = WRONG[case]
    outcome = shell(*[word.format(place).strip("'") for word in command.split()])
    assert re.search(message, outcome.said), outcome.said
    assert outcome.code == 2
    assert not (place / NOTHING_WRITTEN).exists()


@pytest.mark.parametrize("file", ["model.json", "golden.npz", "model.onnx"])
def test_one_flipped_byte_in_a_model_is_refused(file: str, shell: Shell, place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "model", tmp_path / "model")
    damaged = tmp_path / "model" / file
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    outcome = shell(*f"classify --model {tmp_path}/model --images {place}/apple --predictions {tmp_path}/new".split())
    assert outcome.code == 2
    assert f"--model {tmp_path}/model: {damaged}: " in outcome.said
    assert "restore the file, or freeze the run again" in outcome.said
    assert not (tmp_path / "new").exists()


def test_a_damaged_file_that_the_runtime_does_not_read_is_refused_too(
    shell: Shell, place: Path, tmp_path: Path
) -> None:
    from fruitcnn.bundle import read_description, stored_files

    shutil.copytree(place / "model", tmp_path / "model")
    (tmp_path / "model/model.keras").write_bytes(b"weights")
    description, _ = read_description(str(tmp_path / "model"))
    files = {name: file for name, file in stored_files(tmp_path / "model").items() if name != "model.json"}
    (tmp_path / "model/model.json").write_bytes(description.model_copy(update={"files": files}).to_bytes())
    (tmp_path / "model/model.keras").write_bytes(b"Weights")
    outcome = shell(*f"classify --model {tmp_path}/model --images {place}/apple --predictions {tmp_path}/new".split())
    assert outcome.code == 2
    assert "model.keras: its sha256 is not the one in model.json" in outcome.said


def test_predictions_of_another_run_are_refused(shell: Shell, place: Path, tmp_path: Path) -> None:
    model, out = str(place / "model"), str(tmp_path / "out")
    prepare(ClassifyConfig(model=model, images=str(place / "apple"), predictions=out))
    outcome = shell("classify", "--model", model, "--images", f"{place}/two", "--predictions", out)
    assert outcome.code == 2
    assert re.search(r"belongs to another run:\n.*images: that run has \S+apple', this command says", outcome.said)
    assert "give the same arguments to continue it, or another --predictions folder" in outcome.said


def test_predictions_inside_the_pictures_are_pointed_out(shell: Shell, place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "two", tmp_path / "two")
    command = f"classify --model {place}/model --images {tmp_path}/two --predictions {tmp_path}/two/out"
    outcome = shell(*command.split())
    assert outcome.code == 0
    assert "note: --predictions lies inside --images: another run over them would take its files" in outcome.said


def test_a_folder_to_organise_into_that_cannot_be_written_is_told_before_the_work(
    shell: Shell, place: Path, read_only: Path, tmp_path: Path
) -> None:
    command = f"classify --model {place}/model --images {place}/two --predictions {tmp_path}/out"
    outcome = shell(*command.split(), "--organise", f"{read_only}/sorted")
    assert outcome.code == 2
    assert re.search(r"--organise: \S+/part-00000.csv: read-only file system: name another folder", outcome.said)
    assert not (tmp_path / "out").exists()


# --- object storage

ON_S3 = {
    "source": ("shard --source s3://{bucket}/x --dataset {}/new", "--source"),
    "dataset": ("shard --source synthetic:4x12 --dataset s3://{bucket}/x", "--dataset"),
    "run": ("freeze --run s3://{bucket}/x --model {}/new", "--run"),
    "images": ("classify --model {}/model --images s3://{bucket}/x --predictions {}/new", "--images"),
    "predictions": ("classify --model {}/model --images {}/apple --predictions s3://{bucket}/x", "--predictions"),
    "model": ("classify --model s3://{bucket}/x --images {}/apple --predictions {}/new", "--model"),
}


@pytest.mark.s3
@pytest.mark.parametrize("argument", [name for name in ON_S3 if name not in ("run", "model")])
def test_a_missing_bucket_is_named(argument: str, s3_prefix: str, shell: Shell, place: Path) -> None:
    command, flag = ON_S3[argument]
    outcome = shell(*command.format(*[place] * 2, bucket="no-such-bucket").split())
    assert outcome.code == 2
    assert f"{flag}: s3://no-such-bucket/x: there is no bucket named no-such-bucket at http" in outcome.said
    assert "create it, or correct the URI" in outcome.said


@pytest.mark.s3
@pytest.mark.parametrize("argument", ON_S3)
def test_a_wrong_key_is_refused_and_not_shown(
    argument: str, s3_prefix: str, shell: Shell, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    command, flag = ON_S3[argument]
    outcome = shell(*command.format(*[place] * 2, bucket=s3_prefix.split("/")[2]).split())
    assert outcome.code == 2
    assert f"{flag}: s3://" in outcome.said
    assert "refused (" in outcome.said
    assert "check the credentials (AWS_PROFILE, or AWS_ACCESS_KEY_ID" in outcome.said
    assert "not-the-secret" not in outcome.said


# --- a machine without a network of its own


@pytest.mark.fault
def test_a_machine_that_does_not_reach_itself_is_told_so_at_once(place: Path) -> None:
    apart = ["unshare", "-n"]
    if not shutil.which("unshare") or subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a network namespace of its own, whose loopback is down, is not permitted here")
    command = f"-m jobs.pipeline --source synthetic:4x24 --work {place / NOTHING_WRITTEN}".split()
    ended = subprocess.run([*apart, sys.executable, *command], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "ip link set lo up" in ended.stderr
    assert "raceback" not in ended.stderr


# --- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB with 24 KiB left; deleting its filler frees the rest."""
    with disk(tmp_path / "disk", "size=8m") as folder:
        (folder / "filler").write_bytes(bytes(8 * 1024 * 1024 - 24 * 1024))
        yield folder


FULL = "no space left on the device: free some, or name another folder"


@pytest.mark.ray
@pytest.mark.fault
def test_a_full_disk_ends_shard_with_its_file(ray_session: None, small_disk: Path, shell: Shell) -> None:
    outcome = shell(*f"shard --source synthetic:4x24 --dataset {small_disk}/dataset".split())
    assert outcome.code == 1
    assert re.search(rf"{small_disk}/dataset/shards/\w+-00000.parquet: {FULL}", outcome.said)


@pytest.mark.ray
@pytest.mark.fault
def test_a_full_disk_ends_classify_and_a_freed_one_lets_it_go_on(
    ray_session: None, small_disk: Path, shell: Shell, place: Path
) -> None:
    command = f"classify --model {place}/model --images {place}/two --predictions {small_disk}/out --part-images 2"
    outcome = shell(*command.split())
    assert outcome.code == 1
    assert FULL in outcome.said
    (small_disk / "filler").unlink()
    assert shell(*command.split()).code == 0


@pytest.mark.ray
@pytest.mark.fault
def test_a_full_disk_ends_train_with_its_file(
    ray_session: None, small_disk: Path, shell: Shell, tmp_path: Path
) -> None:
    dataset = str(tmp_path / "dataset")
    write_dataset(ShardConfig(source="synthetic:4x40", dataset=dataset), progress)
    (small_disk / "rest").write_bytes(bytes(24 * 1024))
    outcome = shell("train", "--dataset", dataset, "--run", f"{small_disk}/run")
    assert outcome.code == 1
    assert f"{small_disk}/run" in outcome.said
    assert FULL in outcome.said


@pytest.mark.fault
def test_a_full_disk_is_met_by_a_checkpoint(small_disk: Path) -> None:
    writer = checkpoints.Writer(str(small_disk), keep=2)
    writer.submit(checkpoints.State(1, [np.zeros(20_000)], []), None, {})
    with pytest.raises(OSError, match=rf"step-00000001/weights\.npz: {FULL}"):
        writer.wait()
    assert checkpoints.complete(str(small_disk)) == []


# --- Ctrl-C


def interrupted(argv: list[str], when: Callable[[str], bool]) -> Outcome:
    """Start the job as the shell does, press Ctrl-C once `when(what it said so far)`, and see that nothing is left."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with (
        subprocess.Popen(
            [sys.executable, "-m", *argv], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env=environment,
            # Whoever runs the tests in the background of a shell ignores SIGINT, and children would too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ) as process
    ):  # fmt: skip
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)
        said = ""
        while not when(said):
            assert process.poll() is None, f"the job ended too early: {said}"
            time.sleep(0.1)
            said += (process.stderr.read() or b"").decode()
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        code = process.wait(timeout=60)
        said += (process.stderr.read() or b"").decode()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert "Traceback" not in said
    return Outcome(code, said)


@pytest.mark.ray
@pytest.mark.fault
def test_ctrl_c_stops_classify_and_the_same_command_continues(
    ray_session: None, shell: Shell, place: Path, tmp_path: Path, jpeg_bytes: Callable[..., bytes]
) -> None:
    (tmp_path / "many").mkdir()
    for number in range(400):
        (tmp_path / f"many/{number}.jpg").write_bytes(jpeg_bytes(number % 20, 400, 300))
    command = f"--model {place}/model --images {tmp_path}/many --predictions {tmp_path}/out --part-images 4".split()
    parts = tmp_path / "out/parts"
    outcome = interrupted(["jobs.classify", *command], lambda said: len(list(parts.glob("*.parquet"))) >= 2)
    assert outcome.code == 130
    assert "stopped; the same command continues from what is done" in outcome.said
    kept = {path: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
    assert len(kept) < 100, "the job was to be stopped in the middle"
    assert shell("classify", *command).code == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.ray
@pytest.mark.fault
def test_ctrl_c_stops_the_pipeline_while_workers_train(ray_session: None, tmp_path: Path) -> None:
    # max_epochs cuts images_seen off: enough pictures for training to be caught under way on a fast machine too.
    argv = [
        "jobs.pipeline",
        "--source",
        "synthetic:4x2000",
        "--work",
        str(tmp_path / "work"),
        "--images-seen",
        "200000",
    ]
    outcome = interrupted(argv, lambda said: "train: " in said)
    assert outcome.code == 130
    assert "stopped; the same command continues from what is done" in outcome.said
    assert (tmp_path / "work/dataset/manifest.json").exists()
