"""What a training run is asked to do: config, presets and what identifies a run. Pure; train.py carries it out."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fruitcnn.presets import OF_PRETRAINED, PRESETS, PRETRAINED

ARCHITECTURES = ("small_cnn", "base_cnn", "custom_cnn", "vgg13", "lenet5", "alexnet")
_WITH_GHOSTS = ("small_cnn", "base_cnn")

# Where and how fast a run is carried out; everything else decides what comes out of it.
_EXECUTION = frozenset(
    {
        "dataset",
        "run",
        "num_workers",
        "min_workers",
        "cpus_per_worker",
        "use_gpu",
        "checkpoint_seconds",
        "keep_checkpoints",
    }
    | {"max_failures", "cache_dir", "cache_bytes", "preset", "dry_run"}
)


class Augmentation(BaseModel):
    """How a training picture may differ from the one on disk; drawn anew for every (seed, epoch, row)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flip: bool = Field(True, description="mirror left and right, every second time")
    rotate_degrees: float = Field(0.0, ge=0, le=180, description="largest turn in the picture's plane, degrees")
    shear_degrees: float = Field(0.0, ge=0, le=60, description="largest shear, degrees")
    zoom: float = Field(0.0, ge=0, lt=1, description="scale drawn from 1-zoom..1+zoom")
    zoom_axes: bool = Field(False, description="draw the scale of each axis by itself")
    shift: float = Field(0.0, ge=0, le=0.5, description="largest shift, as a share of the picture's size")
    brightness: float = Field(0.0, ge=0, lt=1, description="brightness drawn from 1-brightness..1+brightness")
    tint: float = Field(0.0, ge=0, lt=1, description="gain of each colour channel drawn from 1-tint..1+tint")
    contrast: float = Field(0.0, ge=0, lt=1, description="contrast drawn from 1-contrast..1+contrast")

    changed_share: float = Field(
        1.0, ge=0, le=1, description="share of the pictures that are moved and recoloured; the others are only mirrored"
    )

    @property
    def moves(self) -> bool:
        """Whether pixels change their place other than by mirroring."""
        return bool(self.rotate_degrees or self.shear_degrees or self.zoom or self.shift)

    @property
    def recolours(self) -> bool:
        """Whether pixels change their colour."""
        return bool(self.brightness or self.tint or self.contrast)


