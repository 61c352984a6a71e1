"""What a frozen model says about itself in words: MODEL_CARD.md, for people. Called by freezing. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from fruitcnn.bundle import Description

_FILES = {
    "model.onnx": "ONNX; uint8 `image` (N, H, W, 3) -> `probabilities`; ONNX Runtime, OpenVINO, browsers",
    "saved_model/": "TensorFlow; signatures `serving_default` (uint8 `image`) and `encoded` (JPEG or PNG bytes)",
    "frozen_graph.pb": "TensorFlow graph without variables; `image:0` -> `probabilities:0`",
    "model.keras": "Keras 3, to go on training; opens without fruitcnn",
    "cnn_fruit.weights.h5": "the weights alone",
    "golden.npz": "images with the probabilities that any runtime must give, without pickle",
    "model.json": "everything about the model, with the sha256 of every file",
}


def render(description: Description) -> str:
    """Return the card as Markdown."""
    return (
        "\n".join([*_head(description), *_training(description), *_agreement(description), *_use(description)]) + "\n"
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
    yield "- configuration: " + ", ".join(f"{name}={value}" for name, value in training["config"].items()) + "\n"


def _agreement(description: Description) -> Iterator[str]:
    yield f"## Formats, compared with Keras on pictures of the {description.compared_split} split\n"
    yield "| runtime | file | pictures | same top-1 | largest difference |\n|---|---|---|---|---|"
    for each in description.agreement:
        yield (
            f"| {each.format} | {each.file} | {each.num_images:,} | {each.same_top1:.2%} | {each.max_difference:.1e} |"
        )
    yield "\nThe signature `encoded` decodes and resizes itself, nearly as fruitcnn does; it ignores EXIF orientation."
    yield "\n| file | what it is |\n|---|---|"
    yield from (f"| {name} | {what} |" for name, what in _FILES.items())


def _use(description: Description) -> Iterator[str]:
    height, width = description.input_px
    yield f"""
## Loading it

With fruitcnn, hashes and golden answers checked (`pixels`: uint8, N x {height} x {width} x 3):

    from fruitcnn import frozen
    probabilities = frozen.load("MODEL").predict(pixels)

With ONNX Runtime alone:

    session = onnxruntime.InferenceSession("MODEL/model.onnx")
    (probabilities,) = session.run(["probabilities"], {{"image": pixels}})

With TensorFlow alone, from files:

    answer = tf.saved_model.load("MODEL/saved_model").signatures["encoded"]
    probabilities = answer(encoded=tf.constant([open("picture.jpg", "rb").read()]))["probabilities"]"""
