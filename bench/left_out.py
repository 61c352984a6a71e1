"""Classes left out of training -> how many of their pictures a model answers all the same.

    python -m bench.left_out --source fruits-360-sample.zip --work work/left_out --first 0 -- --preset best

Every 12th class, from --first on, is left out: the others are sharded, trained (with what follows --) and frozen; then
jobs.evaluate takes the test pictures of both, those left out under the folder NONE. The page at WORK/evaluation has the
curve. The same command again goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

EVERY = 12
STRANGER = "NONE"


def main() -> None:
    """Prepare the folders, run the jobs, print the figures."""
    own, _, training = " ".join(sys.argv[1:]).partition(" -- ")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="zip with Training/CLASS/ and Test/CLASS/, as Fruits-360")
    parser.add_argument("--work", type=Path, required=True, help="where everything goes")
    parser.add_argument("--first", type=int, default=0, help=f"number of the first class left out, 0..{EVERY - 1}")
    given = parser.parse_args(own.split())
    prepare(given.source, given.work, given.first)
    jobs(given.work, training.split())
    figures = json.loads((given.work / "evaluation" / "evaluation.json").read_text())["summary"]
    for name in ("share_answered", "right_among_answered", "strangers_answered", "num_strangers"):
        print(f"{name:22s} {figures[name]:.4f}")


def prepare(source: str, work: Path, first: int) -> None:
    """Write WORK/pictures (Training and Test of the known classes) and WORK/asked (Test, left-out classes as NONE)."""
    if (work / "asked").exists():
        return
    part = work / "asked.part"
    shutil.rmtree(part, ignore_errors=True)
    with zipfile.ZipFile(source) as archive:
        files = [PurePosixPath(name) for name in archive.namelist() if name.endswith(".jpg")]
        classes = sorted({file.parent.name for file in files})
        left_out = set(classes[first::EVERY])
        for file in files:
            split, label = file.parent.parent.name, file.parent.name
            data = archive.read(str(file))
            if label not in left_out:
                _write(work / "pictures" / split / label / file.name, data)
            if split == "Test":
                known = label not in left_out
                _write(part / (label if known else STRANGER) / (file.name if known else f"{label}-{file.name}"), data)
    part.rename(work / "asked")


def jobs(work: Path, training: list[str]) -> None:
    """Run shard, train, freeze and evaluate."""
    dataset, run, model = (str(work / name) for name in ("dataset", "run", "model"))
    asked = ["--images", str(work / "asked"), "--evaluation", str(work / "evaluation")]
    for name, arguments in (
        ("shard", ["--source", str(work / "pictures"), "--dataset", dataset]),
        ("train", ["--dataset", dataset, "--run", run, *training]),
        ("freeze", ["--run", run, "--model", model]),
        ("evaluate", ["--model", model, *asked]),
    ):
        subprocess.run([sys.executable, "-m", f"jobs.{name}", *arguments], check=True)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


if __name__ == "__main__":
    main()
