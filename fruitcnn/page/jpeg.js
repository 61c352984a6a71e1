// JPEG bytes -> upright RGBA pixels at M/8 of their size, M the smallest that is not under the model's input: as libjpeg
// decodes them for images.py. Browsers decode whole and smooth the colours, which is another picture once it is small.
//
// What is read: 8 bits, Huffman codes, sequential or progressive, grey or three colours. Anything else (CMYK, 12 bits,
// arithmetic codes) gives null: then the browser decodes.

import { blockMatrix, inverse } from "./jpeg_blocks.js";
import { toRgba } from "./jpeg_colours.js";
import { decodeScan } from "./jpeg_scan.js";

export class PictureError extends Error {
  constructor(cause, detail) { super(detail); this.cause = cause; }
}

const ZIGZAG = Uint8Array.of(
  0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28,
  35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55,
  62, 63,
);
const SIZES = { 0xc0: "sequential", 0xc1: "sequential", 0xc2: "progressive" };

// Returns { data: RGBA, width, height (of data), fullWidth, fullHeight (of the picture) }, or null. PictureError: damaged.
export function decodeJpeg(bytes, inputWidth, inputHeight, maxPixels) {
  const file = { bytes, quantisers: [], dc: [], ac: [], restart: 0, orientation: 1, adobe: -1, isJfif: false, frame: null };
  let at = 2;
  for (;;) {
    const marker = nextMarker(bytes, at);
    at = marker.at;
    if (marker.code === 0xd9) break;
    const segment = bytes.subarray(at + 2, at + bytes[at] * 256 + bytes[at + 1]);
    if (SIZES[marker.code]) {
      file.frame = readFrame(file, segment, SIZES[marker.code] === "progressive", inputWidth, inputHeight, maxPixels);
      if (!file.frame) return null;
    } else if (marker.code >= 0xc3 && marker.code <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker.code)) return null;
    else if (marker.code === 0xda) {
      if (!file.frame) throw new PictureError("corrupt", "a scan before the frame");
      at = decodeScan(file, segment, at + 2 + segment.length, ZIGZAG, PictureError);
      continue;
    } else if (marker.code === 0xcc) return null;
    else readTable(file, marker.code, segment);
    at += 2 + segment.length;
  }
  if (!file.frame) throw new PictureError("corrupt", "no picture in the file");
  if (file.frame.isProgressive) for (const each of file.frame.components) finish(each, file.quantisers);
  return turn(toRgba(file), file);
}

function nextMarker(bytes, from) {
  let at = from;
  while (at < bytes.length && bytes[at] !== 0xff) at += 1;
  while (at < bytes.length && bytes[at] === 0xff) at += 1;
  if (at >= bytes.length) throw new PictureError("truncated", "the JPEG file ends too early");
  return { code: bytes[at], at: at + 1 };
}

function readTable(file, code, segment) {
  if (code === 0xdb) readQuantisers(file, segment);
  else if (code === 0xc4) readHuffman(file, segment);
  else if (code === 0xdd) file.restart = segment[0] * 256 + segment[1];
  else if (code === 0xe0 && startsWith(segment, "JFIF")) file.isJfif = true;
  else if (code === 0xee && startsWith(segment, "Adobe")) file.adobe = segment[11];
  else if (code === 0xe1 && startsWith(segment, "Exif\0\0")) file.orientation = orientation(segment.subarray(6));
}

function startsWith(segment, text) { return [...text].every((letter, i) => segment[i] === letter.charCodeAt(0)); }

function readQuantisers(file, segment) {
  for (let at = 0; at < segment.length;) {
    const [is16, id] = [segment[at] >> 4, segment[at] & 15];
    at += 1;
    const values = new Int32Array(64); // in natural order
    for (let i = 0; i < 64; i += 1, at += is16 ? 2 : 1) {
      values[ZIGZAG[i]] = is16 ? segment[at] * 256 + segment[at + 1] : segment[at];
    }
    file.quantisers[id] = values;
  }
}

// A table from the next 16 bits to (length << 8 | symbol), 0 where there is no code.
function readHuffman(file, segment) {
  for (let at = 0; at < segment.length;) {
    const [isAc, id] = [segment[at] >> 4, segment[at] & 15];
    const counts = segment.subarray(at + 1, at + 17);
    const table = new Uint16Array(65536);
    at += 17;
    for (let length = 1, code = 0; length <= 16; length += 1) {
      for (let i = 0; i < counts[length - 1]; i += 1, at += 1, code += 1 << (16 - length)) {
        table.fill((length << 8) | segment[at], code, code + (1 << (16 - length)));
      }
    }
    (isAc ? file.ac : file.dc)[id] = table;
  }
}

