"""What the front of every job promises: one config from four places, messages a person can act on, exit codes."""

import ast
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fruitcnn.errors import UsageError
from fruitcnn.recipe import TrainConfig
from jobs import session
from jobs.arguments import parse
from jobs.cli import run
from jobs.screen import progress, summary
from jobs.session import QUIET, ray_when_needed, root_cause

JOBS = Path(__file__).parent.parent / "jobs"
# A job is a module that hands itself to run(); the others are parts of the front.
ENTRY_POINTS = sorted(path.stem for path in JOBS.glob("*.py") if '__name__ == "__main__"' in path.read_text())
COMMAND = "python -m jobs.try"
DOC = "Tries things out, 100 % of them.\n\n    python -m jobs.try --dataset URI\n"


class TryConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str = Field(description="data set to read (URI)")
    num_workers: int = Field(2, description="processes that train", gt=0)
    learning_rate: float = Field(0.001, description="largest step, 10 % warm-up")
    preset: Literal["speed", "seed", "best"] = Field("best", description="what to optimise for")
    mirror: bool = Field(True, description="flip pictures")
    only: tuple[str, ...] = Field((), description="classes to keep")
    input_px: tuple[int, int] = Field((32, 32), description="height and width in pixels")
    elastic: str | None = Field(None, description="workers, MIN:MAX")

    @field_validator("elastic")
    @classmethod
    def _is_range(cls, value: str | None) -> str | None:
        if value is not None and ":" not in value:
            raise ValueError(f"got {value!r}, wanted MIN:MAX, as in 1:4")
        return value

    @model_validator(mode="after")
    def _is_sane(self) -> "TryConfig":
        if self.preset == "speed" and self.num_workers > 8:
            raise ValueError("--preset speed takes at most 8 workers")
        return self


class SubmitConfig(BaseModel):
    job: str = Field(description="job to run", json_schema_extra={"positional": True})
    follow: bool = Field(False, description="stay and show its output")
    args: tuple[str, ...] = Field((), description="its arguments", json_schema_extra={"positional": True})


class OursError(OSError):
    """Stands for an error class of this project."""


OursError.__module__ = "fruitcnn.storage"


def parse_try(*argv: str, **environ: str) -> TryConfig:
    return parse(TryConfig, argv, environ, COMMAND, DOC)


def complaint(*argv: str, **environ: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        parse_try(*argv, **environ)
    return str(caught.value).splitlines()


def exit_code(main: Callable[[TryConfig], None], *argv: str) -> int:
    with pytest.raises(SystemExit) as caught:
        run(TryConfig, main, DOC, argv or ("--dataset", "d"))
    return int(caught.value.code or 0)


def test_flags_fill_every_kind_of_field() -> None:
    words = "--dataset s3://b/d --num-workers 3 --learning-rate 1e-2 --preset seed --no-mirror --only a,b --only c"
    config = parse_try(*words.split(), "--input-px", "64,48", "--elastic=1:4")
    assert config.model_dump() == {
        "dataset": "s3://b/d",
        "num_workers": 3,
        "learning_rate": 0.01,
        "preset": "seed",
        "mirror": False,
        "only": ("a", "b", "c"),
        "input_px": (64, 48),
        "elastic": "1:4",
    }


def test_command_line_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("dataset: from-file\nnum-workers: 5\npreset: speed\nlearning_rate: 0.5\n")
    config = parse_try("--config", str(file), "--dataset", "typed", FRUITCNN_DATASET="env", FRUITCNN_NUM_WORKERS="4")
    assert (config.dataset, config.num_workers, config.preset) == ("typed", 4, "speed")
    assert (config.learning_rate, config.mirror) == (0.5, True)


def test_an_empty_environment_variable_is_not_set() -> None:
    assert parse_try("--dataset", "d", FRUITCNN_NUM_WORKERS="").num_workers == 2


def test_yaml_values_mean_what_they_mean_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    # Plain YAML 1.1 reads 1:4 as sixty-four, and 007 as seven.
    file.write_text("dataset: 007\nelastic: 1:4\nonly: [a, b]\ninput_px: 64,48\nmirror: false\n")
    config = parse_try("--config", str(file))
    assert (config.dataset, config.elastic, config.only) == ("007", "1:4", ("a", "b"))
    assert (config.input_px, config.mirror) == ((64, 48), False)


def test_a_config_written_with_a_result_is_a_config_file(tmp_path: Path) -> None:
    config = parse_try("--dataset", "d", "--only", "a")
    file = tmp_path / "config.json"
    file.write_text(config.model_dump_json(indent=1))
    assert parse_try("--config", str(file)) == config


def test_so_is_the_file_of_the_result_that_holds_it_and_what_is_empty_there_is_not_set(tmp_path: Path) -> None:
    config = TrainConfig(dataset="d", run="r", num_workers=2, epochs=1.5, flip=False)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"config": config.model_dump(mode="json"), "classes": ["A"], "num_steps": 3}))
    assert config.weights == ""
    assert parse(TrainConfig, ["--config", str(file)], {}, "python -m jobs.train", "") == config


