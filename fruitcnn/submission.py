"""What a submitted job consists of: code, command, settings. Pure; cluster_jobs.py sends it.

The code is this project's own folders and the lock file, as one zip that is the same for the same files, so a cluster
that has it is not sent it again. Of the environment only what is no secret is passed in clear.
"""

import io
import shlex
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fruitcnn import sealed
from fruitcnn.errors import UsageError

FOLDERS = ("fruitcnn", "jobs", "cluster")
FILES = ("pyproject.toml", "uv.lock", "README.md")
"""README.md because pyproject.toml names it: without it the project itself cannot be installed."""

LARGEST_PACKAGE_BYTES = 100_000_000
_LEFT_OUT = {"__pycache__", "node_modules", "work"}

PLAIN_SETTINGS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "FRUITCNN_REGISTRIES",
                  "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")  # fmt: skip
SECRET_SETTINGS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
                   "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN",
                   "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
                   "FRUITCNN_NOTIFY")  # fmt: skip

# Ray's stop is then Ctrl-C: the job says how to go on, and its workers end in order.
_STOPPING = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "20"}


@dataclass(frozen=True)
class Package:
    """The code to send: paths relative to the root, '/'-separated -> bytes in it, and the zip itself."""

    sizes: Mapping[str, int]
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Submission:
    """Everything that is sent, and what is said about it."""

    name: str
    entrypoint: str
    variables: Mapping[str, str] = field(repr=False)
    metadata: Mapping[str, str]
    package: Package
    withheld: Sequence[str]
    """Names of secret settings that are set here and not sent."""

    def runtime_env(self, package: Path) -> dict[str, Any]:
        """Ray's runtime environment, with the zip lying at `package`."""
        return {"working_dir": str(package), "env_vars": dict(self.variables)}


def pack(root: Path) -> Package:
    """Zip what a job needs of the checkout at `root`. UsageError names the folder that makes it too big."""
    files = [root / name for name in FILES if (root / name).is_file()]
    files += [path for folder in FOLDERS for path in sorted((root / folder).rglob("*")) if _wanted(path, root)]
    if missing := [name for name in (*FOLDERS, *FILES) if not (root / name).exists()]:
        raise UsageError(f"the code to send: {root} has no {' and no '.join(missing)}; submit from a checkout")
    sizes = {path.relative_to(root).as_posix(): path.stat().st_size for path in files}
    if sum(sizes.values()) > LARGEST_PACKAGE_BYTES:
        raise UsageError(_too_big(root, sizes))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            entry = zipfile.ZipInfo(path.relative_to(root).as_posix())  # of a fixed date: the same code is the same zip
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return Package(sizes, buffer.getvalue())


def _wanted(path: Path, root: Path) -> bool:
    names = path.relative_to(root).parts
    hidden = any(name.startswith(".") or name in _LEFT_OUT or name.endswith(".egg-info") for name in names)
    return path.is_file() and not hidden and path.suffix not in (".pyc", ".so")


def _too_big(root: Path, sizes: Mapping[str, int]) -> str:
    folders: dict[str, int] = {}
    for name, size in sizes.items():
        parent = name.rpartition("/")[0] or "."
        folders[parent] = folders.get(parent, 0) + size
    folder, largest = max(folders, key=folders.__getitem__), max(sizes, key=sizes.__getitem__)
    return (
        f"the code to send: got {sum(sizes.values()) / 1e6:,.0f} MB, "
        f"wanted at most {LARGEST_PACKAGE_BYTES / 1e6:,.0f}; "
        f"{root / folder} holds {folders[folder] / 1e6:,.0f} MB of it (largest file: {largest}, "
        f"{sizes[largest] / 1e6:,.0f} MB): move data out of {', '.join(FOLDERS)} (work/ is never sent)"
    )


def entrypoint(job: str, arguments: Sequence[str], extra: str) -> str:
    """The shell command of the job's driver: cluster/start.py brings the locked dependencies where they are missing."""
    return shlex.join(["python", "-m", "cluster.start", "--extra", extra, f"jobs.{job}", *arguments])


def variables(environ: Mapping[str, str], pass_credentials: bool) -> tuple[dict[str, str], list[str]]:
    """(environment of the job, names of the secrets that are not part of it).

    Secrets go along only if asked for, and sealed. UsageError: asked for, and none set, or no token to seal them with.
    """
    plain = {name: environ[name] for name in PLAIN_SETTINGS if environ.get(name)}
    for name, value in plain.items():
        if "@" in value:
            raise UsageError(f"{name}: holds a user name or password, wanted a plain URL: it would be stored readable")
    secret = {name: environ[name] for name in SECRET_SETTINGS if environ.get(name)}
    if not pass_credentials:
        return plain | _STOPPING, sorted(secret)
    token = sealed.find_token(environ)
    if not secret:
        raise UsageError(f"--pass-credentials: wanted one of {', '.join(SECRET_SETTINGS)} in the environment")
    if token is None:
        raise UsageError(f"--pass-credentials: wanted the cluster's token to seal them with: {sealed.TOKEN_SOURCES}")
    return plain | _STOPPING | {sealed.VARIABLE: sealed.seal(secret, token)}, []
