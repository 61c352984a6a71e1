// Planes of a decoded JPEG -> RGBA, as libjpeg makes it: colours stored at half the size are smoothed, then converted
// with 16-bit fractions.

export function toRgba({ frame, adobe, isJfif }) {
  const [width, height] = [frame.width, frame.height].map((size) => Math.ceil((size * frame.m) / 8));
  const planes = frame.components.map((each) => expand(each, frame, width, height));
  const ids = String.fromCharCode(...frame.components.map((each) => each.id));
  const isRgb = !isJfif && (adobe === 0 || (adobe < 0 && ids === "RGB"));
  const data = new Uint8ClampedArray(width * height * 4).fill(255);
  const convert = planes.length === 1 ? grey : isRgb ? copy : colour;
  for (let y = 0, to = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, to += 4) convert(data, to, planes, y, x);
  }
  return { data, width, height };
}

function grey(data, to, [{ plane, stride }], y, x) {
  data[to] = data[to + 1] = data[to + 2] = plane[y * stride + x];
}

function copy(data, to, planes, y, x) {
  for (let i = 0; i < 3; i += 1) data[to + i] = planes[i].plane[y * planes[i].stride + x];
}

function colour(data, to, [luma, blue, red], y, x) {
  const level = luma.plane[y * luma.stride + x];
  const cb = blue.plane[y * blue.stride + x] - 128;
  const cr = red.plane[y * red.stride + x] - 128;
  data[to] = level + ((91881 * cr + 32768) >> 16);
  data[to + 1] = level + ((-22554 * cb - 46802 * cr + 32768) >> 16);
  data[to + 2] = level + ((116130 * cb + 32768) >> 16);
}

// The plane of a component at the size of the picture.
function expand(component, frame, width, height) {
  const { plane, size, expandAcross, expandDown } = component;
  const stride = component.stride * size;
  if (expandAcross === 1 && expandDown === 1) return { plane, stride };
  const realWidth = Math.ceil((frame.width * component.across * size) / (frame.across * 8));
  const realHeight = Math.ceil((frame.height * component.down * size) / (frame.down * 8));
  const isSmooth = frame.m > 1 && expandAcross <= 2 && expandDown <= 2 && (expandAcross === 1 || realWidth > 2);
  const out = new Uint8Array(width * height);
  const line = new Int32Array(realWidth);
  for (let y = 0; y < height; y += 1) {
    const near = Math.floor(y / expandDown);
    if (isSmooth) {
      blend(plane, stride, near, neighbour(y, near, expandDown, realHeight), expandDown, line);
      spread(line, out.subarray(y * width, (y + 1) * width), expandAcross, expandDown, y % 2);
    } else for (let x = 0; x < width; x += 1) out[y * width + x] = plane[near * stride + Math.floor(x / expandAcross)];
  }
  return { plane: out, stride: width };
}

function neighbour(y, near, expandDown, realHeight) {
  return expandDown === 1 ? near : Math.min(Math.max(near + (y % 2 ? 1 : -1), 0), realHeight - 1);
}

function blend(plane, stride, near, other, expandDown, line) {
  for (let x = 0; x < line.length; x += 1) {
    const value = plane[near * stride + x];
    line[x] = expandDown === 1 ? value : 3 * value + plane[other * stride + x];
  }
}

// Each place takes three parts of the nearest and one of the next; the roundings differ as in libjpeg.
function spread(line, out, expandAcross, expandDown, isLower) {
  if (expandAcross === 1) {
    for (let x = 0; x < out.length; x += 1) out[x] = (line[x] + (isLower ? 2 : 1)) >> 2;
    return;
  }
  const [left, right, shift] = expandDown === 1 ? [1, 2, 2] : [8, 7, 4];
  for (let x = 0; x < out.length; x += 1) {
    const near = x >> 1;
    const other = Math.min(Math.max(near + (x % 2 ? 1 : -1), 0), line.length - 1);
    out[x] = (3 * line[near] + line[other] + (x % 2 ? right : left)) >> shift;
  }
}
