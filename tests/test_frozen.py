"""What a frozen model promises: nothing is opened before its hash was checked, nor used if it answers otherwise."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fruitcnn import bundle, frozen, runtimes, storage
from fruitcnn.bundle import DESCRIPTION, GOLDEN, FrozenModelError, read_description, stored_files
from fruitcnn.errors import UsageError
from fruitcnn.familiar import Answers
from fruitcnn.frozen import MAX_DIFFERENCE, MAX_SCORE_DIFFERENCE
from tests import frozen_run
from tests.frozen_run import CLASSES, INPUT_PX

FILES = (
    "model.json", "golden.npz", "statistics.npz", "MODEL_CARD.md", "model.keras", "cnn_fruit.weights.h5",
    "frozen_graph.pb", "model.onnx", "model.tflite", "model.int8.onnx",
    "card/accuracy.png", "card/classes.png", "card/confusion.png", "card/curves.png",
    "saved_model/saved_model.pb", "saved_model/fingerprint.pb", "saved_model/variables/variables.index",
    "saved_model/variables/variables.data-00000-of-00001",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that all tests read; who wants to damage it takes `copy`."""
    return frozen_run.bundle(tmp_path_factory.getbasetemp()).model


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "model"))


def flip_byte(path: Path, position: int = -40) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def edit(folder: Path, **changes: object) -> None:
    """Change fields of model.json and leave its seal as it was."""
    path = folder / DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=1))


def reseal(folder: Path, **changes: object) -> None:
    """Make hashes and seal right again, as somebody would who wants to hide a change."""
    description, _ = read_description(str(folder))
    files = {name: file for name, file in stored_files(folder).items() if name != DESCRIPTION}
    changed = description.model_copy(update={"files": files, **changes})
    (folder / DESCRIPTION).write_bytes(changed.to_bytes())


def pictures(num_images: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_images, INPUT_PX, INPUT_PX, 3), dtype=np.uint8)


# Loading


def test_a_bundle_holds_exactly_the_files_of_the_design(model: Path) -> None:
    assert sorted([*stored_files(model)]) == sorted(FILES)
    description, _ = read_description(str(model))
    assert {*description.files} == {*FILES} - {DESCRIPTION}


def test_model_says_what_it_is(model: Path) -> None:
    loaded = frozen.load(str(model))
    assert loaded.labels == list(CLASSES)
    assert loaded.input_px == (INPUT_PX, INPUT_PX)
    assert loaded.runtime == "openvino"
    assert len(loaded.model_hash) == 64
    assert frozen.identify(str(model)) == (loaded.model_hash, "openvino")
    assert frozen.identify(str(model), "onnxruntime") == (loaded.model_hash, "onnxruntime")


@pytest.mark.parametrize("num_images", [0, 1, 3, 300])
def test_predict_takes_any_number_of_pictures(model: Path, num_images: int) -> None:
    probabilities = frozen.load(str(model)).predict(pictures(num_images))
    assert probabilities.shape == (num_images, len(CLASSES))
    assert probabilities.dtype == np.float32
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_predict_takes_views_and_read_only_arrays(model: Path) -> None:
    loaded, pixels = frozen.load(str(model)), pictures(6)
    expected = loaded.predict(pixels)
    pixels.flags.writeable = False
    assert np.array_equal(loaded.predict(pixels), expected)
    assert np.allclose(loaded.predict(pixels[::2]), expected[::2], atol=1e-6)


@pytest.mark.parametrize(
    "wrong", [pictures(2).astype(np.float32), pictures(2)[0], pictures(2)[:, :-1], pictures(2)[..., :1]]
)
def test_predict_refuses_other_shapes_and_types(model: Path, wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"pixels: got .*, wanted uint8 \(N, 24, 24, 3\)"):
        frozen.load(str(model)).predict(wrong)


