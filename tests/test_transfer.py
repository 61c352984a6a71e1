"""transfer.py: a backbone with a file's weights answers as keras.applications does; the last layer learns first."""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fruitcnn.errors import UsageError
from fruitcnn.presets import PRETRAINED
from fruitcnn.recipe import TrainConfig

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

from fruitcnn import synthetic, transfer  # noqa: E402 - after the check that TensorFlow is there
from fruitcnn.group import alone  # noqa: E402
from fruitcnn.models import build_model  # noqa: E402
from fruitcnn.replica import Replica  # noqa: E402

PX = 32
NAMES = synthetic.class_names(4)
FRUIT = np.stack([synthetic.draw_frame(name, "", frame, 16, 0, PX) for frame in range(16) for name in NAMES])
PICTURES, LABELS = FRUIT[:8], np.arange(8) % 3
KEYS = np.arange(8, dtype=np.int32)


def application(architecture: str) -> Any:
    keras.utils.set_random_seed(0)  # some drawn networks round more than others
    makers = {"mobilenet_v2": keras.applications.MobileNetV2, "efficientnet_v2_b0": keras.applications.EfficientNetV2B0}
    return makers[architecture](include_top=False, weights=None, input_shape=(PX, PX, 3), pooling="avg")


def as_published(architecture: str, pictures: np.ndarray = PICTURES) -> Any:
    modules = {
        "mobilenet_v2": keras.applications.mobilenet_v2,
        "efficientnet_v2_b0": keras.applications.efficientnet_v2,
    }
    return modules[architecture].preprocess_input(pictures.astype(np.float32))


def learned(architecture: str, pictures: np.ndarray = FRUIT) -> Any:
    """The application with statistics of these pictures: its features are of the size of one, as with real weights.

    Those of noise made features of drawn fruit a thousand times too large, and rounding with them.
    """
    network = application(architecture)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    network(as_published(architecture, pictures), training=True)
    return network


@pytest.fixture(scope="module", params=PRETRAINED)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, str]:
    """(architecture, the network of keras.applications, a file of its weights)."""
    network = learned(request.param)
    file = str(tmp_path_factory.mktemp("weights") / f"{request.param}.weights.h5")
    network.save_weights(file)
    return request.param, network, file


def test_the_backbone_answers_as_the_network_that_the_weights_are_of(published: tuple[str, Any, str]) -> None:
    architecture, network, file = published
    model = build_model(architecture, (PX, PX), 3, ghost_rows=4)
    transfer.start_from(file, model, architecture)
    features = keras.Model(model.input, model.get_layer("pooled").output)
    wanted = network(as_published(architecture), training=False).numpy()
    scale = np.abs(wanted).max()
    assert scale > 0.1, "features of nothing would prove nothing"
    np.testing.assert_allclose(features(PICTURES, training=True) / scale, wanted / scale, atol=1e-3)


def test_the_last_layer_learns_first_then_all_and_statistics_never(tmp_path: Path) -> None:
    file = str(tmp_path / "a.weights.h5")
    learned("mobilenet_v2").save_weights(file)
    config = TrainConfig(
        dataset="d", run="r", architecture="mobilenet_v2", weights=file, input_px=PX, global_batch_size=8, ghost_rows=4,
        frozen_share=0.5, warmup_share=0.0,
    )  # fmt: skip
    replica = Replica(config, 3, 2, alone())
    transfer.start_from(file, replica.model, config.architecture)

    def changed(number: int) -> set[str]:
        before = [np.array(each) for each in replica.model.variables]
        replica.step(PICTURES, LABELS, KEYS, number)
        pairs = zip(replica.model.variables, before, strict=True)
        return {variable.path for variable, old in pairs if (np.array(variable) != old).any()}

    head = {variable.path for variable in replica.model.layers[-2].variables}
    assert changed(0) == head
    assert changed(1) == {variable.path for variable in replica.model.trainable_variables}
    assert not any("moving" in variable.path for variable in replica.model.trainable_variables)


def test_weights_of_something_else_are_refused_with_what_is_wanted(tmp_path: Path) -> None:
    file = str(tmp_path / "other.weights.h5")
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save_weights(file)
    model = build_model("mobilenet_v2", (PX, PX), 3)
    with (
        warnings.catch_warnings(action="error", category=UserWarning),  # a line for each layer would bury the message
        pytest.raises(UsageError, match=r"--weights .*: these are no weights for mobilenet_v2 .*include_top=False"),
    ):
        transfer.start_from(file, model, "mobilenet_v2")


def test_without_internet_it_says_what_to_give_instead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keras raises a plain Exception, which would end as a traceback."""

    def fail(**_: object) -> None:
        raise Exception("URL fetch failure on https://there/w.h5: None -- [Errno -2] Name or service not known")

    model = build_model("mobilenet_v2", (PX, PX), 3)
    monkeypatch.setenv("FRUITCNN_CACHE", str(tmp_path))
    real = keras.applications.MobileNetV2
    fake = lambda **said: fail() if said["weights"] == "imagenet" else real(**said)  # noqa: E731
    monkeypatch.setattr(keras.applications, "MobileNetV2", fake)
    with pytest.raises(UsageError, match=r"--weights imagenet: URL fetch failure on https://there/w.h5.*URI instead"):
        transfer.start_from("imagenet", model, "mobilenet_v2")


def test_weights_that_cannot_be_are_refused_before_anything_starts(tmp_path: Path) -> None:
    transfer.require("imagenet")
    with pytest.raises(UsageError, match=r"--weights .*no such file"):
        transfer.require(str(tmp_path / "none.h5"))
    with pytest.raises(UsageError, match=r"--weights .*wanted \.h5"):
        transfer.require(str(tmp_path / "model.keras"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"architecture": "mobilenet_v2"}, "--weights: got none"),
        ({"weights": "imagenet"}, "--weights: got imagenet with"),
    ],
)
def test_weights_and_architecture_belong_together(more: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainConfig(dataset="d", run="r", **more)


def test_a_pretrained_network_has_a_recipe_of_its_own() -> None:
    config = TrainConfig(dataset="d", run="r", architecture="efficientnet_v2_b0", weights="imagenet")
    assert (config.input_px, config.epochs) == (96, 6)
    assert (
        TrainConfig(dataset="d", run="r", architecture="mobilenet_v2", weights="imagenet", input_px=64).input_px == 64
    )


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("architecture", PRETRAINED)
def test_a_file_of_weights_goes_the_whole_way_to_predictions(architecture: str, tmp_path: Path) -> None:
    file, work = str(tmp_path / "a.weights.h5"), tmp_path / "work"
    learned(architecture).save_weights(file)
    command = [sys.executable, "-m", "jobs.pipeline", "--source", "synthetic:4x24", "--work", str(work)]
    command += ["--architecture", architecture, "--weights", file, "--input-px", str(PX), "--images-seen", "640"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    model = json.loads((work / "model" / "model.json").read_text())
    assert (model["architecture"], model["input_px"]) == (architecture, [PX, PX])
    assert all(each["score_difference"] <= 1e-3 for each in model["agreement"] if each["is_bound"])
    assert (work / "predictions" / "manifest.json").exists()
