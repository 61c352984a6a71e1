"""What the model card says about the rights to the pictures, from the place they came from."""

import zipfile
from pathlib import Path

import pytest

from fruitcnn import licence


@pytest.mark.parametrize("name", ["LICENSE", "fruits-360/LICENSE", "a/b/LICENSE.txt"])
def test_a_zip_says_it_in_its_license_file(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("fruits-360/Training/Apple/LICENSE/0.jpg", b"")
        archive.writestr(name, "\n\n# MIT License\n\nCopyright")
    assert licence.of_source(str(tmp_path / "a.zip")) == "MIT License"


def test_a_folder_says_it_too(any_prefix: str) -> None:
    from fruitcnn import storage

    storage.write(storage.join(any_prefix, "LICENSE.txt"), b"CC BY 4.0")
    assert licence.of_source(any_prefix) == "CC BY 4.0"


def test_what_says_nothing_or_is_gone_has_none(tmp_path: Path) -> None:
    (tmp_path / "broken.zip").write_bytes(b"PK no archive")
    for source in (tmp_path, tmp_path / "gone", tmp_path / "broken.zip", tmp_path / "gone.tar.gz", "kaggle:no/such"):
        assert licence.of_source(str(source)) is None


def test_drawn_pictures_are_free() -> None:
    assert "free" in str(licence.of_source("synthetic:6x80"))
