"""What freezing promises: formats that agree with Keras or no model, files that open elsewhere, nothing overwritten."""

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from fruitcnn import agreement, frozen, images, runtimes, storage
from fruitcnn.agreement import choose_golden, take_sample
from fruitcnn.bundle import Description, FrozenModelError, read_description
from fruitcnn.errors import UsageError
from fruitcnn.familiar import Answers
from fruitcnn.freeze_config import FreezeConfig
from fruitcnn.freezing import freeze
from fruitcnn.manifest import load_manifest
from jobs.freeze import main
from tests import frozen_run
from tests.frozen_run import CLASSES, INPUT_PX, Frozen, no_progress

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Frozen:
    return frozen_run.bundle(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def description(made: Frozen) -> Description:
    return read_description(str(made.model))[0]


def again(made: Frozen, model: Path | str, run: str = "") -> Description:
    return freeze(FreezeConfig(run=run or made.run, model=str(model), num_golden=8), no_progress)


# Agreement


def test_every_format_is_compared_and_within_bounds(description: Description) -> None:
    found = {each.format: each for each in description.agreement}
    bf16 = {runtimes.BF16} if runtimes.has_bf16() else set()
    assert {*found} == {*runtimes.FORMATS, *runtimes.QUANTISED, "saved model, encoded"} | bf16
    for each in description.agreement:
        assert each.num_images == 48, "all of a small test split"
        assert each.is_bound == (each.format in runtimes.FORMATS)
        if each.format in runtimes.QUANTISED:
            continue
        assert each.same_top1 >= (agreement.MIN_SAME_TOP1 if each.is_bound else 0.95)
        assert each.max_difference <= (frozen.MAX_DIFFERENCE if each.is_bound else frozen.MAX_BF16_DIFFERENCE)


def test_what_int8_costs_is_measured(description: Description) -> None:
    """The weights are drawn at random, so its answers may be some way off; that they are not the same shows it is."""
    found = {each.format: each for each in description.agreement}
    for name in runtimes.QUANTISED:
        assert 0.8 <= found[name].same_top1 <= 1
        assert 0 < found[name].max_difference < 0.5
        assert found[name].accuracy is not None
    sizes = [description.files[name].num_bytes for name in (runtimes.INT8, runtimes.ONNX)]
    assert sizes[0] < 0.7 * sizes[1]
    assert all(found[name].images_per_second and found[name].one_image_ms for name in runtimes.FORMATS)


def test_formats_are_chosen_and_what_the_jobs_read_is_always_there(made: Frozen, tmp_path: Path) -> None:
    config = FreezeConfig(run=made.run, model=str(tmp_path / "model"), formats=("tflite",))
    found = freeze(config, no_progress)
    assert {name.split("/")[0] for name in found.files} == {
        "model.onnx", "model.keras", "saved_model", "model.tflite", "golden.npz", "statistics.npz", "MODEL_CARD.md",
        "card",
    }  # fmt: skip
    assert "frozen graph" not in {each.format for each in found.agreement}
    assert [each.problem for each in frozen.check(str(tmp_path / "model"))] == [None] * 5
    assert "cnn_fruit.weights.h5" not in (tmp_path / "model" / "MODEL_CARD.md").read_text()
    with pytest.raises(UsageError, match=r"holds this model without cnn_fruit\.weights\.h5, frozen_graph\.pb; name"):
        again(made, tmp_path / "model")


def test_no_model_where_a_format_disagrees(made: Frozen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sloppy(folder: Path, description: Description, num_threads: int) -> runtimes.Predict:
        right = runtimes.RUNTIMES["onnxruntime"].open(folder, description, num_threads)
        return lambda pixels: Answers(right(pixels).probabilities + np.float32(2e-4), right(pixels).unlike)

    monkeypatch.setitem(runtimes.FORMATS, "openvino", runtimes.Runtime("model.onnx", sloppy))
    with pytest.raises(FrozenModelError, match=r"no model was written.*\nopenvino \(model\.onnx\): 100\.00%"):
        again(made, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_numbers_that_are_none_disagree() -> None:
    wrong = agreement.Agreement(format="x", file="y", num_images=1, same_top1=1.0, max_difference=float("nan"))
    with pytest.raises(FrozenModelError, match=r"x \(y\)"):
        agreement.require((wrong,))


def test_dropout_and_flatten_freeze_too(tmp_path: Path) -> None:
    """The reference network: Keras's Dropout has a state that the training twin has not, its Flatten follows NHWC."""
    import keras

    from fruitcnn import export
    from fruitcnn.models import build_model
    from fruitcnn.scored import with_score

    weights = frozen_run.random_weights("custom_cnn", 1)
    twin = build_model("custom_cnn", (INPUT_PX, INPUT_PX), len(CLASSES), ghost_rows=32)
    twin.set_weights(weights)
    pixels = RANDOM.integers(0, 256, (6, INPUT_PX, INPUT_PX, 3), dtype=np.uint8)
    expected = keras.ops.convert_to_numpy(twin(pixels, training=False))
    plain = export.plain_model("custom_cnn", (INPUT_PX, INPUT_PX), len(CLASSES), weights)
    export.write_formats(with_score(plain), tmp_path)
    for name in ("openvino", "onnxruntime", "tensorflow", "frozen graph"):
        answers = runtimes.FORMATS[name].open(tmp_path, None, 1)(pixels)  # type: ignore[arg-type]
        assert np.abs(answers.probabilities - expected).max() <= frozen.MAX_DIFFERENCE
    with pytest.raises(FrozenModelError, match="its arrays do not fit custom_cnn with 7 classes"):
        export.plain_model("custom_cnn", (INPUT_PX, INPUT_PX), 7, weights)


# Files that open elsewhere


def test_keras_file_opens_without_fruitcnn(made: Frozen) -> None:
    code = """if True:
        import sys
        sys.modules["fruitcnn"] = None
        import keras, numpy
        golden = numpy.load(sys.argv[1] + "/golden.npz", allow_pickle=False)
        model = keras.saving.load_model(sys.argv[1] + "/model.keras")
        found = model(golden["images"], training=False)
        answers = {name: keras.ops.convert_to_numpy(each) for name, each in found.items()}
        print(abs(answers["probabilities"] - golden["probabilities"]).max() <= 1e-4, model.input.name, *answers)
    """
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code, made.model], capture_output=True, text=True, timeout=200, env=quiet, check=True
    )
    assert done.stdout.split() == ["True", "image", "probabilities", "unlike"]


def test_onnx_has_named_ends_a_free_batch_and_one_transposition(made: Frozen) -> None:
    proto = onnx.load(made.model / "model.onnx")
    onnx.checker.check_model(proto, full_check=True)
    (image,), outputs = proto.graph.input, proto.graph.output
    shapes = [[d.dim_param or d.dim_value for d in each.type.tensor_type.shape.dim] for each in (image, *outputs)]
    assert (image.name, *(each.name for each in outputs)) == ("image", "probabilities", "unlike")
    assert shapes == [["batch", INPUT_PX, INPUT_PX, 3], ["batch", len(CLASSES)], ["batch"]]
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("Transpose") == 1, "from the picture's layout to the convolutions', and never back"
    assert "BatchNormalization" not in kinds, "folded into the convolutions"
    assert {node.domain for node in proto.graph.node} == {""}
    assert [(each.domain, each.version) for each in proto.opset_import if not each.domain] == [("", 17)]


def test_saved_model_and_graph_carry_the_names_in_the_description(made: Frozen, description: Description) -> None:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(made.model / "saved_model"))
    wanted = description.tensors["saved_model"]
    assert {*loaded.signatures} == {*wanted} == {"serving_default", "encoded"}
    for name, signature in loaded.signatures.items():
        assert {*signature.structured_input_signature[1]} == {wanted[name]["input"]}
        assert {*signature.structured_outputs} == {wanted[name]["output"], wanted[name]["score"]}
    definition = tf.compat.v1.GraphDef.FromString((made.model / "frozen_graph.pb").read_bytes())
    names = {f"{node.name}:0" for node in definition.node}
    assert {*description.tensors["frozen_graph.pb"].values()} <= names
    assert not [node.name for node in definition.node if "Variable" in node.op]


