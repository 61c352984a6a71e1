"""What a frozen model says about itself: MODEL_CARD.md, for people. Called by freezing; its pictures: card_pictures."""

from __future__ import annotations

from collections.abc import Iterator

from fruitcnn.bundle import Description
from fruitcnn.class_scores import Confusion
from fruitcnn.duplicates import worth
from fruitcnn.snippets import snippets

_FILES = {
    "model.onnx": "ONNX; uint8 `image` (N, H, W, 3) -> `probabilities`, `unlike`; ONNX Runtime, OpenVINO, browsers",
    "saved_model/": "TensorFlow; signatures `serving_default` (uint8 `image`) and `encoded` (JPEG or PNG bytes)",
    "model.tflite": "LiteRT, for phones; signature `serving_default`, uint8 `image` -> `probabilities`, `unlike`",
    "model.int8.onnx": "ONNX with convolutions in 8-bit integers: smaller and faster, answers near the others; not "
    "used by fruitcnn itself",
    "frozen_graph.pb": "TensorFlow graph without variables; `image:0` -> `probabilities:0`, `unlike:0`",
    "model.keras": "Keras 3, to go on training; opens without fruitcnn",
    "cnn_fruit.weights.h5": "the weights alone",
    "golden.npz": "images with the answers that any runtime must give, without pickle",
    "card/": "the pictures of this page",
    "statistics.npz": "what `unlike` is computed from: features -> directions, centres, scale of each centre",
    "model.json": "everything about the model, with the sha256 of every file",
}


_NUM_WORST = 12
_NUM_MISTAKES = 10


def render(description: Description, found: Confusion) -> str:
    """Return the card as Markdown. found: on the pictures that the formats were compared on."""
    return (
        "\n".join(
            [
                *_head(description),
                *_data(description),
                *_training(description),
                *_classes(description, found),
                *_unsure(description),
                *_limits(description, found),
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


def _data(description: Description) -> Iterator[str]:
    dataset = description.dataset
    yield "## Data and classes\n"
    yield f"- pictures: {dataset['source']}; " + ", ".join(f"{n:,} {split}" for split, n in dataset["num_rows"].items())
    yield f"- their licence: {dataset['licence'] or 'not known (jobs.freeze --data-licence states it)'}"
    yield f"- data set: {dataset['uri']}, version {dataset['version']}, manifest sha256 {dataset['manifest_sha256']}\n"
    yield "![a picture of each class](card/classes.png)\n"
    yield "Classes: " + ", ".join(description.labels) + "\n"


def _training(description: Description) -> Iterator[str]:
    training = description.training
    yield "## Training and accuracy\n"
    yield "![loss and accuracy over training](card/curves.png)\n"
    yield f"- checkpoint {training['checkpoint']} of {training['run']}, {training['images_seen']:,} pictures seen"
    for split, score in description.metrics.items():
        measured = f"accuracy {score['accuracy']:.4f}, loss {score['loss']:.4f}"
        yield f"- {split}: {measured}, on {score['num_rows']:,} pictures"
    yield from (f"- {sentence}" for sentence in worth(description.metrics, description.near_duplicates))
    yield "- configuration: " + ", ".join(f"{name}={value}" for name, value in training["config"].items()) + "\n"


def _classes(description: Description, found: Confusion) -> Iterator[str]:
    labels, worst = description.labels, found.worst_first()
    yield f"## Accuracy of each class, {found.counts.sum():,} pictures of the {description.compared_split} split\n"
    yield "![accuracy of each class](card/accuracy.png)\n"
    yield "| class | pictures | right |\n|---|---|---|"
    rows = [f"| {labels[each]} | {found.num_rows[each]:,} | {found.accuracies[each]:.1%} |" for each in worst]
    yield from rows[:_NUM_WORST]
    if rest := rows[_NUM_WORST:]:
        yield f"\n<details><summary>The other {len(rest)} classes</summary>\n"
        yield "| class | pictures | right |\n|---|---|---|"
        yield from rest
        yield "\n</details>"
    yield "\n![what was taken for what](card/confusion.png)\n"
    mistakes = list(found.mistakes())
    for truth, taken, number in mistakes[:_NUM_MISTAKES]:
        yield f"- {labels[truth]} taken for {labels[taken]}: {number:,} of {found.num_rows[truth]:,}"
    if not mistakes:
        yield "No picture was taken for another class."
    yield ""


def _limits(description: Description, found: Confusion) -> Iterator[str]:
    """What somebody who is about to use the model must know, and can be said of any."""
    worst = found.worst_first()
    yield "## Known limits\n"
    yield (
        "- It knows its classes and no others, one object a picture, as its training pictures show them. A photograph "
        "with other light, background or several objects is another task than the test split: measure it with "
        "`jobs.evaluate` on pictures of your own before you rely on it."
    )
    if "leak_aware" not in description.metrics:
        yield "- The test score may be of nearly the same pictures as training saw (above); on new objects expect less."
    if worst and found.accuracies[worst[0]] < 1:
        yield f"- Weakest class: {description.labels[worst[0]]}, {found.accuracies[worst[0]]:.1%} right."
    yield (
        "- Pictures are stretched to the input's shape: long, narrow ones are distorted. The unsure answers catch most "
        "strangers, not all. Made for sorting pictures, not for decisions about food safety, health or people.\n"
    )


def _unsure(description: Description) -> Iterator[str]:
    limits = description.limits
    yield "## When it does not know\n"
    yield (
        "Beside the probabilities, the model answers `unlike`: how far a picture is from the training pictures of a "
        "class, in units of that class (19 of 20 of its pictures are below 1), and twice how improbable it is "
        "(1 - its probability); of all classes, the one where both together are least. An answer is unsure where\n"
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
    yield "| runtime | file | pictures | same top-1 | largest difference | of `unlike`, relative | accuracy |"
    yield "|---|---|---|---|---|---|---|"
    for each in description.agreement:
        yield (
            f"| {each.format} | {each.file} | {each.num_images:,} | {each.same_top1:.2%} | {each.max_difference:.1e} | "
            f"{each.score_difference:.1e} | {_percent(each.accuracy)} |"
        )
    yield "\nThe signature `encoded` decodes and resizes by itself, nearly as fruitcnn does, ignoring EXIF.\n"
    yield "| runtime | pictures/s, 256 a call | one picture, ms |\n|---|---|---|"
    for each in description.agreement:
        if each.images_per_second and each.one_image_ms:
            yield f"| {each.format} | {each.images_per_second:,.0f} | {each.one_image_ms:.2f} |"
    yield "\nMeasured once, on the machine where it was frozen, with whatever else ran there: read them as ratios.\n"
    yield "| file | bytes | what it is |\n|---|---|---|"
    sizes = _sizes(description)
    for name, what in _FILES.items():
        if name.rstrip("/") in sizes or name in ("card/", "model.json"):
            yield f"| {name} | {sizes.get(name.rstrip('/'), '')} | {what} |"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _sizes(description: Description) -> dict[str, str]:
    """Bytes of each file, and of all in a folder together, by its name."""
    found: dict[str, int] = {}
    for name, stored in description.files.items():
        top = name.split("/")[0]
        found[top] = found.get(top, 0) + stored.num_bytes
    return {name: f"{num_bytes:,}" for name, num_bytes in found.items()}


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
    files = {name.split("/")[0] for name in description.files}
    yield from (each.markdown() for each in snippets(height, width) if each.needs in files)