def test_each_problem_is_one_line_with_argument_got_and_wanted() -> None:
    assert complaint(
        "--num-workers", "x", "--preset", "sped", "--elastic", "3", "--mirror", FRUITCNN_INPUT_PX="a,1"
    ) == [
        "--dataset: got nothing, wanted data set to read (URI); add --dataset TEXT",
        "--num-workers: got 'x', wanted a whole number",
        "--preset: got 'sped', wanted speed or seed or best; did you mean speed or seed?",
        "FRUITCNN_INPUT_PX (environment): got 'a', wanted a whole number",
        "--elastic: got '3', wanted MIN:MAX, as in 1:4",
    ]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--datset", "d"], "--datset: no such argument; did you mean --dataset"),
        (["--dataset", "d", "--num-wrokers=2"], "--num-wrokers: no such argument; did you mean --num-workers"),
        (["--dataset", "d", "extra"], "got 'extra' without a flag, wanted --flag extra"),
        (["--dataset", "a.jpg", "b.jpg", "c.jpg"], "got 'b.jpg' and 1 more words without a flag, wanted one value"),
        (["--dataset"], "--dataset: expected one argument"),
        (["--dataset", "d", "--num-workers", "0"], "--num-workers: got '0', wanted greater than 0"),
        (
            ["--dataset", "d", "--preset", "speed", "--num-workers", "9"],
            "--preset speed takes at most 8 workers",
        ),
        (
            ["--config", "/nowhere.yaml"],
            "--config: got /nowhere.yaml, wanted a YAML file that can be read (No such file",
        ),
    ],
)
def test_wrong_usage_says_what_to_do(argv: list[str], line: str) -> None:
    assert complaint(*argv)[0].startswith(line)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("numworkers: 3", "numworkers in {}: no such setting; did you mean num_workers?"),
        ("num_workers: many", "num_workers in {}: got 'many', wanted a whole number"),
        ("- a\n- b", "--config: got {}, wanted lines like num_workers: 2"),
        ("a: [", "--config: got {}, wanted YAML: while parsing a flow node"),
    ],
)
def test_a_wrong_yaml_file_is_named_with_its_problem(tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    assert complaint("--config", str(file), "--dataset", "d")[0].startswith(line.format(file))


def test_words_after_two_dashes_go_to_the_job_unchanged() -> None:
    argv = ["train", "--follow", "--", "--only", "a,b", "--follow"]
    assert parse(SubmitConfig, argv, {}, COMMAND, "").args == ("--only", "a,b", "--follow")
    with pytest.raises(UsageError, match="JOB: got nothing, wanted job to run; add JOB"):
        parse(SubmitConfig, ["--follow"], {}, COMMAND, "")


def test_help_shows_command_purpose_and_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_try("--help")
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert "usage: python -m jobs.try --dataset TEXT [options]" in text
    assert "Tries things out, 100 % of them." in text
    assert "processes that train (default: 2)" in text
    assert "largest step, 10 % warm-up (default: 0.001)" in text
    assert "{speed,seed,best}" in text


def test_wrong_usage_is_2_and_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    started: list[TryConfig] = []
    assert exit_code(started.append, "--datset", "d") == 2
    assert not started
    assert "nothing was started" in capsys.readouterr().err


def raiser(error: BaseException) -> Callable[[TryConfig], None]:
    def main(config: TryConfig) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OursError("s3://b/x: access denied"), 1, "error: s3://b/x: access denied\n"),
        (UsageError("--num-workers: got 3, wanted a divisor of 64"), 2, "error: --num-workers: got 3, wanted"),
        (KeyboardInterrupt(), 130, "the same command continues"),
        (RuntimeError("it\nbroke"), 1, "error: RuntimeError: it broke\ntraceback: "),
        (OSError(28, "No space left on device", "/mnt/x"), 1, "error: [Errno 28] No space left on device: '/mnt/x'\n"),
    ],
)
def test_a_failure_is_a_message_and_an_exit_code(
    error: BaseException, code: int, words: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("FRUITCNN_TRACEBACK", raising=False)
    assert exit_code(raiser(error)) == code
    shown = capsys.readouterr().err
    assert words in shown
    assert "Traceback" not in shown


def test_an_unexpected_failure_leaves_its_traceback_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert exit_code(raiser(RuntimeError("broke"))) == 1
    (log,) = tmp_path.iterdir()
    assert str(log) in capsys.readouterr().err
    assert "raise error\nRuntimeError: broke" in log.read_text()


def test_a_closed_pipe_is_quiet() -> None:
    code = """if True:
        from pydantic import BaseModel
        from jobs.cli import run
        class Config(BaseModel): pass
        def main(config):
            for line in range(100_000): print("line", line)
        run(Config, main, "Prints.")"""
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=JOBS.parent)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


