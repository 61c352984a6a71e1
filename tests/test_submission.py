"""What a submitted job consists of, and what is said when it cannot be sent. Without a cluster."""

import shlex
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from cluster import start
from fruitcnn import sealed, submission
from fruitcnn.cluster_jobs import server_url
from fruitcnn.errors import UsageError
from fruitcnn.retrain_config import RetrainConfig
from jobs import entry
from jobs.arguments import parse
from jobs.cli import run
from jobs.submit import ROOT, SubmitConfig

KEYS = {"AWS_ACCESS_KEY_ID": "AKIATESTTEST", "AWS_SECRET_ACCESS_KEY": "sekrit/sekrit+1", "AWS_REGION": "eu-west-1"}
TOKEN = {"RAY_AUTH_TOKEN": "t0k3n" * 8}


def test_the_package_holds_what_a_job_imports_and_nothing_of_work_or_tests():
    names = zipfile.ZipFile(BytesIO(submission.pack(ROOT).data)).namelist()
    assert {"fruitcnn/train.py", "jobs/train.py", "cluster/start.py", "jobs/ray_data_logging.yaml"} <= set(names)
    assert {"pyproject.toml", "uv.lock", "README.md"} <= set(names)
    assert not [name for name in names if name.startswith(("work", "tests", ".")) or "__pycache__" in name]


def test_the_same_code_is_the_same_zip():
    assert submission.pack(ROOT).data == submission.pack(ROOT).data


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in submission.FOLDERS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "module.py").write_text("")
    for name in submission.FILES:
        (tmp_path / name).write_text("")
    return tmp_path


def _big_file(path: Path, size_bytes: int = 300_000_000) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size_bytes)


def test_a_folder_that_makes_the_code_too_big_is_named(checkout: Path):
    _big_file(checkout / "fruitcnn" / "pictures" / "all.npy")
    with pytest.raises(UsageError) as caught:
        submission.pack(checkout)
    assert f"{checkout}/fruitcnn/pictures holds 300 MB" in str(caught.value)
    assert "got 300 MB, wanted at most 100" in str(caught.value)


def test_a_big_file_beside_the_code_is_not_sent(checkout: Path):
    _big_file(checkout / "work" / "all.npy")
    _big_file(checkout / "all.npy")
    assert len(submission.pack(checkout).data) < 10_000


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="submit from a checkout"):
        submission.pack(tmp_path)


def test_settings_are_passed_and_secrets_are_not():
    passed, withheld = submission.variables(KEYS | TOKEN, pass_credentials=False)
    assert passed["AWS_REGION"] == "eu-west-1"
    assert withheld == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    assert "sekrit" not in str(passed)
    assert TOKEN["RAY_AUTH_TOKEN"] not in str(passed)


def test_credentials_travel_sealed_and_only_the_token_opens_them():
    passed, withheld = submission.variables(KEYS | TOKEN, pass_credentials=True)
    assert not withheld
    assert "sekrit" not in str(passed)
    assert "AKIA" not in str(passed)
    on_the_node = {**passed, **TOKEN}
    sealed.open_environment(on_the_node)
    assert on_the_node["AWS_SECRET_ACCESS_KEY"] == KEYS["AWS_SECRET_ACCESS_KEY"]
    assert sealed.VARIABLE not in on_the_node
    with pytest.raises(sealed.SealError, match="does not open|do not open") as caught:
        sealed.unseal(passed[sealed.VARIABLE], "another")
    assert "sekrit" not in str(caught.value)


def test_a_changed_seal_is_not_opened():
    text = sealed.seal(KEYS, "token")
    middle = len(text) // 2
    changed = text[:middle] + ("A" if text[middle] != "A" else "B") + text[middle + 1 :]
    with pytest.raises(sealed.SealError):
        sealed.unseal(changed, "token")


def test_credentials_without_a_token_are_not_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UsageError, match="wanted the cluster's token"):
        submission.variables(KEYS, pass_credentials=True)


def test_a_password_inside_an_endpoint_is_refused():
    with pytest.raises(UsageError, match="AWS_ENDPOINT_URL: holds a user name or password") as caught:
        submission.variables({"AWS_ENDPOINT_URL": "http://me:hidden@host:1"}, pass_credentials=False)
    assert "hidden" not in str(caught.value)