def test_card_says_how_to_load_each_file(made: Frozen, description: Description) -> None:
    card = (made.model / "MODEL_CARD.md").read_text()
    assert all(name.split("/")[0] in card for name in {*description.files} - {"MODEL_CARD.md"})
    assert all(f"| {each.format} | {each.file} |" in card for each in description.agreement)


def test_card_shows_data_classes_training_and_what_was_confused(made: Frozen, description: Description) -> None:
    card = (made.model / "MODEL_CARD.md").read_text()
    pictures = re.findall(r"\]\((card/[^)]*)\)", card)
    assert {*pictures} == {name for name in description.files if name.startswith("card/")}
    assert len(pictures) == 4
    assert all(Image.open(made.model / name).size[0] > 100 for name in pictures)
    for name in CLASSES:
        assert re.search(rf"^\| {re.escape(name)} \| 8 \| [\d.]+% \|$", card, re.MULTILINE)
    for words in ("their licence: not known", "## Known limits", " taken for ", "pictures/s"):
        assert words in card, words


def test_description_tells_where_the_model_comes_from(made: Frozen, description: Description) -> None:
    assert description.labels == CLASSES
    assert description.dataset["manifest_sha256"] == load_manifest(made.dataset).sha256
    assert description.training["config"]["architecture"] == description.architecture == "base_cnn"
    assert description.metrics["test"]["accuracy"] == 0.5
    assert "cv2.INTER_AREA" in description.preprocessing["statement"]
    assert {"keras", "onnx", "openvino"} <= {*description.versions}


