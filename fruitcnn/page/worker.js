// A worker of the page: decodes a picture and shrinks it as the server does (jpeg.js, pixels.js), runs model.onnx on it.

import * as ort from "/page/vendor/ort.wasm.min.mjs";
import { PictureError, decodeJpeg } from "/page/jpeg.js";
import { shrink } from "/page/pixels.js";

ort.env.wasm.wasmPaths = "/page/vendor/";
ort.env.wasm.numThreads = 1; // more need headers that would shut the page off from others
ort.env.logLevel = "error";

const ROWS_AT_A_TIME = 256;
let about;
let session;
let queue = Promise.resolve();

self.onmessage = ({ data }) => {
  queue = queue.then(async () => {
    try {
      self.postMessage({ id: data.id, answer: data.about ? await open(data.about) : await classify(data.file) });
    } catch (error) {
      self.postMessage({ id: data.id, error: error.message });
    }
  });
};

async function open(described) {
  about = described;
  const response = await fetch(`/${about.browser.path}`);
  if (!response.ok) throw new Error(`the server answered ${response.status}`);
  const bytes = await response.arrayBuffer();
  // Browsers offer hashes only on https and localhost.
  if (self.crypto.subtle && (await sha256(bytes)) !== about.browser.sha256) throw new Error("the model is damaged");
  session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  return true;
}

async function sha256(bytes) {
  const digest = new Uint8Array(await self.crypto.subtle.digest("SHA-256", bytes));
  return [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function classify(file) {
  if (!file.size) return { status: "rejected", cause: "empty", detail: "0 bytes" };
  let picture;
  try {
    picture = (await ourOwn(file)) ?? (await theBrowsers(file));
  } catch (error) {
    if (error instanceof PictureError) return { status: "rejected", cause: error.cause, detail: error.message };
    return { status: "rejected", cause: "not-an-image", detail: "this browser cannot read it" };
  }
  const { width, height, pixels } = picture;
  const feeds = { image: new ort.Tensor("uint8", pixels, [1, ...about.input_px, 3]) };
  const found = await session.run(feeds);
  return { width, height, ...answer(found.probabilities.data, found.unlike.data[0]) };
}

// A JPEG, decoded as the server decodes it; null for any other file.
async function ourOwn(file) {
  if (!(await startsWith(file, [0xff, 0xd8, 0xff]))) return null;
  const [inputHeight, inputWidth] = about.input_px;
  const bytes = new Uint8Array(await file.arrayBuffer());
  const found = decodeJpeg(bytes, inputWidth, inputHeight, about.max_pixels);
  if (!found) return null;
  const pixels = shrink([found.data], found.width, found.height, inputHeight, inputWidth);
  return { width: found.fullWidth, height: found.fullHeight, pixels };
}

async function theBrowsers(file) {
  const [inputHeight, inputWidth] = about.input_px;
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", imageOrientation: "from-image" });
  const { width, height } = bitmap;
  try {
    if (width * height > about.max_pixels) throw tooLarge(width, height);
    return { width, height, pixels: shrink(rowsOf(bitmap), width, height, inputHeight, inputWidth) };
  } finally {
    bitmap.close();
  }
}

function tooLarge(width, height) {
  const detail = `${width}x${height} pixels, more than the ${about.max_pixels.toLocaleString("en")} allowed`;
  return new PictureError("too-large", detail);
}

function answer(probabilities, unlike) {
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a] || a - b).slice(0, about.top_k);
  const scores = order.map((index) => probabilities[index]);
  const labels = order.map((index) => about.labels[index]);
  const cause = unsureCause(probabilities, unlike, scores[0]);
  const status = cause ? "unsure" : "ok";
  return { status, cause, score: unlike, label: labels[0], confidence: scores[0], top_labels: labels, top_scores: scores };
}

function unsureCause(probabilities, unlike, confidence) {
  const { max_unlike, min_margin } = about.limits;
  const [first, second = 0] = [...probabilities].sort((a, b) => b - a);
  if (!(unlike <= Math.fround(max_unlike))) return "unlike-training";
  if (Math.fround(first - second) < Math.fround(min_margin)) return "ambiguous";
  return confidence < Math.fround(about.min_confidence) ? "low-confidence" : null;
}

async function startsWith(file, bytes) {
  const head = new Uint8Array(await file.slice(0, bytes.length).arrayBuffer());
  return bytes.every((byte, i) => head[i] === byte);
}

// RGBA of a few rows at a time, on white: a large picture is never held whole as pixels by this script.
function* rowsOf(bitmap) {
  const rows = Math.min(ROWS_AT_A_TIME, bitmap.height);
  const canvas = new OffscreenCanvas(bitmap.width, rows);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  for (let top = 0; top < bitmap.height; top += rows) {
    const height = Math.min(rows, bitmap.height - top);
    context.fillStyle = "white";
    context.fillRect(0, 0, bitmap.width, height);
    context.drawImage(bitmap, 0, top, bitmap.width, height, 0, 0, bitmap.width, height);
    yield context.getImageData(0, 0, bitmap.width, height).data;
  }
}
