"""compare.py: one page holds the curves of several runs and says what was different about them."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from fruitcnn import runs, storage
from fruitcnn.compare import compare
from fruitcnn.compare_config import CompareConfig
from fruitcnn.errors import UsageError
from fruitcnn.recipe import TrainConfig
from fruitcnn.runs import Facts


def make_run(run: str, architecture: str, accuracy: float) -> str:
    runs.claim(TrainConfig(dataset="data", run=run, architecture=architecture), Facts(["a"], "f" * 64, 1, 90, 10, 50))
    lines = [
        {"kind": kind, "step": step, "images_seen": step * 64, "loss": 1 / step, "accuracy": accuracy * step / 4}
        for step in range(1, 5)
        for kind in ("train", "validation")
    ]
    runs.write_metrics(run, lines)
    return run


def test_a_page_shows_every_run_and_what_it_was_told_differently(any_prefix: str) -> None:
    first = make_run(storage.join(any_prefix, "custom"), "custom_cnn", 0.97)
    second = make_run(storage.join(any_prefix, "vgg"), "vgg13", 0.8)
    page = storage.join(any_prefix, "compare.html")
    rows = compare(CompareConfig(compare=(first, second), page=page))
    assert [(row.name, row.settings) for row in rows] == [
        ("custom", "architecture custom_cnn"),
        ("vgg", "architecture vgg13"),
    ]
    assert [row.validation_accuracy for row in rows] == [0.97, 0.8]
    text = storage.read(page).decode()
    # Two charts, each with a solid and a dashed line of either run; the table names the colours.
    assert text.count("<svg") == 2
    assert text.count("stroke: var(--run-1)") >= 4
    assert text.count("stroke: var(--run-2)") >= 4
    assert "97.00" in text
    assert 'var(--run-3)"' not in text


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    found = [make_run(str(tmp_path / day / "run"), "lenet5", 0.5) for day in ("monday", "tuesday")]
    rows = compare(CompareConfig(compare=tuple(found), page=str(tmp_path / "page.html")))
    assert [row.name for row in rows] == found


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    run = make_run(str(tmp_path / "run"), "lenet5", 0.5)
    with pytest.raises(UsageError, match=r"--compare: .*nothing holds no config.json"):
        compare(CompareConfig(compare=(run, str(tmp_path / "nothing")), page=str(tmp_path / "page.html")))
    with pytest.raises(ValidationError, match="wanted two to 6"):
        CompareConfig(compare=(run,))
