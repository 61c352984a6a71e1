"""since.py: after a promotion, what could change is classified again, and an audit says what that misses."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from fruitcnn import since
from fruitcnn.classify import classify, dry_run
from fruitcnn.classify_config import ClassifyConfig
from fruitcnn.errors import UsageError
from jobs.classify import main
from jobs.cli import progress
from tests.tiny_bundle import write_bundle

NUM_PICTURES = 400


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures whose colour channels lie close together in some and far apart in others."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for number in range(NUM_PICTURES):
        colour = 120 + draw.normal(0, 1 + number % 40, 3)
        pixels = np.broadcast_to(np.clip(colour, 0, 255).astype(np.uint8), (8, 8, 3))
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{number:03d}.png")
    return folder


def run(model: str, pictures: Path, predictions: Path, **more: object) -> ClassifyConfig:
    said = {"model": model, "images": str(pictures), "predictions": str(predictions), "part_images": 64, **more}
    config = ClassifyConfig.model_validate(said)
    classify(config, progress)
    return config


def test_only_what_could_change_is_classified_again_and_the_audit_counts_what_is_missed(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = (write_bundle(tmp_path / name, sharpness) for name, sharpness in (("old", 0.05), ("new", -0.05)))
    run(old, pictures, tmp_path / "before")
    config = run(
        new, pictures, tmp_path / "after", since_promotion=str(tmp_path / "before"), max_margin=0.1, audit_share=0.2
    )
    choice = since.Choice(str(tmp_path / "before"), str(pictures), 0.1, 0.2)
    found = since.audit(choice, str(tmp_path / "after"))
    assert found.num_earlier == NUM_PICTURES
    assert 20 < found.num_likely < 0.6 * NUM_PICTURES
    assert 10 < found.num_audited < 0.3 * NUM_PICTURES
    # The new model calls everything otherwise, so whatever was passed over was missed, and the audit says so.
    assert found.num_likely_changed > 0.9 * found.num_likely
    assert found.miss_rate == 1.0
    capsys.readouterr()
    main(config)
    assert "miss rate 100.00%" in capsys.readouterr().out


def test_the_same_model_again_misses_nothing_and_the_bound_says_how_sure_that_is(
    pictures: Path, tmp_path: Path
) -> None:
    old, same = (write_bundle(tmp_path / name, sharpness) for name, sharpness in (("old", 0.05), ("new", 0.051)))
    run(old, pictures, tmp_path / "before")
    run(same, pictures, tmp_path / "after", since_promotion=str(tmp_path / "before"), audit_share=0.6)
    found = since.audit(since.Choice(str(tmp_path / "before"), str(pictures), 0.5, 0.6), str(tmp_path / "after"))
    assert found.miss_rate == 0
    assert 0 < found.largest_miss_rate < 0.2


def test_the_choice_is_by_margin_by_unsure_and_by_chance_and_rejected_rows_stay_out(
    pictures: Path, tmp_path: Path
) -> None:
    run(write_bundle(tmp_path / "old"), pictures, tmp_path / "before")
    rows = pa.table({
        "id": ["a", "b", "c", "d"], "label": ["x", "x", "x", None], "status": ["ok", "unsure", "ok", "rejected"],
        "top_scores": [[0.5, 0.4], [0.9, 0.05], [0.9, 0.05], None],
    })  # fmt: skip
    none = since.Choice(str(tmp_path / "before"), str(pictures), 0.2, 0.0)
    everything = since.Choice(str(tmp_path / "before"), str(pictures), 0.2, 1.0)
    assert [each.tolist() for each in none.pick(rows)] == [[True, True, False, False], [False] * 4]
    assert [each.tolist() for each in everything.pick(rows)] == [
        [True, True, False, False],
        [False, False, True, False],
    ]


def test_predictions_of_other_images_or_unfinished_ones_are_refused(pictures: Path, tmp_path: Path) -> None:
    run(write_bundle(tmp_path / "old"), pictures, tmp_path / "before")
    with pytest.raises(UsageError, match="--images: got"):
        since.Choice(str(tmp_path / "before"), str(tmp_path / "old"), 0.2, 0.1)
    with pytest.raises(UsageError, match="--since-promotion"):
        since.Choice(str(tmp_path / "nothing"), str(pictures), 0.2, 0.1)


def test_a_dry_run_speaks_of_what_was_chosen(pictures: Path, tmp_path: Path) -> None:
    model = write_bundle(tmp_path / "old")
    config = run(model, pictures, tmp_path / "before")
    choice = {"since_promotion": str(tmp_path / "before"), "max_margin": 0.0, "audit_share": 0.2}
    said = dry_run(config.model_copy(update={"predictions": str(tmp_path / "after"), **choice}))
    assert 0 < said["inputs"] < NUM_PICTURES / 2


def test_without_second_labels_nothing_says_what_could_change(pictures: Path, tmp_path: Path) -> None:
    run(write_bundle(tmp_path / "old"), pictures, tmp_path / "before", top_k=1)
    with pytest.raises(UsageError, match="--top-k 1"):
        since.Choice(str(tmp_path / "before"), str(pictures), 0.2, 0.1)


def test_nothing_else_chooses_beside_it(pictures: Path, tmp_path: Path) -> None:
    model = write_bundle(tmp_path / "old")
    run(model, pictures, tmp_path / "before")
    choice = {"since_promotion": str(tmp_path / "before")}
    with pytest.raises(ValueError, match="wanted one of them"):
        run(model, pictures, tmp_path / "after", sample=5, **choice)
    with pytest.raises(UsageError, match="--split: got test, wanted none"):
        run(model, pictures, tmp_path / "after", split="test", **choice)
