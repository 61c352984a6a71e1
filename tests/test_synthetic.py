"""synthetic.py promises: the same fruit in every process, as Fruits-360 has it, not told apart by colour alone."""

import io
import subprocess
import sys

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fruitcnn import synthetic, synthetic_skin
from fruitcnn.synthetic import PREFIXES, class_names, draw_frame, frame_jpeg, frame_split, frames_of

ARGUMENTS = ("Pear 2", "r_", 5, 20, 3)


def test_a_frame_is_a_picture_on_white() -> None:
    pixels = draw_frame(*ARGUMENTS)
    assert pixels.shape == (100, 100, 3)
    assert pixels.dtype == np.uint8
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.min() > 235
    fruit = (pixels.min(2) < 200).mean()
    assert 0.15 < fruit < 0.8


def test_a_jpeg_is_that_frame_in_rgb() -> None:
    with Image.open(io.BytesIO(frame_jpeg(*ARGUMENTS))) as picture:
        assert picture.format == "JPEG"
        decoded = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(decoded - draw_frame(*ARGUMENTS)).mean() < 4


def test_another_process_draws_the_same_bytes() -> None:
    code = f"import sys; from fruitcnn.synthetic import frame_jpeg; sys.stdout.buffer.write(frame_jpeg{ARGUMENTS!r})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env={"PYTHONHASHSEED": "7"})
    assert out.stdout == frame_jpeg(*ARGUMENTS)


@pytest.mark.parametrize("other", [("Pear 3", "r_", 5, 20, 3), ("Pear 2", "", 5, 20, 3), ("Pear 2", "r_", 6, 20, 3)])
def test_class_rotation_and_frame_each_change_the_picture(other: tuple[str, str, int, int, int]) -> None:
    assert np.abs(draw_frame(*other).astype(int) - draw_frame(*ARGUMENTS)).mean() > 3


def test_the_seed_changes_the_picture_and_the_size_is_free() -> None:
    assert frame_jpeg(*ARGUMENTS[:4], 4) != frame_jpeg(*ARGUMENTS)
    assert draw_frame(*ARGUMENTS, size_px=64).shape == (64, 64, 3)


def test_any_class_name_draws_a_fruit() -> None:
    assert draw_frame("Dragon fruit", "r3_", 0, 10, 0).shape == (100, 100, 3)
    assert frame_jpeg("Dragon fruit", "", 0, 10, 0) == frame_jpeg("Dragon fruit", "", 0, 10, 0)


@pytest.mark.parametrize("num_classes", [2, 12, 72, 73, 300])
def test_class_names_are_distinct_sorted_and_only_added_to(num_classes: int) -> None:
    names = class_names(num_classes)
    assert len(set(names)) == num_classes
    assert names == sorted(names)
    assert set(names) < set(class_names(num_classes + 1))


@pytest.mark.parametrize("num_frames", [12, 60, 100, 101])
def test_frames_fill_the_rotations_and_test_lies_between_training_frames(num_frames: int) -> None:
    frames = frames_of(num_frames)
    assert len(frames) == num_frames
    for prefix in PREFIXES:
        numbers = [frame for each, frame, _ in frames if each == prefix]
        assert numbers == list(range(len(numbers)))
        assert {count for each, _, count in frames if each == prefix} == {len(numbers)}
        assert {frame_split(frame) for frame in numbers} == {"train", "test"}
        assert all(frame_split(frame - 1) == "train" for frame in numbers if frame_split(frame) == "test")


def test_varieties_of_a_family_share_their_mean_colour() -> None:
    colour = synthetic.FAMILIES["Orange"].colour
    area = np.sin((np.arange(synthetic_skin.HEIGHT_PX) + 0.5) * np.pi / synthetic_skin.HEIGHT_PX)
    for variety in range(1, 7):
        skin = synthetic_skin.texture("Orange", variety, colour, 0)
        mean = (skin * area[:, None, None]).sum((0, 1)) / (area.sum() * synthetic_skin.WIDTH_PX)
        assert np.allclose(mean, colour, atol=0.5)


def small_pictures(
    num_classes: int, num_frames: int
) -> dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.intp]]]:
    """Per split: 32x32 px pictures as rows of 3,072 numbers in 0..1, and labels."""
    rows: dict[str, list[npt.NDArray[np.float32]]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    for label, name in enumerate(class_names(num_classes)):
        for prefix, frame, count in frames_of(num_frames):
            small = cv2.resize(draw_frame(name, prefix, frame, count, 0), (32, 32), interpolation=cv2.INTER_AREA)
            rows[frame_split(frame)].append(small.reshape(-1).astype(np.float32) / 255)
            labels[frame_split(frame)].append(label)
    return {split: (np.array(rows[split]), np.array(labels[split])) for split in rows}


def test_a_linear_model_does_not_solve_it() -> None:
    """Multinomial logistic regression on 32x32 px pixels: well above chance, far from solved."""
    data = small_pictures(synthetic.DEFAULT_NUM_CLASSES, synthetic.DEFAULT_NUM_FRAMES)
    (train, labels), (test, test_labels) = data["train"], data["test"]
    mean, deviation = train.mean(0), train.std(0) + 0.05
    train, test = (train - mean) / deviation, (test - mean) / deviation
    wanted = np.eye(synthetic.DEFAULT_NUM_CLASSES, dtype=np.float32)[labels]
    # Gradient descent on the weights, written as train.T @ dual: the products stay small.
    likeness, dual = train @ train.T, np.zeros_like(wanted)
    for _ in range(200):
        scores = likeness @ dual
        chances = np.exp(scores - scores.max(1, keepdims=True))
        dual -= 0.01 / len(train) * (chances / chances.sum(1, keepdims=True) - wanted)
    assert ((likeness @ dual).argmax(1) == labels).mean() > 0.7, "it did learn"
    accuracy = ((test @ train.T @ dual).argmax(1) == test_labels).mean()
    print(f"linear accuracy on Test: {accuracy:.3f}")
    assert 0.25 < accuracy < 0.75
