"""One picture, one answer: jobs.serve, jobs.classify and Keras by hand, on a thousand real pictures.

FRUITCNN_MODEL=FOLDER takes a trained model instead of one with weights drawn at random.
"""

import os
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from fruitcnn import frozen, images
from fruitcnn.classify import classify
from fruitcnn.classify_config import ClassifyConfig
from fruitcnn.serving import ServeConfig
from tests import frozen_run
from tests.frozen_run import no_progress
from tests.web_server import serve_without_ray

NUM_PICTURES = 1000
A_REQUEST = 50


@pytest.mark.fruits
def test_serve_classify_and_keras_answer_alike(
    fruits_zip: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    model = os.environ.get("FRUITCNN_MODEL") or str(frozen_run.bundle(tmp_path_factory.getbasetemp()).model)
    opened = frozen.load(model)
    files = _pictures(fruits_zip)
    (tmp_path / "pictures").mkdir()
    for name, data in files.items():
        (tmp_path / "pictures" / name).write_bytes(data)
    by_keras = _by_keras(model, opened.input_px, list(files.values()))
    by_classify = _by_classify(model, tmp_path, list(files), opened.labels)
    by_serve = _by_serve(model, files, opened.labels)
    with capsys.disabled():
        for name, found in (("classify", by_classify), ("serve", by_serve)):
            print(f"\n{name} and Keras: {len(files):,} pictures, within {np.abs(found - by_keras).max():.1e}")
    assert np.abs(by_classify - by_keras).max() <= 1e-4
    assert np.abs(by_serve - by_keras).max() <= 1e-4
    assert np.ptp(by_keras, axis=0).max() > 0.1, "answers that hardly differ would prove nothing"


def _pictures(fruits_zip: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(fruits_zip) as archive:
        names = [name for name in archive.namelist() if "/Test/" in name and name.endswith(".jpg")]
        chosen = [names[number * len(names) // NUM_PICTURES] for number in range(NUM_PICTURES)]
        return {f"{number:04}.jpg": archive.read(name) for number, name in enumerate(chosen)}


def _by_keras(model: str, input_px: tuple[int, int], files: list[bytes]) -> np.ndarray:
    import keras

    pixels = np.stack([images.decode(data, input_px).pixels for data in files])
    opened = keras.saving.load_model(f"{model}/model.keras", compile=False)
    return np.asarray(opened.predict(pixels, verbose=0)["probabilities"])


def _by_classify(model: str, folder: Path, names: list[str], labels: list[str]) -> np.ndarray:
    predictions = str(folder / "predictions")
    asked = ClassifyConfig(model=model, images=str(folder / "pictures"), predictions=predictions, probabilities=True)
    classify(asked, no_progress)
    rows = pq.read_table(f"{predictions}/parts").to_pylist()
    found = {Path(row["id"]).name: row["probabilities"] for row in rows}
    return np.array([found[name] for name in names])


def _by_serve(model: str, files: dict[str, bytes], labels: list[str]) -> np.ndarray:
    names, found = list(files), []
    with serve_without_ray(ServeConfig(model=model, top_k=len(labels))) as url, httpx.Client(timeout=60) as client:
        for start in range(0, len(names), A_REQUEST):
            form = [("image", (name, files[name])) for name in names[start : start + A_REQUEST]]
            answer = client.post(f"{url}classify", files=form)
            assert answer.status_code == 200, answer.text
            for row in answer.json()["predictions"]:
                scores = dict(zip(row["top_labels"], row["top_scores"], strict=True))
                found.append([scores[label] for label in labels])
    return np.array(found)