def test_unknown_runtime_is_named(model: Path) -> None:
    with pytest.raises(UsageError, match="runtime: got 'torch', wanted auto or one of openvino, onnxruntime"):
        frozen.load(str(model), "torch")


def test_openvino_needs_no_tensorflow(model: Path) -> None:
    code = "import sys; from fruitcnn import frozen; print(frozen.load(sys.argv[1]).runtime, *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, model], capture_output=True, text=True, timeout=120, check=True)
    runtime, *modules = done.stdout.split()
    assert runtime == "openvino"
    assert not {"tensorflow", "keras", "onnxruntime", "onnx", "tf2onnx", "ray"} & {*modules}
    assert done.stderr == ""


# Refusals


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_byte_is_refused_by_name(copy: Path, name: str) -> None:
    flip_byte(copy / name)
    with pytest.raises(FrozenModelError, match=name):
        frozen.verify(str(copy))


@pytest.mark.parametrize("position", [0, 20, -1])
def test_every_byte_of_the_description_counts(copy: Path, position: int) -> None:
    flip_byte(copy / DESCRIPTION, position)
    with pytest.raises(FrozenModelError, match=DESCRIPTION):
        read_description(str(copy))


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_refused_by_name(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(FrozenModelError, match=name):
        frozen.verify(str(copy))


def read_by_a_runtime() -> list[tuple[str, str]]:
    """(runtime, file) for every file that a runtime reads."""
    own = {name: runtime.file for name, runtime in runtimes.RUNTIMES.items()}
    return [(name, file) for name in own for file in FILES if file.split("/")[0] in (DESCRIPTION, GOLDEN, own[name])]


@pytest.mark.parametrize(("runtime", "name"), read_by_a_runtime())
def test_nothing_is_parsed_before_the_hashes(
    copy: Path, name: str, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*arguments: object, **named: object) -> None:
        pytest.fail("parsed before the hashes were checked")

    monkeypatch.setattr(frozen, "opened", opened)
    monkeypatch.setattr(np, "load", opened)
    flip_byte(copy / name)
    with pytest.raises(FrozenModelError, match=name):
        frozen.load(str(copy), runtime)
    if name != DESCRIPTION:
        (copy / name).unlink()
        with pytest.raises(FrozenModelError, match=f"{name}: missing"):
            frozen.load(str(copy), runtime)


def test_damaged_model_reaches_no_library(copy: Path) -> None:
    """The same from outside: an audit hook sees every import and every file that is opened."""
    flip_byte(copy / "model.onnx")
    code = """if True:
        import sys
        from fruitcnn import frozen
        seen = []
        kinds = ("import", "open")
        sys.addaudithook(lambda event, arguments: event in kinds and seen.append(str(arguments[0])))
        try:
            frozen.load(sys.argv[1], "onnxruntime")
        except frozen.FrozenModelError:
            print(*seen, sep="\\n")
    """
    done = subprocess.run([sys.executable, "-c", code, copy], capture_output=True, text=True, timeout=60, check=True)
    seen = done.stdout.splitlines()
    assert str(copy / "model.onnx") in seen
    assert not [
        name for name in seen if name.split(".")[0] in ("onnxruntime", "onnx", "openvino", "tensorflow", "keras")
    ]


@pytest.mark.parametrize(("version", "remedy"), [(3, "use the fruitcnn that wrote it"), (1, "freeze its run again")])
def test_another_schema_is_refused_with_what_to_do(copy: Path, version: int, remedy: str) -> None:
    edit(copy, schema_version=version)
    with pytest.raises(FrozenModelError, match=rf"model\.json: got schema version {version}, wanted 2: {remedy}"):
        frozen.load(str(copy))


@pytest.mark.parametrize("labels", [[*CLASSES, "Durian"], [*CLASSES[:-1], "Durian"], [*reversed(CLASSES)]])
def test_changed_labels_are_refused(copy: Path, labels: list[str]) -> None:
    edit(copy, labels=labels)
    with pytest.raises(FrozenModelError, match=r"model\.json: changed after it was written"):
        frozen.load(str(copy))


def test_extra_label_under_a_new_seal_does_not_fit_the_golden_answers(copy: Path) -> None:
    reseal(copy, labels=(*CLASSES, "Durian"))
    with pytest.raises(FrozenModelError, match=r"golden\.npz.*do not fit the 7 labels"):
        frozen.load(str(copy))


@pytest.mark.parametrize("changed", ["probabilities", "unlike"])
@pytest.mark.parametrize("runtime", runtimes.RUNTIMES)
def test_changed_golden_answer_under_new_hashes_is_refused_by_every_runtime(
    copy: Path, runtime: str, changed: str
) -> None:
    with np.load(copy / GOLDEN) as archive:
        golden = {**archive}
    if changed == "probabilities":
        golden[changed][3, 1] += 2 * MAX_DIFFERENCE
    else:
        golden[changed][3] *= 1 + 2 * MAX_SCORE_DIFFERENCE
        golden[changed][3] += 2 * MAX_SCORE_DIFFERENCE
    np.savez(copy / GOLDEN, **golden)
    reseal(copy)
    with pytest.raises(FrozenModelError, match=f"runtime {runtime}: .* gives other answers than golden.npz"):
        frozen.load(str(copy), runtime)


def test_pickle_in_the_golden_file_is_not_run(copy: Path) -> None:
    np.savez(copy / GOLDEN, images=np.array([{}], dtype=object), probabilities=np.zeros(1))
    reseal(copy)
    with pytest.raises(FrozenModelError, match=r"golden\.npz.*allow_pickle"):
        frozen.load(str(copy))


def test_a_file_too_many_beside_the_saved_model_is_refused(copy: Path) -> None:
    (copy / "saved_model" / "saved_model.cpb").write_bytes(b"TensorFlow would read this instead")
    with pytest.raises(FrozenModelError, match=r"saved_model\.cpb: not one of the files that model\.json lists"):
        frozen.load(str(copy), "tensorflow")


@pytest.mark.parametrize(
    ("names", "problem"),
    [(("golden.npz", "saved_model/../../secret"), "leaves the folder"), (("model.onnx",), r"golden\.npz is not among")],
)
def test_a_list_of_files_that_cannot_be_is_refused(copy: Path, names: tuple[str, ...], problem: str) -> None:
    description, _ = read_description(str(copy))
    files = dict.fromkeys(names, description.files["model.onnx"])
    (copy / DESCRIPTION).write_bytes(description.model_copy(update={"files": files}).to_bytes())
    with pytest.raises(FrozenModelError, match=rf"model\.json: files: .*{problem}"):
        frozen.load(str(copy), "tensorflow")


def test_no_model_at_all_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FrozenModelError, match=r'no .*/nothing/model\.json: .* run "python -m jobs\.freeze'):
        frozen.load(str(tmp_path / "nothing"))


