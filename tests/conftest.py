"""What tests share: a real S3 server (started only when a test asks for one), places to write, and pictures."""

import io
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from cluster.local_s3 import LocalS3, local_s3
from tests.disks import disk

# How long an example takes says something of the machine's other work, and nothing of the code.
settings.register_profile("fruitcnn", deadline=None)
settings.load_profile("fruitcnn")


@pytest.fixture(scope="session", autouse=True)
def _temporary_files_in_one_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What jobs and servers leave behind when they are killed lies with the files of the tests, and goes with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("t")))
        patch.setattr("tempfile.tempdir", None)  # looked up anew
        patch.setenv("RAY_TMPDIR", "/tmp")  # the path of a socket has at most 107 characters
        yield


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    """A local S3 server for the whole run; the AWS_* variables stand in os.environ, so child processes see them."""
    with local_s3(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for variable in [each for each in os.environ if each.startswith("AWS_")]:
            patch.delenv(variable)
        # A developer's own profiles must neither help nor break a test.
        settings = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
        for variable, value in (server.environment | settings).items():
            patch.setenv(variable, value)
        yield server


@pytest.fixture
def s3_prefix(s3: LocalS3) -> str:
    """An s3:// prefix that no other test has used."""
    return f"s3://{s3.bucket}/{uuid.uuid4().hex}"


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def any_prefix(request: pytest.FixtureRequest) -> str:
    """A fresh place to write: the test runs once on a local folder and once on S3."""
    if request.param == "s3":
        return str(request.getfixturevalue("s3_prefix"))
    return str(request.getfixturevalue("tmp_path") / "store")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder of a disk that is mounted for reading only."""
    with disk(tmp_path / "read-only", "size=1m,ro") as folder:
        yield folder


@pytest.fixture(scope="session")
def ray_session(s3: LocalS3) -> Iterator[None]:
    """The one Ray session of the whole run; after s3, so that its workers know the AWS_* variables too."""
    from jobs.session import ray_session

    with ray_session():
        yield


@pytest.fixture(autouse=True)
def _ray_for_those_who_ask(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """That another test of this process has started Ray changes nothing for a test that does not ask for it."""
    if "ray" in sys.modules and "ray_session" not in request.fixturenames:
        monkeypatch.setattr("fruitcnn.crew.is_ray_up", lambda: False)


@pytest.fixture(scope="session")
def fruits_zip() -> Path:
    """The Fruits-360 sample zip that FRUITCNN_FRUITS360 names."""
    return _file_from_environment("FRUITCNN_FRUITS360")


@pytest.fixture(scope="session")
def photos_zip() -> Path:
    """The zip of real photographs that FRUITCNN_PHOTOS names."""
    return _file_from_environment("FRUITCNN_PHOTOS")


def _file_from_environment(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: it names the zip this test needs")
    path = Path(value).absolute()
    if not path.is_file():
        pytest.skip(f"{variable}: there is no file {path}")
    return path


@pytest.fixture(scope="session")
def jpeg_bytes() -> Callable[..., bytes]:
    """A factory of JPEG files: jpeg_bytes(seed=0, width_px=100, height_px=100) -> bytes, the same for the same seed."""

    def make(seed: int = 0, width_px: int = 100, height_px: int = 100) -> bytes:
        coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        picture = Image.fromarray(coarse).resize((width_px, height_px), Image.Resampling.BICUBIC)
        picture.save(buffer, "JPEG", quality=90)
        return buffer.getvalue()

    return make
