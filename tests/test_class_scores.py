"""Labels and answers -> accuracy of each class and what was taken for what."""

import numpy as np

from fruitcnn.class_scores import confusion


def answers(*taken: int) -> np.ndarray:
    return np.eye(4, dtype=np.float32)[list(taken)]


def test_rows_are_the_truth_and_columns_the_answers() -> None:
    found = confusion(np.array([0, 0, 0, 1, 2, 2]), answers(0, 1, 1, 1, 0, 2))
    assert found.counts.tolist() == [[1, 2, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert found.num_rows.tolist() == [3, 1, 2, 0]
    np.testing.assert_allclose(found.accuracies, [1 / 3, 1, 1 / 2, np.nan])


def test_the_worst_class_and_the_commonest_mistake_come_first() -> None:
    found = confusion(np.array([0, 0, 0, 1, 2, 2]), answers(0, 1, 1, 1, 0, 2))
    assert found.worst_first() == [0, 2, 1], "a class without pictures has no accuracy"
    assert list(found.mistakes()) == [(0, 1, 2), (2, 0, 1)]
