"""Every way to damage a bundle, seen from outside: refused by name, and nothing of the model was parsed before.

One process damages a copy again and again and tries to load it. An audit hook lists every file it opens and every
module it imports: each file may be opened once, to be hashed, and no library that could parse one may be imported.
"""

import json
import subprocess
import sys

import pytest

from tests import frozen_run

SCRIPT = """
import hashlib, json, pathlib, shutil, sys
from fruitcnn import frozen, runtimes

seen = []
sys.addaudithook(lambda event, given: event in ("open", "import") and seen.append([event, str(given[0])]))
base, copy = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
names = sorted(str(path.relative_to(base)) for path in base.rglob("*") if path.is_file())

def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

def edit(path, name, value):
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))

def renamed(path):
    labels = json.loads(path.read_text())["labels"]
    edit(path, "labels", [labels[0] + " II", *labels[1:]])

damages = [(name, how, act) for name in names for how, act in (("flipped", flip), ("missing", pathlib.Path.unlink))]
damages += [("model.json", "renamed class", renamed)]
damages += [("model.json", "newer schema", lambda path: edit(path, "schema_version", 99))]
for name, how, act in damages:
    reads = [each for each, runtime in runtimes.RUNTIMES.items() if name.split("/")[0] in (runtime.file, "golden.npz")]
    reads = [*runtimes.RUNTIMES] if name in ("model.json", "golden.npz") else reads
    for way in ["verify", *reads]:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(base, copy)
        act(copy / name)
        seen.clear()
        try:
            frozen.verify(str(copy)) if way == "verify" else frozen.load(str(copy), way)
            message = None
        except frozen.FrozenModelError as error:
            message = str(error)
        print(json.dumps({"name": name, "how": how, "way": way, "message": message, "seen": list(seen)}))
"""

PARSERS = {"openvino", "onnxruntime", "onnx", "tensorflow", "keras", "h5py", "pickle", "ai_edge_litert"}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    model = frozen_run.bundle(tmp_path_factory.getbasetemp()).model
    command = [sys.executable, "-c", SCRIPT, str(model), str(tmp_path_factory.mktemp("refusals") / "copy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_each_damage_is_refused_by_the_name_of_its_file(refusals: list[dict]) -> None:
    assert len({each["name"] for each in refusals}) >= 11, "files of the bundle"
    assert {each["how"] for each in refusals} == {"flipped", "missing", "renamed class", "newer schema"}
    accepted = [each for each in refusals if not each["message"] or each["name"] not in each["message"]]
    assert not [(each["name"], each["how"], each["way"], each["message"]) for each in accepted]


def test_nothing_was_parsed_before(refusals: list[dict]) -> None:
    for each in refusals:
        what = each["name"], each["how"], each["way"]
        imported = {name.split(".")[0] for event, name in each["seen"] if event == "import"}
        assert not imported & PARSERS, what
        opened = [name for event, name in each["seen"] if event == "open" and "/copy/" in name]
        assert len(opened) == len({*opened}), f"{what}: opened again after it was hashed"
        if each["how"] == "flipped" and each["name"] != "model.json":
            assert opened[-1].endswith(each["name"]), f"{what}: went on after the damaged file"