# Bytes decoded in the graph


def jpeg(width_px: int, height_px: int, mode: str = "RGB") -> bytes:
    return picture(width_px, height_px, mode, "JPEG")


def picture(width_px: int, height_px: int, mode: str, kind: str) -> bytes:
    coarse = RANDOM.integers(0, 256, (9, 7, len(mode)), dtype=np.uint8).squeeze()
    buffer = io.BytesIO()
    Image.fromarray(coarse, mode).resize((width_px, height_px), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        jpeg(100, 100), jpeg(INPUT_PX, INPUT_PX), jpeg(301, 77), jpeg(13, 9), jpeg(640, 480), jpeg(90, 50, "L"),
        picture(60, 80, "RGB", "PNG"), picture(60, 80, "RGBA", "PNG"), picture(31, 20, "L", "PNG"),
    ],
)  # fmt: skip
def test_graph_decodes_nearly_as_images_does(data: bytes) -> None:
    from fruitcnn.encoded import decode_batch

    (pixels,) = decode_batch(np.array([data], dtype=object), (INPUT_PX, INPUT_PX)).numpy()
    ours = images.decode(data, (INPUT_PX, INPUT_PX)).pixels
    assert pixels.shape == ours.shape
    assert np.abs(pixels.astype(float) - ours).mean() < 2.0, "of 255"


def test_encoded_signature_takes_a_mixed_batch(made: Frozen) -> None:
    files = [jpeg(100, 100), picture(60, 80, "RGBA", "PNG"), jpeg(301, 77)]
    pixels = np.stack([images.decode(data, (INPUT_PX, INPUT_PX)).pixels for data in files])
    answers = runtimes.open_encoded(made.model)(files)
    assert np.abs(answers.probabilities - frozen.load(str(made.model)).predict(pixels)).max() < 0.05


def test_encoded_signature_refuses_what_is_no_picture(made: Frozen) -> None:
    with pytest.raises(ValueError, match="encoded: got a file that TensorFlow does not decode"):
        runtimes.open_encoded(made.model)([jpeg(100, 100), b"\x89PNG\r\n\x1a\nnothing behind it"])


# The destination


def test_the_same_again_changes_nothing(made: Frozen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "write", lambda *_: pytest.fail("written"))
    monkeypatch.setattr(storage, "put_if_absent", lambda *_: pytest.fail("written"))
    before = {path: path.stat().st_mtime_ns for path in made.model.rglob("*")}
    assert again(made, made.model) == read_description(str(made.model))[0]
    assert {path: path.stat().st_mtime_ns for path in made.model.rglob("*")} == before


def test_another_model_is_not_overwritten(made: Frozen, tmp_path: Path) -> None:
    other = frozen_run.write_run(tmp_path / "run", made.dataset, seed=1)
    with pytest.raises(UsageError, match=r"--model .*: holds another model .*step-00000007.*name another folder"):
        again(made, made.model, other)


def test_a_damaged_model_is_not_taken_for_done(made: Frozen, tmp_path: Path) -> None:
    model = Path(shutil.copytree(made.model, tmp_path / "model"))
    (model / "model.keras").write_bytes(b"")
    with pytest.raises(FrozenModelError, match=r"model\.keras: its sha256"):
        again(made, model)


def test_a_folder_with_other_things_is_refused(made: Frozen, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"not empty, and no frozen model \(holiday\.jpg\)"):
        again(made, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_place_that_cannot_be_written_is_told_before_the_work(
    made: Frozen, read_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fruitcnn.freezing._build", lambda *_: pytest.fail("it began"))
    with pytest.raises(
        UsageError, match=rf"--model: {read_only}/new/MODEL_CARD.md: read-only file system: name another"
    ):
        again(made, read_only / "new")


@pytest.mark.s3
def test_freezing_to_s3_finishes_a_stopped_one(made: Frozen, s3_prefix: str, tmp_path: Path) -> None:
    storage.write(storage.join(s3_prefix, "model.onnx"), b"half of an earlier fr")
    found = again(made, s3_prefix)
    assert frozen.verify(s3_prefix) == found
    pixels = RANDOM.integers(0, 256, (4, INPUT_PX, INPUT_PX, 3), dtype=np.uint8)
    there = frozen.load(s3_prefix, cache_dir=str(tmp_path)).predict(pixels)
    assert np.array_equal(there, frozen.load(str(made.model)).predict(pixels))


# The run and the data set


def test_unfinished_run_says_what_to_run(made: Frozen, tmp_path: Path) -> None:
    run = shutil.copytree(made.run, tmp_path / "run")
    (run / "result.json").unlink()
    with pytest.raises(UsageError, match=r'no .*result\.json: .*run "python -m jobs\.train'):
        again(made, tmp_path / "model", str(run))


def test_checkpoint_with_a_flipped_byte_is_refused(made: Frozen, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made.run, tmp_path / "run"))
    weights = run / "checkpoints" / "step-00000007" / "weights.npz"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"weights\.npz: its sha256 differs"):
        again(made, tmp_path / "model", str(run))


