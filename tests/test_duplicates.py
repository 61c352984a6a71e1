"""duplicates.py: a picture hardly changed is a near-duplicate, another one is none."""

import numpy as np
from PIL import Image

from fruitcnn import duplicates


def pictures(num: int, seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (num, 6, 6, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(each).resize((32, 32), Image.Resampling.BICUBIC)) for each in coarse])


def test_slightly_changed_pictures_are_counted_and_others_are_not() -> None:
    train = pictures(300, 0)
    darker = (train[:5] * 0.9).astype(np.uint8)
    found = duplicates.count(np.concatenate([darker, pictures(20, 1)]), train)
    assert (found.num_test, found.num_near, found.num_train) == (25, 5, 300)


def test_hashes_are_those_of_imagehash() -> None:
    import imagehash

    (picture,) = pictures(1, 2)
    (ours,) = duplicates.hashes(picture[None])
    assert int.from_bytes(ours.tobytes(), "big") == int(str(imagehash.phash(Image.fromarray(picture))), 16)


def test_what_the_accuracy_is_worth_is_said_with_its_figures() -> None:
    near = duplicates.NearDuplicates(num_test=200, num_near=150, num_train=900)
    first, second = duplicates.worth({"leak_aware": {"accuracy": 0.75, "num_rows": 40}}, near)
    assert "Of 200 test pictures, 150 (75%)" in first
    assert "leak_aware, 75.00% of 40 pictures" in second
    assert "--hold-out-groups" in duplicates.worth({"test": {"accuracy": 1.0, "num_rows": 40}}, None)[0]