class TrainConfig(Augmentation):
    """Everything `jobs.train` is told."""

    dataset: str = Field(description="data set that jobs.shard wrote: a folder or s3://bucket/prefix")
    run: str = Field(
        description="where checkpoints, metrics and the result go: a folder or s3://bucket/prefix; the same command "
        "resumes there"
    )
    preset: Literal["speed", "seed", "best"] = Field(
        "speed",
        description="recipe that fills what is not given: speed (the shortest way to 98 %), seed (the reference "
        "recipe), best (the most accurate)",
    )
    num_workers: int = Field(
        1,
        ge=1,
        description="number of data-parallel training workers; 1:4 takes what the cluster has room for, and grows and "
        "shrinks with it",
    )
    min_workers: int = Field(0, ge=0, description="fewest workers of a run that grows and shrinks; 0 is a fixed number")
    cpus_per_worker: int = Field(0, ge=0, description="CPU threads of a worker; 0 shares the cluster's among them")
    use_gpu: bool = Field(False, description="one GPU per worker, mixed precision")
    architecture: Literal[
        "small_cnn", "base_cnn", "custom_cnn", "vgg13", "lenet5", "alexnet", "mobilenet_v2", "efficientnet_v2_b0"
    ] = Field("small_cnn", description="network by name; the last two take --weights")
    weights: str = Field(
        "",
        description="what mobilenet_v2 or efficientnet_v2_b0 starts with: imagenet (Keras downloads it), or the URI of "
        "a file of Keras weights without top (.h5)",
    )
    frozen_share: float = Field(
        0.3, ge=0, le=1, description="with --weights: share of the steps in which only the new last layer learns"
    )
    fine_tuning_rate: float = Field(
        0.1, gt=0, le=1, description="with --weights: factor on the learning rate once every layer learns"
    )
    input_px: int = Field(32, ge=8, le=1024, description="height and width of the network's input, px")
    global_batch_size: int = Field(64, ge=1, description="rows of one step over all workers together")
    ghost_rows: int = Field(32, ge=2, description="rows over which batch statistics are taken, whatever a worker holds")
    epochs: float = Field(0.0, ge=0, description="passes over the training rows; 0 follows images_seen")
    images_seen: int = Field(64_000, ge=1, description="training length in pictures where epochs is 0")
    max_epochs: int = Field(
        30, ge=1, description="passes after which images_seen is cut off: small data sets need fewer"
    )
    optimizer: Literal["adamw", "sgd", "rmsprop"] = Field("adamw", description="update rule")
    learning_rate: float = Field(4e-3, gt=0, description="largest learning rate")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay (adamw), per step times learning rate")
    schedule: Literal["constant", "cosine", "plateau"] = Field(
        "cosine",
        description="learning rate after the warm-up; plateau lowers it where the validation loss stands still",
    )
    warmup_share: float = Field(0.1, ge=0, lt=1, description="share of the steps over which the rate rises from zero")
    plateau_patience: int = Field(
        2, ge=1, description="validations without a lower loss after which schedule plateau lowers the rate"
    )
    plateau_factor: float = Field(0.3, gt=0, lt=1, description="what schedule plateau multiplies the rate with")
    early_stopping: int = Field(
        0, ge=0, description="validations without a lower loss after which training ends; 0 never ends it early"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="weight of a row's loss; balanced: rare classes count as much as frequent ones"
    )
    clip_norm: float = Field(
        0.0, ge=0, description="largest norm of all gradients together, summed over the workers; 0 does not clip"
    )
    weight_averaging: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay per step of the moving average of the weights, which is then what is validated and frozen; "
        "0 takes the last weights",
    )
    hold_out_groups: bool = Field(
        False,
        description="keep the last rotation group of every class that has several from training, and score its test "
        "pictures by themselves (leak_aware): how well the network knows views that it never saw",
    )
    validation_fraction: float = Field(
        0.05, gt=0, lt=1, description="share of the training rows kept for choosing the best checkpoint"
    )
    num_evaluations: int = Field(10, ge=1, description="validations over a run, evenly spaced, the last at its end")
    seed: int = Field(0, ge=0, description="seed of weights, order, augmentation and dropout")
    checkpoint_seconds: float = Field(60.0, gt=0, description="time between checkpoints, seconds")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints kept beside the best one")
    max_failures: int = Field(3, ge=0, description="restarts of the worker group after a lost worker or node")
    window_rows: int = Field(
        1 << 20,
        ge=256,
        description="rows shuffled together; where pictures are streamed, a smaller window needs less reading",
    )
    cache_dir: str = Field("", description="folder for decoded pixels on each node; empty takes the user's cache")
    cache_bytes: int = Field(
        0,
        ge=0,
        description="disk for decoded pixels on each node, bytes; where they need more, they are streamed, with the "
        "same result; 0 has no limit",
    )
    initial_model: str = Field(
        "", description="frozen model whose weights the run starts with; classes it does not know start fresh"
    )
    dry_run: bool = Field(
        False, description="only try a few steps, say what the run would take on 1 to 100 nodes, and write nothing"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if isinstance(given, dict):
            preset = PRESETS.get(given.get("preset", "speed"), {})
            preset = preset | (OF_PRETRAINED if given.get("architecture") in PRETRAINED else {})
            if "images_seen" in given:  # a length of one's own, whichever way the preset says it
                preset = {name: value for name, value in preset.items() if name != "epochs"}
            return preset | given
        return given

    @model_validator(mode="before")
    @classmethod
    def _split_range(cls, given: Any) -> Any:
        said = str(given.get("num_workers", 1)) if isinstance(given, dict) else "1"
        fewest, colon, most = said.partition(":")
        if not fewest.isdecimal() or (colon and not most.isdecimal()):
            raise ValueError(f"--num-workers: got {said}, wanted a whole number, or a range as in 1:4")
        return given | {"min_workers": fewest, "num_workers": most} if colon else given

    @model_validator(mode="after")
    def _weights_fit(self) -> TrainConfig:
        is_pretrained, names = self.architecture in PRETRAINED, " or ".join(PRETRAINED)
        if self.weights and not is_pretrained:
            raise ValueError(f"--weights: got {self.weights} with {self.architecture}, wanted --architecture {names}")
        if is_pretrained and not (self.weights or self.initial_model):
            raise ValueError(
                f"--weights: got none with {self.architecture}, wanted imagenet or the URI of a file of Keras weights"
            )
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainConfig:
        if self.min_workers > self.num_workers:
            raise ValueError(f"--num-workers: got {self.min_workers}:{self.num_workers}, wanted the smaller one first")
        rows = self.rows_of_a_piece
        whole = rows * (self.min_workers or self.num_workers)
        if self.global_batch_size % whole:
            raise ValueError(
                f"--global-batch-size: got {self.global_batch_size} with --num-workers {self.num_workers}, wanted a "
                f"multiple of {whole} (each worker takes the same number of rows"
                + (f", whole ghosts of --ghost-rows {rows}" if rows > 1 else "")
                + f"): try --global-batch-size {whole * max(1, round(self.global_batch_size / whole))}"
                + (" or fewer workers" if self.num_workers > 1 else "")
            )
        return self

    @property
    def rows_of_a_piece(self) -> int:
        """What a worker holds is made of these: ghosts where batch statistics are taken, single rows where none are."""
        return self.ghost_rows if self.architecture in _WITH_GHOSTS else 1

    def group_sizes(self) -> list[int]:
        """Return the numbers of workers, of those asked for, among which the global batch divides."""
        pieces = self.global_batch_size // self.rows_of_a_piece
        sizes = range(self.min_workers or self.num_workers, self.num_workers + 1)
        return [size for size in sizes if pieces % size == 0]

    def num_parts(self, num_rows: int, at_most: int) -> int:
        """Return into how many equal parts rows divide, each of whole ghosts where there are any, and none smaller."""
        numbers = range(2, at_most + 1)
        fit = [n for n in numbers if num_rows % (n * self.rows_of_a_piece) == 0 and num_rows // n >= self.ghost_rows]
        return max(fit, default=1)

    @property
    def augmentation(self) -> Augmentation:
        """The part of the config that augment.py needs."""
        return Augmentation(**{name: getattr(self, name) for name in Augmentation.model_fields})

    def num_images(self, num_rows: int) -> int:
        """Return how many training pictures the run sees, given the number of training rows."""
        return round(self.epochs * num_rows) if self.epochs else min(self.images_seen, self.max_epochs * num_rows)

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide what comes out of the run, as plain JSON values.

        The number of workers is not among them: the result does not depend on it.
        """
        return {name: value for name, value in self.model_dump(mode="json").items() if name not in _EXECUTION}


class TrainingChoices(BaseModel):
    """What a job that trains on the way lets people choose of the training; the preset decides the rest."""

    num_workers: int = Field(1, ge=1, description="number of data-parallel training workers")
    preset: Literal["speed", "seed", "best"] = Field("speed", description="training recipe: see jobs.train --help")
    architecture: str | None = Field(None, description="network by name: see jobs.train --help")
    weights: str | None = Field(None, description="what a pretrained network starts with: see jobs.train --help")
    input_px: int | None = Field(None, description="height and width of the network's input, px")
    global_batch_size: int | None = Field(None, description="rows of one step over all workers together")
    images_seen: int | None = Field(None, description="training length in pictures")
    use_gpu: bool = Field(False, description="one GPU per training worker, mixed precision")

    def training(self, **more: Any) -> TrainConfig:
        """The config of the training, with what `more` says. Raises ValidationError where the two do not fit."""
        given = {name: getattr(self, name) for name in TrainingChoices.model_fields}
        return TrainConfig(**{name: value for name, value in given.items() if value is not None}, **more)
