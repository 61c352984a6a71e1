"""What a challenger must show to become champion: the YAML file of --thresholds. Before gate. Pure."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fruitcnn import storage
from fruitcnn.errors import UsageError


class Thresholds(BaseModel):
    """What a challenger must show; each is a line of the YAML file of --thresholds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_p: float = Field(0.02, gt=0, le=0.5, description="better: largest p of the paired test, one-sided")
    max_loss: float = Field(
        0.005, ge=0, lt=1, description="with more classes: largest loss of accuracy on the champion's classes that may "
        "still be possible (upper end of a one-sided 95 % interval)"
    )  # fmt: skip
    max_class_fall: float = Field(0.1, ge=0, le=1, description="largest fall of the accuracy of one class, 0..1")
    min_lost_rows: int = Field(3, ge=1, description="a class fell only if it lost at least this many pictures net")
    min_new_class_accuracy: float = Field(0.5, ge=0, le=1, description="smallest accuracy of a class that is new")
    min_first_accuracy: float = Field(0.5, ge=0, le=1, description="smallest accuracy of the first champion")
    allow_vanished: bool = Field(False, description="accept a challenger that lacks classes of the champion")
    min_speed: float = Field(0.5, ge=0, description="smallest speed, as a share of the champion's")
    max_growth: float = Field(2.0, gt=0, description="largest size, as a multiple of the champion's")
    max_bytes: int = Field(1_000_000_000, ge=1, description="largest size of a frozen model, bytes")


def read_thresholds(path: str | None) -> Thresholds:
    """The thresholds of a YAML file; without one the defaults. UsageError names what is wrong in it."""
    if path is None:
        return Thresholds()
    import yaml

    with storage.argument("--thresholds"):
        text = storage.read(path)
    try:
        return Thresholds.model_validate(yaml.safe_load(text) or {})
    except yaml.YAMLError as error:
        raise UsageError(f"--thresholds {path}: not YAML ({' '.join(str(error).split())})") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"--thresholds {path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
