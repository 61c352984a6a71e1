"""The code that the model card says to paste: run as it stands, in a folder with the model and a picture.

By default in this environment. FRUITCNN_CLEAN=1: each in a virtual environment (or node_modules) of its own, in which
nothing is installed but what the snippet names.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fruitcnn import frozen, images, synthetic
from fruitcnn.endpoints import PAGE
from fruitcnn.snippets import Snippet, snippets
from tests import frozen_run
from tests.frozen_run import CLASSES, INPUT_PX

IS_CLEAN = bool(os.environ.get("FRUITCNN_CLEAN"))
SNIPPETS = snippets(INPUT_PX, INPUT_PX)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The frozen model and picture.jpg."""
    model = frozen_run.bundle(tmp_path_factory.getbasetemp()).model
    copy = Path(shutil.copytree(model, tmp_path_factory.mktemp("snippets") / "model"))
    (copy / "picture.jpg").write_bytes(synthetic.frame_jpeg(CLASSES[2], "", 3, 16, 0))
    return copy


def test_the_card_holds_them_all(folder: Path) -> None:
    card = (folder / "MODEL_CARD.md").read_text()
    assert all(each.code in card for each in SNIPPETS)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=[each.title for each in SNIPPETS])
def test_snippet_answers_as_fruitcnn_does(folder: Path, tmp_path: Path, snippet: Snippet) -> None:
    pixels = images.decode((folder / "picture.jpg").read_bytes(), (INPUT_PX, INPUT_PX)).pixels
    probabilities = frozen.load(str(folder)).predict(pixels[np.newaxis])[0]
    said = run_snippet(snippet, folder, tmp_path)
    label, probability = said.split("\n")[-1].rsplit(" ", 1)
    assert label == CLASSES[probabilities.argmax()]
    assert float(probability) == pytest.approx(probabilities.max(), abs=0.05)


def run_snippet(snippet: Snippet, folder: Path, tmp_path: Path) -> str:
    command = _python(snippet, tmp_path) if snippet.language == "python" else _node(snippet, tmp_path)
    script = Path(command[-1])
    script.write_text(snippet.code)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120,
        env=environment | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _python(snippet: Snippet, tmp_path: Path) -> list[str]:
    python = sys.executable
    if IS_CLEAN:
        subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=120)
        python = str(tmp_path / "venv" / "bin" / "python")
        packages = [name.replace("tensorflow", "tensorflow-cpu") for name in snippet.packages]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True, timeout=900)
    return [python, str(tmp_path / "snippet.py")]


def _node(snippet: Snippet, tmp_path: Path) -> list[str]:
    node = shutil.which("node")
    if not node:
        pytest.skip("needs node")
    if IS_CLEAN:
        command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", *snippet.packages]
        subprocess.run(command, cwd=tmp_path, check=True, timeout=300, capture_output=True)
    else:
        _stand_in_modules(tmp_path / "node_modules")
    return [node, str(tmp_path / "snippet.mjs")]


def _stand_in_modules(modules: Path) -> None:
    """onnxruntime-web from what `make web` brought; in place of jpeg-js, pixels that Pillow decoded."""
    if not (PAGE / "vendor").exists():
        pytest.skip("make web has not run")
    shutil.copytree(PAGE / "vendor", modules / "onnxruntime-web")
    _module(modules / "onnxruntime-web", "ort.wasm.min.mjs")
    (modules / "jpeg-js").mkdir()
    (modules / "jpeg-js" / "index.mjs").write_text(
        'import { execFileSync } from "node:child_process";\n'
        "export default { decode(bytes) {\n"
        f"  const [python, code] = {json.dumps([sys.executable, DECODE])};\n"
        "  const said = execFileSync(python, ['-c', code], { input: bytes });\n"
        "  return { width: said.readUInt32LE(0), height: said.readUInt32LE(4), data: said.subarray(8) };\n} };\n"
    )
    _module(modules / "jpeg-js", "index.mjs")


DECODE = (
    "import io, struct, sys; from PIL import Image;"
    "p = Image.open(io.BytesIO(sys.stdin.buffer.read())).convert('RGBA');"
    "sys.stdout.buffer.write(struct.pack('<II', *p.size) + p.tobytes())"
)


def _module(folder: Path, main: str) -> None:
    (folder / "package.json").write_text(json.dumps({"name": folder.name, "type": "module", "exports": f"./{main}"}))