def test_the_token_is_found_where_ray_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sealed.find_token({}) is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-home\n")
    assert sealed.find_token({}) == "of-home"
    (tmp_path / "file").write_text("of-file")
    assert sealed.find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "file")}) == "of-file"
    assert sealed.find_token({"RAY_AUTH_TOKEN": "of-environment"}) == "of-environment"


def test_every_job_can_be_submitted_and_knows_its_places():
    places = {"shard": "--dataset", "train": "--run", "classify": "--predictions", "pipeline": "--work"}
    assert set(places) <= set(entry.names())
    assert "submit" not in entry.names()
    for name in entry.names():
        assert entry.load(name).config_class.model_fields
    given = {
        "shard": ["--source", "synthetic", "--dataset", "d"],
        "train": ["--dataset", "s3://b/d", "--run", "r"],
        "classify": ["--model", "/m", "--images", "s3://b/i", "--predictions", "p"],
        "pipeline": [],
    }
    for name, flag in places.items():
        with pytest.raises(UsageError, match=f"^{flag}: got .* folder of this machine"):
            entry.read_arguments(entry.load(name), given[name], {})


NO_PLACES = {"split", "max_rejected", "cause", "architecture", "root", "reason", "notify", "host", "data_licence"}


def test_every_field_of_text_is_a_place_or_is_not():
    for name in entry.names():
        texts = {
            field
            for field, info in entry.load(name).config_class.model_fields.items()
            if "str" in str(info.annotation) and "Literal" not in str(info.annotation)
        }
        assert texts <= entry.PLACES | NO_PLACES, name


@pytest.mark.parametrize(
    ("job", "given", "flag"),
    [
        ("retrain", ["--source", "pictures", "--dataset", "s3://b/d", "--registry", "s3://b/r"], "--source"),
        ("registry", ["promote", "--registry", "s3://b/r", "--reason", "x", "--model", "work/model"], "--model"),
        ("freeze", ["--run", "s3://b/r", "--model", "s3://b/m", "--dataset", "work/dataset"], "--dataset"),
        ("classify", ["--model", "registry:prod@champion", "--images", "/i", "--predictions", "/p"], "--model"),
        ("shard", ["--source", "synthetics/zip", "--dataset", "s3://b/d"], "--source"),
    ],
)
def test_a_place_on_this_machine_is_refused(job: str, given: list[str], flag: str):
    with pytest.raises(UsageError, match=f"^{flag}: got .* folder of this machine"):
        entry.read_arguments(entry.load(job), given, {})


def test_what_goes_along_may_be_relative():
    registries = {"FRUITCNN_REGISTRIES": "s3://b/registries"}
    entry.read_arguments(entry.load("registry"), ["list", "--registry", "prod"], registries)
    assert submission.variables(registries, pass_credentials=False)[0]["FRUITCNN_REGISTRIES"] == "s3://b/registries"
    given = ["--source", "synthetic:3x4", "--dataset", "s3://b/d", "--registry", "s3://b/r"]
    entry.read_arguments(entry.load("retrain"), [*given, "--thresholds", "cluster/retrain/gate.yaml"], {})


def test_arguments_are_checked_by_the_jobs_own_config():
    with pytest.raises(UsageError, match="--num-worker: no such argument; did you mean --num-workers"):
        entry.read_arguments(
            entry.load("train"), ["--dataset", "s3://b/d", "--run", "s3://b/r", "--num-worker", "2"], {}
        )
    with pytest.raises(UsageError, match="JOB: got 'trian', .*did you mean train"):
        entry.load("trian")


def test_arguments_of_the_job_without_a_dash_dash_are_told_where_they_go():
    with pytest.raises(UsageError, match="--dataset: no such argument.*; arguments of the job itself go behind --"):
        parse(SubmitConfig, ["train", "--dataset", "s3://b/d"], {}, "python -m jobs.submit", "")