# Choosing a runtime


def answers_of(num_images: int, value: float, num_labels: int) -> Answers:
    return Answers(np.full((num_images, num_labels), value, np.float32), np.ones(num_images, np.float32))


def runtime_that(predict: Callable[..., object]) -> runtimes.Runtime:
    return runtimes.Runtime("model.onnx", predict)  # type: ignore[arg-type]


def test_auto_passes_over_a_runtime_with_other_answers(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uneven = runtime_that(lambda *_: lambda pixels: answers_of(len(pixels), 1 / 6, len(CLASSES)))
    monkeypatch.setitem(runtimes.FORMATS, "openvino", uneven)
    assert frozen.load(str(model)).runtime == "onnxruntime"
    with pytest.raises(FrozenModelError, match=r"runtime openvino: .*model\.onnx gives other answers"):
        frozen.load(str(model), "openvino")


def test_auto_passes_over_a_runtime_that_is_not_installed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert frozen.load(str(model)).runtime == "onnxruntime"
    with pytest.raises(FrozenModelError, match="runtime openvino: not installed"):
        frozen.load(str(model), "openvino")


def test_auto_takes_tensorflow_where_there_is_a_gpu(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "has_gpu", lambda: True)
    assert frozen.load(str(model)).runtime == "tensorflow"


@pytest.mark.parametrize("answer", [np.nan, np.inf])
def test_answers_that_are_no_numbers_are_no_golden_answers(answer: float) -> None:
    golden = frozen.Golden(pictures(2), answers_of(2, 1 / 6, 6))
    assert frozen.replay(lambda pixels: answers_of(len(pixels), 1 / 6, 6), golden).are_small
    assert frozen.replay(lambda pixels: answers_of(len(pixels), answer, 6), golden).probability == np.inf
    assert frozen.replay(lambda pixels: answers_of(len(pixels), 1 / 6, 5), golden).probability == np.inf
    scoreless = Answers(golden.answers.probabilities, np.full(2, answer, np.float32))
    assert frozen.replay(lambda pixels: scoreless, golden).score == np.inf


def test_check_proves_every_format(model: Path) -> None:
    proofs = {proof.format: proof for proof in frozen.check(str(model))}
    exact = {"openvino", "onnxruntime", "tensorflow", "keras", "frozen graph", "weights", "litert"}
    assert {*proofs} == exact | {"openvino, int8", "onnxruntime, int8"}
    assert all(proof.problem is None for proof in proofs.values())
    assert all(proofs[name].max_difference <= MAX_DIFFERENCE for name in exact)


def test_several_threads_may_predict_at_once(model: Path) -> None:
    for runtime in ("openvino", "onnxruntime"):
        loaded = frozen.load(str(model), runtime)
        batches = [pictures(5, seed) for seed in range(24)]
        expected = [loaded.predict(batch) for batch in batches]
        with ThreadPoolExecutor(4) as pool:
            assert all(np.array_equal(a, b) for a, b in zip(pool.map(loaded.predict, batches), expected, strict=True))


# On S3


@pytest.mark.s3
def test_bundle_on_s3_is_copied_once_and_a_half_copy_is_made_again(
    model: Path, s3_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.upload_directory(model, s3_prefix)
    cache = tmp_path / "cache"
    pixels = pictures(4)
    loaded = frozen.load(s3_prefix, cache_dir=str(cache))
    assert np.array_equal(loaded.predict(pixels), frozen.load(str(model)).predict(pixels))
    (copied,) = (cache / "models").glob("*/model.onnx")
    assert copied.parent.name == loaded.model_hash

    read: list[str] = []
    original = storage.read
    monkeypatch.setattr(bundle.storage, "read", lambda uri: read.append(uri) or original(uri))
    frozen.load(s3_prefix, cache_dir=str(cache))
    assert [storage.name(uri) for uri in read] == [DESCRIPTION], "the second time only model.json is fetched"

    copied.write_bytes(copied.read_bytes()[:100])
    assert np.array_equal(frozen.load(s3_prefix, cache_dir=str(cache)).predict(pixels), loaded.predict(pixels))
    assert frozen.verify(s3_prefix).labels == CLASSES


@pytest.mark.s3
def test_damage_on_s3_is_refused_by_name(copy: Path, s3_prefix: str, tmp_path: Path) -> None:
    flip_byte(copy / "model.onnx")
    storage.upload_directory(copy, s3_prefix)
    for act in (lambda: frozen.load(s3_prefix, cache_dir=str(tmp_path / "cache")), lambda: frozen.verify(s3_prefix)):
        with pytest.raises(FrozenModelError, match=f"{s3_prefix}/model.onnx: its sha256"):
            act()
    storage.delete(storage.join(s3_prefix, "model.onnx"))
    with pytest.raises(FrozenModelError, match=f"{s3_prefix}/model.onnx: missing"):
        frozen.load(s3_prefix, cache_dir=str(tmp_path / "cache"))
