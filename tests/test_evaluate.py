"""jobs.evaluate: a labels.csv or class folders -> figures, rows, a page; what has no label is counted, not scored."""

import io
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from fruitcnn.errors import UsageError
from fruitcnn.evaluate import evaluate
from fruitcnn.evaluate_config import EvaluateConfig
from fruitcnn.familiar import NO_LIMITS
from jobs.evaluate import main
from tests.frozen_run import no_progress
from tests.tiny_bundle import write_bundle

LIMITS = NO_LIMITS.model_copy(update={"max_unlike": 1.1, "min_margin": 0.5})


def picture(path: Path, color: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), color).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())


@pytest.fixture
def model(tmp_path: Path) -> str:
    return write_bundle(tmp_path / "model", limits=LIMITS)


def test_a_labels_file_with_families_and_strangers(model: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    colors = {"a.png": "red", "b.png": "#0f0", "c.png": "blue", "d.png": "#808080", "e.png": "red", "f.png": "blue"}
    for name, color in colors.items():
        picture(folder / name, color)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "labels.csv").write_text(
        "file,fine_label,family\na.png,x,red\nb.png,x,red|green\nc.png,x,green\nd.png,x,red\ne.png,x,NONE\n"
        "broken.png,x,red\n"
    )
    said = evaluate(
        EvaluateConfig(model=model, images=str(folder), evaluation=str(tmp_path / "out"), runtime="openvino"),
        no_progress,
    )
    figures = said["summary"]
    assert (figures["num_pictures"], figures["num_strangers"]) == (5, 1)
    assert (said["num_rejected"], said["num_without_truth"]) == (1, 1), "f.png has no label"
    assert figures["share_answered"] == 3 / 4, "grey is ambiguous"
    assert figures["right_among_answered"] == pytest.approx(2 / 3)
    assert figures["strangers_answered"] == 1
    assert figures["wrong_and_sure"] == 2 / 5, "the blue one taken for green, and the stranger"
    rows = {Path(row["id"]).name: row for row in pq.read_table(tmp_path / "out" / "answers.parquet").to_pylist()}
    assert (rows["d.png"]["status"], rows["d.png"]["cause"]) == ("unsure", "ambiguous")
    assert (rows["b.png"]["status"], rows["b.png"]["label"], rows["b.png"]["right"]) == ("ok", "green", True)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == json.loads(json.dumps(said))
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(title in page for title in ("Surest mistakes", "Ambiguous: 1", "none of the classes", "<svg"))
    assert ">NONE<" not in page
    assert "1\N{NO-BREAK SPACE}file had no label and is left out" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_folders_named_after_classes_are_labels(model: str, tmp_path: Path) -> None:
    for name, color in (("red/1.png", "red"), ("red/2.png", "blue"), ("holiday/3.png", "red")):
        picture(tmp_path / "in" / name, color)
    config = EvaluateConfig(model=model, images=str(tmp_path / "in"), evaluation=str(tmp_path / "out"))
    said = evaluate(config, no_progress)
    assert (said["summary"]["accuracy"], said["num_without_truth"]) == (0.5, 1)


def test_labels_name_files_from_the_folder_and_what_fits_nothing_is_told(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, color in (("x/1.png", "red"), ("y/1.png", "blue"), ("y/2.png", "red"), ("z/3.png", "red")):
        picture(tmp_path / "in" / name, color)
    lines = "file,family\nx/1.png,red\ny/1.png,blue\ny/2.png,read\ngone.png,red\n"
    (tmp_path / "in" / "labels.csv").write_text(lines)
    main(EvaluateConfig(model=model, images=str(tmp_path / "in"), evaluation=str(tmp_path / "out")))
    said = capsys.readouterr().out
    assert re.search(r"pictures +3\n", said)
    assert re.search(r"accuracy .* 100.00%", said)
    assert re.search(r"of them strangers +1 \(read 1\)", said)
    assert re.search(r"without a label +1 \(z 1\)", said)
    assert re.search(r"labels without a picture +1 \(gone.png\)", said)


def test_two_labels_of_one_file_are_refused(model: str, tmp_path: Path) -> None:
    picture(tmp_path / "in/1.png", "red")
    (tmp_path / "in" / "labels.csv").write_text("file,family\n1.png,red\n1.png,green\n")
    config = EvaluateConfig(model=model, images=str(tmp_path / "in"), evaluation=str(tmp_path / "out"))
    with pytest.raises(UsageError, match=r"--labels labels\.csv: got red and green for 1\.png, wanted one"):
        evaluate(config, no_progress)


def test_what_is_not_this_evaluation_is_not_overwritten(model: str, tmp_path: Path) -> None:
    picture(tmp_path / "in/red/1.png", "red")
    config = EvaluateConfig(model=model, images=str(tmp_path / "in"), evaluation=str(tmp_path / "out"))
    said = evaluate(config, no_progress)
    assert evaluate(config, no_progress) == said, "the same once more"
    with pytest.raises(UsageError, match=r"--evaluation \S+/out: holds the evaluation with --split None, and this"):
        evaluate(config.model_copy(update={"split": "test"}), no_progress)
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions/report.html").write_text("mine")
    (tmp_path / "predictions/plan.json").write_text("{}")
    with pytest.raises(UsageError, match=r"got a folder that holds plan\.json, wanted a new or an empty one"):
        evaluate(config.model_copy(update={"evaluation": str(tmp_path / "predictions")}), no_progress)
    assert (tmp_path / "predictions/report.html").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_told_before_the_work(model: str, read_only: Path) -> None:
    asked = EvaluateConfig(model=model, images="nothing is listed yet", evaluation=str(read_only))
    with pytest.raises(UsageError, match=rf"--evaluation: {read_only}/report.html: read-only file system"):
        evaluate(asked, no_progress)


def test_pictures_without_any_label_say_what_is_wanted(model: str, tmp_path: Path) -> None:
    picture(tmp_path / "in" / "holiday" / "1.png", "red")
    config = EvaluateConfig(model=model, images=str(tmp_path / "in"), evaluation=str(tmp_path / "out"))
    with pytest.raises(UsageError, match=r"--images .*: got 1\Wfile without a label, wanted .*labels\.csv"):
        evaluate(config, no_progress)
    assert not (tmp_path / "out").exists()
