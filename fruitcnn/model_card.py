"""What a frozen model says about itself in words: MODEL_CARD.md, for people. Called by freezing. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from fruitcnn.bundle import Description
from fruitcnn.snippets import snippets

_FILES = {
    "model.onnx": "ONNX; uint8 `image` (N, H, W, 3) -> `probabilities`, `unlike`; ONNX Runtime, OpenVINO, browsers",
    "saved_model/": "TensorFlow; signatures `serving_default` (uint8 `image`) and `encoded` (JPEG or PNG bytes)",
    "model.tflite": "LiteRT, for phones; signature `serving_default`, uint8 `image` -> `probabilities`, `unlike`",
    "frozen_graph.pb": "TensorFlow graph without variables; `image:0` -> `probabilities:0`, `unlike:0`",
    "model.keras": "Keras 3, to go on training; opens without fruitcnn",
    "cnn_fruit.weights.h5": "the weights alone",
    "golden.npz": "images with the answers that any runtime must give, without pickle",
    "statistics.npz": "what `unlike` is computed from: features -> directions, centres, scale of each centre",
    "model.json": "everything about the model, with the sha256 of every file",
}


def render(description: Description) -> str:
    """Return the card as Markdown."""
    return (
        "\n".join(
            [
                *_head(description),
                *_training(description),
                *_unsure(description),
                *_agreement(description),
                *_use(description),
            ]
        )
        + "\n"
    )


def _head(description: Description) -> Iterator[str]:
    height, width = description.input_px
    yield f"# {description.architecture}, {len(description.labels)} classes\n"
    yield f"Takes RGB pictures of {height}x{width} px (uint8) and returns one probability for each class."
    yield "How bytes become these pixels is stated in model.json under `preprocessing`.\n"
    yield "Classes: " + ", ".join(description.labels) + "\n"


def _training(description: Description) -> Iterator[str]:
    training, dataset = description.training, description.dataset
    yield "## Training and accuracy\n"
    yield f"- data set: {dataset['uri']}, version {dataset['version']}, manifest sha256 {dataset['manifest_sha256']}"
    yield f"- checkpoint {training['checkpoint']} of {training['run']}, {training['images_seen']:,} pictures seen"
    for split, score in description.metrics.items():
        measured = f"accuracy {score['accuracy']:.4f}, loss {score['loss']:.4f}"
        yield f"- {split}: {measured}, on {score['num_rows']:,} pictures"
    if near := description.near_duplicates:
        yield (
            f"- of {near.num_test:,} test pictures, {near.num_near:,} ({near.num_near / near.num_test:.0%}) have a "
            f"near-duplicate among {near.num_train:,} training pictures (perceptual hashes within {near.max_distance} "
            "of 64 bits)"
        )
    yield from _meaning(description)
    yield "- configuration: " + ", ".join(f"{name}={value}" for name, value in training["config"].items()) + "\n"


def _meaning(description: Description) -> Iterator[str]:
    if "leak_aware" in description.metrics:
        yield (
            "- leak_aware is the score on rotations that were held out of training: how well the network knows views "
            "it never saw; test is mostly frames between frames that it did see"
        )
    else:
        yield (
            "- where frames of one turning object lie on both sides, the test score says how well the network knows "
            "these very objects; train with --hold-out-groups for the score on views it never saw"
        )


def _unsure(description: Description) -> Iterator[str]:
    limits = description.limits
    yield "## When it does not know\n"
    yield (
        "Beside the probabilities, the model answers `unlike`: how far a picture is from all training pictures, in "
        "units of its nearest class (19 of 20 training pictures are below 1). An answer is unsure where\n"
    )
    yield f"- `unlike` is above {limits.max_unlike:.4g}: no training picture is like it (`unlike-training`);"
    yield f"- the two greatest probabilities differ by less than {limits.min_margin:.4g} (`ambiguous`).\n"
    yield (
        f"These limits answer about {limits.answer_share:.1%} of familiar pictures (--answer-share); they come from "
        f"{limits.num_train_rows:,} training and {limits.num_validation_rows:,} validation pictures. "
        f"The logits were divided by {limits.temperature:.3g}, so that a confidence is the share of right answers.\n"
    )


def _agreement(description: Description) -> Iterator[str]:
    yield f"## Formats, compared with Keras on pictures of the {description.compared_split} split\n"
    yield "| runtime | file | pictures | same top-1 | largest difference | of `unlike`, relative |"
    yield "|---|---|---|---|---|---|"
    for each in description.agreement:
        yield (
            f"| {each.format} | {each.file} | {each.num_images:,} | {each.same_top1:.2%} | {each.max_difference:.1e} | "
            f"{each.score_difference:.1e} |"
        )
    yield "\nThe signature `encoded` decodes and resizes itself, nearly as fruitcnn does; it ignores EXIF orientation."
    yield "\n| file | what it is |\n|---|---|"
    yield from (f"| {name} | {what} |" for name, what in _FILES.items())


def _use(description: Description) -> Iterator[str]:
    height, width = description.input_px
    yield f"""
## Loading it

Each of these is whole: run in the folder of the model, beside a `picture.jpg`. `unlike` is a second output of every
format; the limits are above. With fruitcnn, hashes and golden answers checked (uint8, N x {height} x {width} x 3):

```python
from fruitcnn import frozen

model = frozen.load("MODEL")
answers = model.answer(pixels)  # answers.probabilities, answers.unlike
causes = model.causes(answers)  # None where the answer stands
```
"""
    yield from (each.markdown() for each in snippets(height, width))
