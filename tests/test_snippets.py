"""The code that the model card says to paste: run as it stands, in a folder with the model and a picture.

By default in this environment. FRUITCNN_CLEAN=1: each in a virtual environment (or node_modules) of its own, in which
nothing is installed but what the snippet names.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fruitcnn import frozen, images, synthetic
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
    (copy / "picture.jpg").write_bytes(surest_picture(copy))
    return copy


def surest_picture(model: Path) -> bytes:
    """The weights are drawn at random: a picture whose two best classes are far apart."""
    files = [synthetic.frame_jpeg(name, "", frame, 16, 0) for name in CLASSES for frame in range(8)]
    pixels = np.stack([images.decode(data, (INPUT_PX, INPUT_PX)).pixels for data in files])
    ranked = np.sort(frozen.load(str(model)).predict(pixels), axis=1)
    return files[int((ranked[:, -1] - ranked[:, -2]).argmax())]


def test_the_card_holds_them_all(folder: Path) -> None:
    card = (folder / "MODEL_CARD.md").read_text()
    assert all(each.code in card for each in SNIPPETS)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=[each.title for each in SNIPPETS])
def test_snippet_answers_as_fruitcnn_does(folder: Path, tmp_path: Path, snippet: Snippet) -> None:
    pixels = images.decode((folder / "picture.jpg").read_bytes(), (INPUT_PX, INPUT_PX)).pixels
    probabilities = frozen.load(str(folder)).predict(pixels[np.newaxis])[0]
    # By itself, openvino reports each import to its maker through this module, found here before the real one.
    (tmp_path / "openvino_telemetry.py").write_text("raise SystemExit('it reports')")
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
    if not IS_CLEAN:
        pytest.skip("FRUITCNN_CLEAN is not set: npm would have to fetch packages")
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", *snippet.packages]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300, capture_output=True)
    return [node, str(tmp_path / "snippet.mjs")]
