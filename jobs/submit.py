"""Any other job, on a cluster: its arguments are checked here, its code is sent, its log is followed.

    python -m jobs.submit pipeline --address http://HEAD:8265 --follow -- --source s3://b/fruit.zip --work s3://b/work
    python -m jobs.submit --list        # and --status ID, --logs ID [--follow], --stop ID

The cluster's token is read from RAY_AUTH_TOKEN or ~/.ray/auth_token, the address also from RAY_API_SERVER_ADDRESS.
The job opens buckets with the cluster's own role or secret, or with yours, sealed, if --pass-credentials is given.
"""

import datetime
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobs.cli import run, summary

if TYPE_CHECKING:
    from fruitcnn.cluster_jobs import JobServer
    from fruitcnn.submission import Submission

ROOT = Path(__file__).resolve().parents[1]


class SubmitConfig(BaseModel):
    """What `python -m jobs.submit` takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: str | None = Field(None, description="job: train, classify, ...", json_schema_extra={"positional": True})
    args: tuple[str, ...] = Field((), description="the job's own arguments", json_schema_extra={"positional": True})
    address: str | None = Field(None, description="the cluster's dashboard: http://HEAD:8265")
    follow: bool = Field(False, description="show the job's log until it ends, and end with its exit code")
    status: str | None = Field(None, description="say how the job of this id is doing")
    logs: str | None = Field(None, description="show what the job of this id printed")
    stop: str | None = Field(None, description="stop the job of this id, and wait until it has")
    list: bool = Field(False, description="list the cluster's jobs")
    dry_run: bool = Field(False, description="check everything, show what would be sent, and send nothing")
    as_: Literal["submission", "rayjob"] = Field(
        "submission", description="rayjob: print the Kubernetes RayJob that does the same, and send nothing"
    )
    image: str | None = Field(None, description="container image of --as rayjob; by default the one in the manifest")
    pass_credentials: bool = Field(
        False, description="send this machine's AWS, Kaggle and MLflow keys along, sealed with the cluster's token"
    )
    extra: Literal["cpu", "gpu"] = Field("cpu", description="dependencies to install where the cluster lacks them")

    @model_validator(mode="after")
    def _one_thing(self) -> "SubmitConfig":
        asked = {"JOB": self.job, "--status": self.status, "--logs": self.logs, "--stop": self.stop}
        chosen = [name for name, value in asked.items() if value] + (["--list"] if self.list else [])
        if len(chosen) != 1:
            got = " and ".join(chosen) or "nothing to do"
            raise ValueError(f"got {got}, wanted a JOB (with -- ARGS) or one of --status, --logs, --stop, --list")
        return self


def main(config: SubmitConfig) -> None:
    """Submit, or look after what was submitted."""
    from fruitcnn.cluster_jobs import JobServer, server_url
    from fruitcnn.sealed import find_token

    if config.job and (config.dry_run or config.as_ == "rayjob"):
        _show(config)
        return
    submission = _prepare(config) if config.job else None
    server = JobServer(server_url(config.address, os.environ), find_token(os.environ))
    if submission:
        _submit(config, server, submission)
    elif config.list:
        for details in server.all_jobs():
            print(f"{details.submission_id}  {details.status:<9}  {_when(details.start_time)}  {_took(details)}")
    elif config.status:
        _report(server.details(config.status))
    elif config.logs:
        _logs(config, server, config.logs)
    else:
        stopped = server.stop(config.stop or "")
        print(f"{config.stop}: {'stopped' if stopped else 'was over before'}; submitted again, it goes on from there")


def _prepare(config: SubmitConfig) -> "Submission":
    from fruitcnn import submission
    from jobs.entry import load, read_arguments

    entry = load(config.job or "")
    _, arguments = read_arguments(entry, config.args, os.environ)
    variables, withheld = submission.variables(os.environ, config.pass_credentials)
    now = datetime.datetime.now(datetime.UTC)
    return submission.Submission(
        name=f"{entry.name}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
        entrypoint=submission.entrypoint(entry.name, arguments, config.extra),
        variables=variables,
        metadata={"job": entry.name, "project": "fruitcnn"},
        package=submission.pack(ROOT),
        withheld=withheld,
    )


def _show(config: SubmitConfig) -> None:
    if config.as_ == "rayjob":
        from fruitcnn.kuberay import as_text, rayjob
        from jobs.entry import load, read_arguments

        entry = load(config.job or "")
        _, arguments = read_arguments(entry, config.args, os.environ)
        print(as_text(rayjob(ROOT, f"fruitcnn-{entry.name}", entry.name, arguments, config.image)), end="")
        return
    submission = _prepare(config)
    package = submission.package
    rows = {
        "id": submission.name,
        "entrypoint": submission.entrypoint,
        "code": f"{len(package.sizes)} files, {sum(package.sizes.values()) / 1e6:.1f} MB, "
        f"{len(package.data) / 1e6:.1f} MB as zip",
        **{name: "(sealed)" if name == "FRUITCNN_SEALED" else value for name, value in submission.variables.items()},
        "not sent": ", ".join(submission.withheld) or "nothing",
    }
    summary("would be sent", rows, {"address": config.address or os.environ.get("RAY_API_SERVER_ADDRESS", "not given")})


def _submit(config: SubmitConfig, server: "JobServer", submission: "Submission") -> None:
    name = server.submit(submission)
    print(f"submitted {name} to {server.url}", flush=True)
    if submission.withheld:
        print(f"not sent: {', '.join(submission.withheld)} (--pass-credentials sends them sealed)", file=sys.stderr)
    if config.follow:
        _follow(server, name)
    else:
        print(f"  python -m jobs.submit --address {server.url} --logs {name} --follow")


def _logs(config: SubmitConfig, server: "JobServer", name: str) -> None:
    if config.follow:
        _follow(server, name)
    else:
        print(server.logs(name), end="")


def _follow(server: "JobServer", name: str) -> None:
    """Show the log to the job's end, and exit as the job did. Ctrl-C asks whether the job is to go on."""
    try:
        details = server.follow(name, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        if _wants_stop(name):
            server.stop(name)
            print(f"{name} is stopped; submitted again, it goes on from there", file=sys.stderr)
        else:
            print(f"{name} goes on; --logs {name} --follow shows it again, --stop {name} ends it", file=sys.stderr)
        sys.exit(130)
    print(f"{name}: {details.status} after {_took(details)}", file=sys.stderr)
    sys.exit(exit_code(details))


def exit_code(details: Any) -> int:
    """0 for a job that succeeded; else the code that its driver ended with, or 1 where it has none."""
    if details.status == "SUCCEEDED":
        return 0
    return details.driver_exit_code or 1


def _wants_stop(name: str) -> bool:
    if not sys.stdin.isatty():
        return False
    try:
        answer = input(f"\n{name} is running: [d]etach and let it go on, or [s]top it? [d] ")
    except (KeyboardInterrupt, EOFError):
        return False
    return answer.strip().lower().startswith("s")


def _report(details: Any) -> None:
    rows = {"status": details.status, "started": _when(details.start_time), "took": _took(details)}
    if details.status in ("FAILED", "STOPPED") and details.message:
        rows["message"] = details.message.strip().splitlines()[-1]
    summary(details.submission_id, rows | {"entrypoint": details.entrypoint}, {})


def _when(milliseconds: int | None) -> str:
    if not milliseconds:
        return "not started"
    return f"{datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


def _took(details: Any) -> str:
    if not details.start_time:
        return "0 s"
    end = details.end_time or datetime.datetime.now(datetime.UTC).timestamp() * 1000
    return f"{(end - details.start_time) / 1000:,.0f} s"


if __name__ == "__main__":
    run(SubmitConfig, main, __doc__)
