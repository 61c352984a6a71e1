"""First thing a submitted job runs on the cluster: its module, with the locked dependencies.

    python -m cluster.start [--extra cpu] jobs.train --dataset s3://... --run s3://...

Where this Python has every package in the locked version (an image built from cluster/Dockerfile, `make local-cluster`)
the job starts at once. Where one is missing or differs, `uv run --frozen` brings them from the lock file, here and, by
Ray's own hook, on every node that works for the job. Needs nothing but the standard library.
"""

import importlib.metadata
import os
import re
import shutil
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def differences(root: Path, extra: str) -> list[str]:
    """What this Python lacks of the lock file, one text for each package; [] if nothing."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    locked: dict[str, set[str]] = {}
    for package in tomllib.loads((root / "uv.lock").read_text())["package"]:
        locked.setdefault(package["name"], set()).add(package.get("version", ""))
    installed = {_name(found.metadata["Name"]): found.version for found in importlib.metadata.distributions()}
    # Requirements with markers are for one platform each, and only pip's machinery can tell which.
    required = [each for each in project["dependencies"] + project["optional-dependencies"][extra] if ";" not in each]
    missing = [f"{name} is missing" for name in map(_name, required) if name not in installed]
    return missing + [
        f"{name} is {version}, locked {' or '.join(sorted(locked[name]))}"
        for name, version in sorted(installed.items())
        if name in locked and name != project["name"] and version not in locked[name]
    ]


def _name(requirement: str) -> str:
    """The normalised package name that a requirement starts with."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", match[0]).lower() if match else ""


def command(found: list[str], extra: str, arguments: list[str]) -> list[str]:
    """The command that runs the job, given what `differences` found."""
    if not found:
        return [sys.executable, "-m", *arguments]
    uv = shutil.which("uv")
    if uv is None:
        raise SystemExit(
            "error: this cluster's Python differs from uv.lock and there is no `uv` to install with: "
            + "; ".join(found[:5])
            + f"{' and more' if found[5:] else ''}; use an image built from cluster/Dockerfile"
        )
    print(f"installing the locked dependencies: {'; '.join(found[:3])}", file=sys.stderr, flush=True)
    frozen = ["--frozen", "--no-dev", "--extra", extra, "--python", sys.executable]
    return [uv, "run", *frozen, "python", "-m", *arguments]


def main() -> None:
    """Replace this process by the job's, so that stop signals and the exit code are the job's own."""
    arguments, extra = sys.argv[1:], "cpu"
    if arguments[:1] == ["--extra"]:
        extra, arguments = arguments[1], arguments[2:]
    if not arguments:
        raise SystemExit(__doc__)
    chosen = command(differences(ROOT, extra), extra, arguments)
    sys.stdout.flush()
    os.execv(chosen[0], chosen)


if __name__ == "__main__":
    main()