def test_what_a_file_or_the_environment_of_this_machine_say_is_sent_as_arguments(tmp_path: Path):
    file = tmp_path / "train.yaml"
    file.write_text("dataset: s3://b/d\nnum_workers: 2\nflip: no\nseed: 5\n")
    argv = ["--config", str(file), "--run", "s3://b/r", "--seed", "7"]
    config, sent = entry.read_arguments(entry.load("train"), argv, {"FRUITCNN_MAX_FAILURES": "9"})
    expected, same = entry.read_arguments(entry.load("train"), sent, {})
    assert config == expected
    assert same == sent
    assert "--config" not in sent
    command = submission.entrypoint("train", sent, "cpu")
    assert shlex.split(command)[:6] == ["python", "-m", "cluster.start", "--extra", "cpu", "jobs.train"]


RETRAIN = ["--source", "synthetic", "--dataset", "s3://b/d", "--registry", "s3://b/r"]
HOOK = "https://hooks.example.org/T0/sekrit"


def test_a_webhook_is_sent_sealed_and_never_in_the_command_line(tmp_path: Path):
    environ = TOKEN | {"FRUITCNN_NOTIFY": HOOK}
    config, sent = entry.read_arguments(entry.load("retrain"), RETRAIN, environ)
    assert config.model_dump()["notify"] == HOOK
    assert sent == RETRAIN
    assert submission.variables(environ, pass_credentials=False)[1] == ["FRUITCNN_NOTIFY"]
    passed, _ = submission.variables(environ, pass_credentials=True)
    assert "sekrit" not in str(passed)
    on_the_node = {**passed, **TOKEN}
    sealed.open_environment(on_the_node)
    assert on_the_node["FRUITCNN_NOTIFY"] == HOOK

    file = tmp_path / "night.yaml"
    file.write_text(f"notify: {HOOK}\n")
    for given in (["--notify", HOOK], ["--config", str(file)]):
        with pytest.raises(UsageError, match="notify.*set FRUITCNN_NOTIFY") as caught:
            entry.read_arguments(entry.load("retrain"), [*RETRAIN, *given], {})
        assert "sekrit" not in str(caught.value)


def test_a_submitted_job_opens_its_seal_before_it_reads_its_arguments(monkeypatch: pytest.MonkeyPatch):
    seen = dict[str, Any]()
    environ = TOKEN | {"FRUITCNN_NOTIFY": HOOK}
    passed, _ = submission.variables(environ, pass_credentials=True)
    for name, value in (passed | TOKEN).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FRUITCNN_NOTIFY", "")  # so that it is taken away again after the test
    with pytest.raises(SystemExit) as ended:
        run(RetrainConfig, lambda config: seen.update(config), __doc__, RETRAIN)
    assert ended.value.code == 0
    assert seen["notify"] == HOOK


@pytest.mark.parametrize(
    ("given", "url"),
    [("head:8265", "http://head:8265"), ("http://head", "http://head:8265"), ("https://head/", "https://head:443"),
     ("http://[::1]:80", "http://[::1]:80")],
)  # fmt: skip
def test_an_address(given: str, url: str):
    assert server_url(given, {}) == url
    assert server_url(None, {"RAY_API_SERVER_ADDRESS": given}) == url


@pytest.mark.parametrize("given", [None, "ray://head:10001", "http://head:port", "http://", "http://head/path"])
def test_what_is_no_address_is_refused(given: str | None):
    with pytest.raises(UsageError, match="^--address: got .* wanted the URL"):
        server_url(given, {})


def test_this_environment_has_what_is_locked_and_starts_at_once():
    assert start.differences(start.ROOT, "cpu") == []
    assert start.command([], "cpu", ["jobs.train", "--x"])[1:] == ["-m", "jobs.train", "--x"]


def test_a_package_that_differs_is_brought_from_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "x"\ndependencies = ["ray[data]==2.0", "no-such-thing>=1"]\n'
        "[project.optional-dependencies]\ncpu = []\n"
    )
    (tmp_path / "uv.lock").write_text('[[package]]\nname = "ray"\nversion = "2.0"\n')
    found = start.differences(tmp_path, "cpu")
    assert found[0] == "no-such-thing is missing"
    assert found[1].startswith("ray is ")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="use an image built from cluster/Dockerfile"):
        start.command(found, "cpu", ["jobs.train"])
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\n")
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    command = start.command(found, "cpu", ["jobs.train", "--x"])
    assert command[:3] == [str(uv), "run", "--frozen"]
    assert command[-4:] == ["python", "-m", "jobs.train", "--x"]
