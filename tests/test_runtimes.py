"""What every runtime promises: the answers of Keras, in float32, for any number of pictures."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fruitcnn import frozen, runtimes
from fruitcnn.bundle import STATISTICS, FrozenModelError, read_description
from fruitcnn.familiar import Answers, Statistics, unlike
from fruitcnn.frozen import MAX_DIFFERENCE, MAX_SCORE_DIFFERENCE
from tests import frozen_run
from tests.frozen_run import INPUT_PX


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return frozen_run.bundle(tmp_path_factory.getbasetemp()).model


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Black, white and noise: unlike any picture of the data set."""
    noise = np.random.default_rng(1).integers(0, 256, (298, INPUT_PX, INPUT_PX, 3), dtype=np.uint8)
    return np.concatenate([np.zeros_like(noise[:1]), np.full_like(noise[:1], 255), noise])


@pytest.fixture(scope="module")
def expected(model: Path, pixels: np.ndarray) -> Answers:
    """What the checkpoint answers in plain Keras, rebuilt here without the bundle's network; the score in float64."""
    import keras

    from fruitcnn.models import build_model
    from fruitcnn.scored import features_model

    network = build_model("base_cnn", (INPUT_PX, INPUT_PX), 6, ghost_rows=32)
    network.set_weights(frozen_run.random_weights("base_cnn", 0))
    found = {name: keras.ops.convert_to_numpy(each) for name, each in features_model(network)(pixels).items()}
    limits = read_description(str(model))[0].limits
    with np.load(model / STATISTICS) as archive:
        statistics = Statistics(**archive)
    probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(found["logits"] / limits.temperature))
    return Answers(probabilities, unlike(found["features"], statistics, probabilities))


@pytest.mark.parametrize("name", runtimes.FORMATS)
def test_every_format_answers_as_the_trained_network(
    name: str, model: Path, pixels: np.ndarray, expected: Answers
) -> None:
    predict = frozen.opened(name, model, read_description(str(model))[0])
    answers, score = predict(pixels)
    assert answers.dtype == score.dtype == np.float32
    assert np.abs(answers - expected.probabilities).max() <= MAX_DIFFERENCE
    assert np.array_equal(answers.argmax(axis=1), expected.probabilities.argmax(axis=1))
    assert np.ptp(expected.probabilities, axis=0).max() > 0.1, "answers that hardly differ would prove nothing"
    assert np.abs(score / expected.unlike - 1).max() <= MAX_SCORE_DIFFERENCE
    assert np.ptp(expected.unlike) > 1, "scores that hardly differ would prove nothing"
    assert np.abs(predict(pixels[5:6]).probabilities - expected.probabilities[5:6]).max() <= MAX_DIFFERENCE


@pytest.mark.parametrize("runtime", runtimes.RUNTIMES)
def test_an_answer_stays_the_callers_own(runtime: str, model: Path, pixels: np.ndarray) -> None:
    loaded = frozen.load(str(model), runtime)
    first = loaded.predict(pixels[:8])
    kept = first.copy()
    loaded.predict(pixels[8:16])
    assert np.array_equal(first, kept)


def test_openvino_computes_in_float32_on_any_processor(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    asked: list[dict[str, Any]] = []
    original = openvino.Core.compile_model

    def compile_model(self: Any, network: Any, device: str, settings: dict[str, Any]) -> Any:
        asked.append(settings)
        return original(self, network, device, settings)

    monkeypatch.setattr(openvino.Core, "compile_model", compile_model)
    frozen.load(str(model), "openvino", num_threads=1)
    assert asked[0]["INFERENCE_PRECISION_HINT"] == "f32"
    assert asked[0]["INFERENCE_NUM_THREADS"] == 1
    assert asked[0]["ENABLE_CPU_PINNING"] is False


def test_bf16_is_near_the_golden_answers_or_refused_with_the_reason(
    model: Path, pixels: np.ndarray, expected: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    if runtimes.has_bf16():
        loaded = frozen.load(str(model), runtimes.BF16, num_threads=1)
        found = frozen.differences(loaded.answer(pixels), expected)
        assert 0 < found.probability < frozen.MAX_BF16_DIFFERENCE, "no difference: it computed in float32"
        assert "same label on" in frozen.bf16_agreement(str(model))
    monkeypatch.setattr(runtimes, "has_bf16", lambda: False)
    with pytest.raises(FrozenModelError, match=r"this CPU does not compute in bf16 .*: leave --precision out"):
        frozen.identify(str(model), runtimes.BF16)


@pytest.mark.parametrize("visible", ["", "-1"])
def test_a_hidden_gpu_is_none(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert not runtimes.has_gpu()


def test_openvino_tells_nobody_that_it_is_used() -> None:
    code = (
        "import sys, threading; from fruitcnn.runtimes import import_openvino; openvino = import_openvino()\n"
        "print(openvino.tools.ovc.telemetry.__class__.__module__, threading.active_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "1"]


def test_onnxruntime_tells_nobody_that_it_is_used(model: Path, tmp_path: Path) -> None:
    """What it would report with keeps its state in the temporary folder."""
    code = (
        "import sys; from fruitcnn.runtimes import import_onnxruntime\n"
        "import_onnxruntime().InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    )
    given = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    command = [sys.executable, "-c", code, str(model / runtimes.ONNX)]
    subprocess.run(command, env=given | {"TMPDIR": str(tmp_path)}, check=True)
    assert not list(tmp_path.iterdir())