def test_what_a_worker_raised_is_found_inside_the_wrappers_of_ray() -> None:
    exceptions = pytest.importorskip("ray.exceptions")
    train = pytest.importorskip("ray.train")
    ours, peer = OursError("disk"), RuntimeError("connection lost")
    task = exceptions.RayTaskError("f", "a traceback", ours)
    assert root_cause(task) is ours
    assert root_cause(task.as_instanceof_cause()) is ours
    assert root_cause(train.v2.api.exceptions.WorkerGroupError("text", {0: peer, 1: task})) is ours
    assert root_cause(peer) is peer


def test_progress_without_a_terminal_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("sharding", 200, "files", already=50) as update:
        for done in range(60, 201, 10):
            update(done, "2 rejected")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sharding: 200/200 files in 0.0 s, ")
    assert line.endswith("/s, 2 rejected")


def test_summary_keeps_paths_whole(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/a" * 300
    summary("data set", {"rows": 61488, "seconds": 1.25}, {"where": path})
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == ["data set", "  rows     61,488", "  seconds  1.25", f"  where    {path}"]


@pytest.mark.parametrize("job", ENTRY_POINTS)
def test_help_of_every_job_imports_nothing_that_takes_long(job: str) -> None:
    # What decides how soon --help answers, however busy the machine is.
    script = (
        f"import runpy, sys; sys.argv = ['{job}', '--help']\n"
        f"try: runpy.run_module('jobs.{job}', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print([name for name in sys.modules if '.' not in name], file=sys.stderr)"
    )
    command = [sys.executable, "-c", script]
    answer = subprocess.run(command, cwd=JOBS.parent, capture_output=True, text=True, check=False)
    assert f"python -m jobs.{job}" in answer.stdout
    imported = set(ast.literal_eval(answer.stderr.strip().splitlines()[-1]))
    assert not imported & {"boto3", "cv2", "fastapi", "keras", "matplotlib", "numpy", "pyarrow", "ray", "tensorflow"}


@pytest.mark.parametrize("job", ENTRY_POINTS)
def test_help_of_every_job_answers_within_a_second(job: str) -> None:
    # CPU seconds of the process: on a busy machine wall time measures the neighbours.
    cpu_seconds = []
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", f"jobs.{job}", "--help"]
        answer = subprocess.run(command, cwd=JOBS.parent, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert answer.returncode == 0, answer.stderr
        assert f"usage: python -m jobs.{job}" in answer.stdout
        if cpu_seconds[-1] < 1.0:
            break
    assert min(cpu_seconds) < 1.0


def test_what_silences_ray_is_set_before_a_step_imports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in QUIET:
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    with ray_when_needed():
        assert {name: os.environ[name] for name in QUIET} == QUIET


def test_the_closing_table_of_train_has_the_score_on_views_that_training_never_saw() -> None:
    from jobs.train import describe

    score = {"accuracy": 0.5, "num_rows": 96}
    seconds = dict.fromkeys(("start", "training", "input_wait", "evaluation"), 0.0)
    said = {"best_checkpoint": "s", "num_workers": 1, "images_seen": 1, "images_per_second": 1, "seconds": seconds}
    rows = describe(said | {"validation": score, "test": None, "leak_aware": score})
    assert rows["leak-aware accuracy"] == "50.00% of 96 rows, views that training never saw"
    assert "test accuracy" not in rows


def test_a_name_that_is_no_utf8_is_refused_before_anything_starts() -> None:
    with pytest.raises(UsageError, match=r"--dataset: got 'b\\udcff', wanted UTF-8"):
        parse(TryConfig, ["--dataset", "b\udcff"], {}, COMMAND, DOC)
    assert parse(TryConfig, ["--dataset", "Äpfel"], {}, COMMAND, DOC).dataset == "Äpfel"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_cannot_show_a_name_gets_the_table_all_the_same(encoding: str, tmp_path: Path) -> None:
    script = (
        "from pydantic import BaseModel\nfrom jobs.cli import run, summary\nclass C(BaseModel): pass\n"
        "def main(_): summary('done', {'num': '1\N{NO-BREAK SPACE}picture'}, {'path': 'p-\u2603'})\n"
        "run(C, main, 'Doc.', [])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.split() == [b"done", b"num", b"1", b"picture", b"path", rb"p-\u2603"]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://localhost:1", "127.0.0.1:99999"])
def test_a_cluster_that_does_not_answer_is_said_within_half_a_minute(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray tries for longer than six minutes, and prints nothing."""
    assert session.ANSWER_SECONDS <= 30
    monkeypatch.setattr(session, "ANSWER_SECONDS", 0.0)
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(UsageError, match=f"RAY_ADDRESS={address}: nobody answers there"), session.ray_session():
        pass
