"""native_output.py: a person's screen shows what native code says only where it fails."""

import os

import pytest

from fruitcnn.native_output import held_stderr


def test_what_is_said_while_all_goes_well_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with held_stderr():
        os.write(2, b"a greeting\n")
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "afterwards\n"


def test_what_is_said_before_a_failure_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        os.write(2, b"symbol not found\n")
        raise ImportError

    with pytest.raises(ImportError), held_stderr():
        fail()
    assert capfd.readouterr().err == "symbol not found\n"
