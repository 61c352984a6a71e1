"""warm.py: a run starts where a frozen model ended, whatever classes came."""

import numpy as np
import pytest

from fruitcnn import frozen, warm
from fruitcnn.errors import UsageError
from fruitcnn.recipe import TrainConfig
from tests.frozen_run import CLASSES, INPUT_PX, Frozen, bundle


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Frozen:
    return bundle(tmp_path_factory.getbasetemp())


def test_columns_follow_the_names_and_new_classes_stay_fresh() -> None:
    values = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    fresh = np.full((2, 4), 0.5)
    merged = warm.columns(values, ["a", "b", "c"], fresh, ["c", "new", "a", "b"])
    assert merged.tolist() == [[3.0, 0.5, 1.0, 2.0], [6.0, 0.5, 4.0, 5.0]]


def test_the_training_twin_answers_as_the_frozen_model_before_its_first_step(made: Frozen) -> None:
    from fruitcnn.models import build_model

    golden = frozen.read_golden(made.model, frozen.verify(str(made.model)))
    classes = [*reversed(CLASSES), "Dragon Fruit"]
    network = build_model("base_cnn", (INPUT_PX, INPUT_PX), len(classes), seed=9, ghost_rows=32)
    warm.start_from(str(made.model), network, classes)
    answers = np.asarray(network(golden.images, training=False))
    known = answers[:, : len(CLASSES)][:, ::-1]
    # The new class takes its share of the softmax; among the known ones nothing changed.
    assert np.abs(known / known.sum(1, keepdims=True) - golden.answers.probabilities).max() < 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "small_cnn"}, "--architecture: got small_cnn, wanted base_cnn"),
        ({"input_px": 32}, "--input-px: got 32, wanted 24"),
        ({"initial_model": "/no/where"}, "--initial-model /no/where: no /no/where/model.json"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(
    made: Frozen, changes: dict[str, object], message: str
) -> None:
    fitting = {"architecture": "base_cnn", "input_px": INPUT_PX, "initial_model": str(made.model)}
    config = TrainConfig.model_validate({"dataset": made.dataset, "run": "unused"} | fitting | changes)
    with pytest.raises(UsageError, match=message):
        warm.require_fitting(config, CLASSES)


def test_a_model_of_wholly_other_classes_is_no_start(made: Frozen) -> None:
    config = TrainConfig(
        dataset="d", run="r", architecture="base_cnn", input_px=INPUT_PX, initial_model=str(made.model)
    )
    with pytest.raises(UsageError, match="knows none of the classes"):
        warm.require_fitting(config, ["Chair", "Table"])
