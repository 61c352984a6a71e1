"""The page's own answers against the server's, picture by picture, in a real browser: the switch changes nothing.

FRUITCNN_MODEL=FOLDER takes a trained model instead of one with weights drawn at random.
"""

import base64
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fruitcnn.endpoints import BROWSER_RUNTIME
from fruitcnn.serving import ServeConfig
from tests import frozen_run
from tests.web_server import serve_without_ray

CHROMIUM = Path("/usr/bin/chromium")
NUM_FRUITS, NUM_PHOTOS = 500, 100

pytestmark = [
    pytest.mark.long,
    pytest.mark.fruits,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs {CHROMIUM}"),
    pytest.mark.skipif(not BROWSER_RUNTIME.exists(), reason="make web has not run"),
]

ASK = """async (texts) => {
  const { openModel } = await import("/page/local.js");
  const about = await (await fetch("/model")).json();
  const model = await openModel(about);
  const answers = [];
  for (const text of texts) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    answers.push(await model.classify(new File([bytes], "picture.jpg")));
  }
  return answers;
}"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    model = os.environ.get("FRUITCNN_MODEL") or str(frozen_run.bundle(tmp_path_factory.getbasetemp()).model)
    with serve_without_ray(ServeConfig(model=model, top_k=1000)) as url, sync_playwright() as playwright:
        arguments = ["--disable-gpu", "--no-sandbox"]
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        opened = browser.new_page()
        opened.goto(url)
        yield opened
        browser.close()


def pictures(file: Path, part: str, count: int) -> list[bytes]:
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if part in name and name.lower().endswith((".jpg", ".jpeg"))]
        return [archive.read(names[number * len(names) // count]) for number in range(count)]


def test_fruit(page: Any, fruits_zip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(page, pictures(fruits_zip, "/Test/", NUM_FRUITS), capsys)


def test_photographs(page: Any, photos_zip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(page, pictures(photos_zip, "", NUM_PHOTOS), capsys)


def compare(page: Any, files: list[bytes], capsys: pytest.CaptureFixture[str]) -> None:
    here = page.evaluate(ASK, [base64.b64encode(data).decode() for data in files])
    differences = []
    for data, own in zip(files, here, strict=True):
        said = httpx.post(f"{page.url}classify", content=data, timeout=60).json()["predictions"][0]
        assert (own["label"], own["status"], own["width"]) == (said["label"], said["status"], said["width"])
        theirs = dict(zip(said["top_labels"], said["top_scores"], strict=True))
        ours = dict(zip(own["top_labels"], own["top_scores"], strict=True))
        differences.append(max(abs(ours[label] - score) for label, score in theirs.items()))
    with capsys.disabled():
        print(f"\n{len(files)} pictures: same label and status on all, probabilities within {max(differences):.1e}")
    assert max(differences) < 0.01