def test_data_set_with_other_classes_is_refused(made: Frozen, tmp_path: Path) -> None:
    dataset = Path(shutil.copytree(made.dataset, tmp_path / "dataset"))
    manifest = load_manifest(str(dataset))
    other = manifest.model_copy(update={"classes": (*CLASSES[:-1], "Durian")})
    (dataset / "manifest.json").write_bytes(other.to_bytes())
    config = FreezeConfig(run=made.run, model=str(tmp_path / "model"), dataset=str(dataset))
    with pytest.raises(UsageError, match=r"--dataset .*: its classes are not those of the run"):
        freeze(config, no_progress)


@pytest.mark.parametrize("num_images", [1, 7, 48, 1000])
def test_sample_is_spread_over_the_test_split(made: Frozen, num_images: int) -> None:
    sample = take_sample(made.dataset, load_manifest(made.dataset), num_images, (INPUT_PX, INPUT_PX))
    assert sample.split == "test"
    assert len(sample.pixels) == len(sample.labels) == len(sample.encoded) == min(num_images, 48)
    counts = np.bincount(sample.labels, minlength=len(CLASSES))
    assert np.ptp(counts) <= 1
    assert np.array_equal(sample.pixels[0], images.decode(sample.encoded[0], (INPUT_PX, INPUT_PX)).pixels)


def test_golden_images_show_every_class_and_the_least_sure() -> None:
    labels = np.repeat(np.arange(10), 10)
    probabilities = np.full((100, 10), 0.1, np.float32)
    probabilities[:, 0] = np.linspace(0.99, 0.2, 100)
    chosen = choose_golden(labels, probabilities, 20)
    assert len(chosen) == len({*chosen}) == 20
    assert {*labels[chosen]} == {*range(10)}
    assert {*range(91, 100)} <= {*chosen}
    assert [*chosen] == sorted(chosen)
    assert len(choose_golden(labels[:5], probabilities[:5], 20)) == 5


@pytest.mark.parametrize("given", [{}, {"run": "r"}, {"model": "m"}, {"run": "r", "model": "m", "check": "c"}])
def test_either_freeze_or_check(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="either --run RUN --model MODEL, to freeze, or --check MODEL"):
        FreezeConfig(**given)


# The job


def job(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.freeze", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_freeze_shows_a_table_and_its_progress_and_nothing_else(made: Frozen, tmp_path: Path) -> None:
    done = job("--run", made.run, "--model", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("same top-1 on 100.00% of 48 images") >= len(runtimes.FORMATS) + 1
    assert (runtimes.BF16 in done.stdout) == runtimes.has_bf16()
    assert str(tmp_path / "model") in done.stdout
    assert all(line.startswith("freeze: ") for line in done.stderr.splitlines()), done.stderr


def test_check_shows_a_table(made: Frozen, capsys: pytest.CaptureFixture[str]) -> None:
    main(FreezeConfig(check=str(made.model)))
    shown = capsys.readouterr().out
    formats = runtimes.FORMATS | runtimes.QUANTISED
    assert all(f"  {name}" in shown for name in formats)
    assert shown.count("golden answers within") == len(formats)


@pytest.mark.parametrize(("group", "name"), [("FORMATS", "openvino"), ("QUANTISED", "openvino, int8")])
def test_check_fails_where_a_runtime_answers_otherwise(
    made: Frozen, monkeypatch: pytest.MonkeyPatch, group: str, name: str
) -> None:
    file = getattr(runtimes, group)[name].file
    wrong = Answers(np.eye(6, dtype=np.float32)[:1], np.zeros(1, np.float32))
    always = runtimes.Runtime(file, lambda *_: lambda pixels: Answers(*(each.repeat(len(pixels), 0) for each in wrong)))
    monkeypatch.setitem(getattr(runtimes, group), name, always)
    with pytest.raises(FrozenModelError, match=rf"{name} \({file}\): its answers differ"):
        main(FreezeConfig(check=str(made.model)))


def test_check_of_a_damaged_model_fails_by_name(made: Frozen, tmp_path: Path) -> None:
    model = Path(shutil.copytree(made.model, tmp_path / "model"))
    (model / "frozen_graph.pb").write_bytes(b"x")
    done = job("--check", model)
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "frozen_graph.pb: its sha256" in done.stderr
    assert "Traceback" not in done.stderr
