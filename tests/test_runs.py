"""runs.py and recipe.py: a run folder belongs to one config; wrong arguments are refused with the way out."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fruitcnn import runs, storage
from fruitcnn.errors import UsageError
from fruitcnn.presets import PRESETS
from fruitcnn.recipe import ARCHITECTURES, TrainConfig
from fruitcnn.runs import Facts

FACTS = Facts(["a", "b"], "f" * 64, 1, 90, 10, 50)


def config(run: str = "run", **given: Any) -> TrainConfig:
    return TrainConfig(dataset="data", run=run, **given)


def test_the_same_config_goes_on_and_the_number_of_workers_may_change(tmp_path: Path) -> None:
    runs.claim(config(str(tmp_path / "run")), FACTS)
    runs.claim(config(str(tmp_path / "run"), num_workers=2, checkpoint_seconds=5), FACTS)
    assert runs.result(str(tmp_path / "run")) is None


def test_another_config_is_refused_with_the_differing_fields_named(tmp_path: Path) -> None:
    runs.claim(config(str(tmp_path / "run")), FACTS)
    with pytest.raises(UsageError, match=r"learning_rate: there 0.004, here 0.1.*seed: there 0, here 5"):
        runs.claim(config(str(tmp_path / "run"), learning_rate=0.1, seed=5), FACTS)


def test_a_run_of_an_earlier_version_goes_on_where_the_newer_arguments_are_left_alone(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    runs.claim(config(run), FACTS)
    written = storage.read_json(storage.join(run, "config.json"))
    del written["identity"]["clip_norm"]
    storage.write_json(storage.join(run, "config.json"), written)
    runs.claim(config(run), FACTS)
    with pytest.raises(UsageError, match=r"clip_norm: there 0.0, here 1.0"):
        runs.claim(config(run, clip_norm=1.0), FACTS)


def test_another_data_set_is_refused(tmp_path: Path) -> None:
    runs.claim(config(str(tmp_path / "run")), FACTS)
    with pytest.raises(UsageError, match="data set: there version 1, here 2"):
        runs.claim(config(str(tmp_path / "run")), Facts(["a", "b"], "e" * 64, 2, 90, 10, 50))


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="not empty"):
        runs.claim(config(str(tmp_path)), FACTS)


def test_metrics_after_the_resumed_step_are_left_out(any_prefix: str) -> None:
    lines = [{"kind": "train", "step": step, "loss": 1 / step} for step in (1, 2, 3)]
    runs.write_metrics(any_prefix, lines)
    assert runs.read_metrics(any_prefix) == lines
    assert runs.read_metrics(any_prefix, up_to_step=2) == lines[:2]


def test_a_preset_fills_what_is_not_given_and_nothing_else() -> None:
    assert config(preset="best").architecture == PRESETS["best"]["architecture"]
    assert config(preset="best", architecture="lenet5").architecture == "lenet5"


def test_a_length_of_ones_own_replaces_that_of_the_preset() -> None:
    assert config(preset="best").num_images(1000) == 30_000
    assert config(preset="best", images_seen=700).num_images(1000) == 700
    assert config(preset="best", epochs=2).num_images(1000) == 2000


def test_a_range_of_workers_leaves_out_groups_into_which_the_batch_does_not_divide() -> None:
    elastic = config(num_workers="1:4", global_batch_size=64)
    assert (elastic.min_workers, elastic.num_workers, elastic.group_sizes()) == (1, 4, [1, 2])
    assert config(num_workers="1:4", global_batch_size=384).group_sizes() == [1, 2, 3, 4]
    assert elastic.identity() == config(num_workers=2).identity()


def test_every_architecture_can_be_asked_for() -> None:
    for architecture in ARCHITECTURES:
        assert config(architecture=architecture).architecture == architecture


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_workers": 3}, "got 64 with --num-workers 3, wanted a multiple of 96"),
        ({"num_workers": 4}, r"whole ghosts of --ghost-rows 32\): try --global-batch-size 128"),
        ({"architecture": "resnet9000"}, "small_cnn"),
        ({"num_workers": "4:1"}, "got 4:1, wanted the smaller one first"),
        ({"num_workers": "one:4"}, "got one:4, wanted a whole number, or a range as in 1:4"),
        ({"zoom": 1.5}, "less than 1"),
        ({"learning_rat": 1.0}, "learning_rat"),
    ],
)
def test_wrong_values_are_refused_before_anything_starts(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**given)