function orientation(tiff) {
  const isLittle = tiff[0] === 0x49;
  const view = new DataView(tiff.buffer, tiff.byteOffset, tiff.length);
  try {
    const first = view.getUint32(4, isLittle);
    for (let i = 0, at = first + 2; i < view.getUint16(first, isLittle); i += 1, at += 12) {
      if (view.getUint16(at, isLittle) === 0x0112) return view.getUint16(at + 8, isLittle);
    }
  } catch { /* a damaged block does not damage the picture */ }
  return 1;
}

// The frame with its components: how many blocks, and how large each block comes out, as libjpeg chooses it.
function readFrame(file, segment, isProgressive, inputWidth, inputHeight, maxPixels) {
  const [height, width, count] = [segment[1] * 256 + segment[2], segment[3] * 256 + segment[4], segment[5]];
  if (segment[0] !== 8 || ![1, 3].includes(count) || !width || !height) return null;
  if (width * height > maxPixels) {
    throw new PictureError("too-large", `${width}x${height} pixels, more than the ${maxPixels.toLocaleString("en")} allowed`);
  }
  const components = Array.from({ length: count }, (_, i) => {
    const [id, sampling, quantiser] = segment.subarray(6 + 3 * i, 9 + 3 * i);
    return { id, across: sampling >> 4, down: sampling & 15, quantiser };
  });
  const isSideways = file.orientation >= 5 && file.orientation <= 8;
  const [wantedWidth, wantedHeight] = isSideways ? [inputHeight, inputWidth] : [inputWidth, inputHeight];
  const m = chooseEighths(width, height, wantedWidth, wantedHeight);
  const [across, down] = ["across", "down"].map((axis) => Math.max(...components.map((each) => each[axis])));
  const frame = { width, height, m, across, down, isProgressive, components };
  frame.mcusAcross = Math.ceil(width / (8 * across));
  frame.mcusDown = Math.ceil(height / (8 * down));
  return components.every((each) => prepare(each, frame)) ? frame : null;
}

export function chooseEighths(width, height, inputWidth, inputHeight) {
  for (let m = 1; m < 8; m += 1) {
    if (Math.ceil((width * m) / 8) >= inputWidth && Math.ceil((height * m) / 8) >= inputHeight) return m;
  }
  return 8;
}

function prepare(component, frame) {
  const { m } = frame;
  let size = m; // colours stored small come out larger instead of being blown up afterwards
  while (size < 8 && (frame.across * m) % (component.across * size * 2) === 0
    && (frame.down * m) % (component.down * size * 2) === 0) size *= 2;
  component.size = size;
  component.matrix = blockMatrix(size);
  component.expandAcross = (frame.across * m) / (component.across * size);
  component.expandDown = (frame.down * m) / (component.down * size);
  component.blocksAcross = Math.ceil(Math.ceil((frame.width * component.across) / frame.across) / 8);
  component.blocksDown = Math.ceil(Math.ceil((frame.height * component.down) / frame.down) / 8);
  component.stride = frame.mcusAcross * component.across;
  component.rows = frame.mcusDown * component.down;
  component.plane = new Uint8ClampedArray(component.stride * component.rows * size * size);
  if (frame.isProgressive) component.coefficients = new Int16Array(component.stride * component.rows * 64);
  return Number.isInteger(component.expandAcross) && Number.isInteger(component.expandDown);
}

function finish(component, quantisers) {
  const quantiser = quantisers[component.quantiser];
  const block = new Int32Array(64);
  for (let row = 0; row < component.rows; row += 1) {
    for (let column = 0; column < component.stride; column += 1) {
      const from = (row * component.stride + column) * 64;
      for (let i = 0; i < 64; i += 1) block[i] = component.coefficients[from + i] * quantiser[i];
      inverse(block, component, row, column);
    }
  }
}

function turn({ data, width, height }, { orientation: way, frame }) {
  const isSideways = way >= 5 && way <= 8;
  const [fullWidth, fullHeight] = isSideways ? [frame.height, frame.width] : [frame.width, frame.height];
  if (way < 2 || way > 8) return { data, width, height, fullWidth, fullHeight };
  const [newWidth, newHeight] = isSideways ? [height, width] : [width, height];
  const [from, to] = [new Uint32Array(data.buffer), new Uint32Array(width * height)];
  for (let y = 0; y < newHeight; y += 1) {
    for (let x = 0; x < newWidth; x += 1) {
      let [u, v] = isSideways ? [y, x] : [x, y];
      if ([2, 3, 7, 8].includes(way)) u = width - 1 - u;
      if ([3, 4, 6, 7].includes(way)) v = height - 1 - v;
      to[y * newWidth + x] = from[v * width + u];
    }
  }
  return { data: new Uint8ClampedArray(to.buffer), width: newWidth, height: newHeight, fullWidth, fullHeight };
}
