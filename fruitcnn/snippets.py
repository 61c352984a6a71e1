"""Code to paste: how each environment loads a frozen model and answers a picture; for the model card. Pure.

Every snippet is whole: run in the folder of the model, beside a picture.jpg, it prints the label and its probability.
Those that decode with Pillow resize nearly as fruitcnn does (model.json, `preprocessing`), not to the last bit.
"""

from __future__ import annotations

from typing import NamedTuple


class Snippet(NamedTuple):
    """language: python or js; needs: the file of the bundle; packages: all that pip or npm must install."""

    title: str
    language: str
    needs: str
    packages: tuple[str, ...]
    code: str

    def markdown(self) -> str:
        """The snippet with its heading and how to install what it needs."""
        tool = "pip" if self.language == "python" else "npm"
        return f"### {self.title}\n\n`{tool} install {' '.join(self.packages)}`\n\n```{self.language}\n{self.code}```\n"


def snippets(height_px: int, width_px: int) -> list[Snippet]:
    """Return the snippets for a model that takes pictures of this size."""
    values = {"HEIGHT": str(height_px), "WIDTH": str(width_px)}
    filled = []
    for each in _SNIPPETS:
        code = each.code.replace("PIXELS", _PIXELS)
        for name, value in values.items():
            code = code.replace(name, value)
        filled.append(each._replace(code=code))
    return filled


_PIXELS = """picture = Image.open("picture.jpg").convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BOX)
pixels = np.asarray(picture)[np.newaxis]  # uint8 (1, HEIGHT, WIDTH, 3); more pictures: a larger first axis"""

_SNIPPETS = (
    Snippet("ONNX Runtime", "python", "model.onnx", ("onnxruntime", "numpy", "pillow"), """\
import json
import numpy as np
import onnxruntime
from PIL import Image

labels = json.load(open("model.json"))["labels"]
PIXELS
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
(probabilities,) = session.run(["probabilities"], {"image": pixels})
best = probabilities[0].argmax()
print(labels[best], probabilities[0][best])
"""),
    Snippet("OpenVINO", "python", "model.onnx", ("openvino", "numpy", "pillow"), """\
import json
import sys
import numpy as np
from PIL import Image

sys.modules["openvino_telemetry"] = None  # or else openvino reports each import to its maker
import openvino

labels = json.load(open("model.json"))["labels"]
PIXELS
# Without the hint, CPUs with bfloat16 answer differently in the third digit.
model = openvino.Core().compile_model("model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
probabilities = model({"image": pixels})["probabilities"]
best = probabilities[0].argmax()
print(labels[best], probabilities[0][best])
"""),
    Snippet("TensorFlow, from the bytes of files", "python", "saved_model", ("tensorflow",), """\
import json
import tensorflow as tf

labels = json.load(open("model.json"))["labels"]
answer = tf.saved_model.load("saved_model").signatures["encoded"]
files = tf.constant([open("picture.jpg", "rb").read()])  # JPEG or PNG, any number
probabilities = answer(encoded=files)["probabilities"].numpy()
best = probabilities[0].argmax()
print(labels[best], probabilities[0][best])
"""),
    Snippet("LiteRT", "python", "model.tflite", ("ai-edge-litert", "numpy", "pillow"), """\
import json
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

labels = json.load(open("model.json"))["labels"]
PIXELS
answer = Interpreter("model.tflite").get_signature_runner()
probabilities = answer(image=pixels)["probabilities"]
best = probabilities[0].argmax()
print(labels[best], probabilities[0][best])
"""),
    Snippet("Node.js, and browsers", "js", "model.onnx", ("onnxruntime-web", "jpeg-js"), """\
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web";
import jpeg from "jpeg-js";

const { labels } = JSON.parse(readFileSync("model.json", "utf8"));
const { width, height, data } = jpeg.decode(readFileSync("picture.jpg"));
const pixels = new Uint8Array(HEIGHT * WIDTH * 3);
for (let y = 0; y < HEIGHT; y += 1) {
  for (let x = 0; x < WIDTH; x += 1) {
    // The mean of the pixels that fall on this one.
    const [top, left] = [Math.floor((y * height) / HEIGHT), Math.floor((x * width) / WIDTH)];
    const bottom = Math.max(top + 1, Math.floor(((y + 1) * height) / HEIGHT));
    const right = Math.max(left + 1, Math.floor(((x + 1) * width) / WIDTH));
    const sums = [0, 0, 0];
    for (let v = top; v < bottom; v += 1) {
      for (let u = left; u < right; u += 1) sums.forEach((_, c) => { sums[c] += data[(v * width + u) * 4 + c]; });
    }
    sums.forEach((sum, c) => { pixels[(y * WIDTH + x) * 3 + c] = sum / ((bottom - top) * (right - left)); });
  }
}
const session = await ort.InferenceSession.create(new Uint8Array(readFileSync("model.onnx")));
const { probabilities } = await session.run({ image: new ort.Tensor("uint8", pixels, [1, HEIGHT, WIDTH, 3]) });
const best = probabilities.data.indexOf(Math.max(...probabilities.data));
console.log(labels[best], probabilities.data[best]);
"""),
)  # fmt: skip
