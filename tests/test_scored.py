"""scored.py: the model's own score is the one that familiar.py defines, and costs little beside the network."""

import numpy as np
import pytest

from fruitcnn import familiar
from fruitcnn.familiar import MAX_CENTRES


@pytest.mark.parametrize(("architecture", "num_classes"), [("small_cnn", 120), ("base_cnn", 120), ("lenet5", 3)])
def test_the_model_computes_the_score_as_defined(architecture: str, num_classes: int) -> None:
    import keras

    from fruitcnn import scored
    from fruitcnn.models import build_model

    random = np.random.default_rng(0)
    model = build_model(architecture, (32, 32), num_classes)
    pixels = random.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    found = {name: keras.ops.convert_to_numpy(each) for name, each in scored.features_model(model)(pixels).items()}
    labels = np.arange(2000) % (num_classes - 1)  # of the last class there is no picture
    features = found["features"][random.integers(0, 50, 2000)] * random.normal(1, 0.1, (2000, 1))
    statistics = familiar.measure(features, labels, scored.max_centres(model))
    with_score = scored.with_score(model)
    scored.set_statistics(with_score, statistics, 1.7)
    answers = {name: keras.ops.convert_to_numpy(each) for name, each in with_score(pixels).items()}
    expected = familiar.unlike(found["features"], statistics, answers["probabilities"])
    np.testing.assert_allclose(answers[scored.SCORE][:, 0], expected, rtol=1e-3, atol=1e-4)


def test_a_network_has_centres_that_take_little_of_its_work() -> None:
    from fruitcnn.models import build_model
    from fruitcnn.scored import max_centres

    assert max_centres(build_model("lenet5", (32, 32), 120)) < max_centres(build_model("small_cnn", (32, 32), 120))
    assert max_centres(build_model("small_cnn", (32, 32), 12)) == MAX_CENTRES
    # Its features have deviations, which tell pictures apart too.
    assert max_centres(build_model("base_cnn", (32, 32), 12)) < MAX_CENTRES
