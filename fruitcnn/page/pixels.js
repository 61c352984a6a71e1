// Pixels -> the model's input, as fruitcnn/images.py makes it: the same steps, in the same order and rounding.
//
// 1. By area, every axis that must shrink twofold or more (cv2.INTER_AREA).
// 2. Linearly, what is left (cv2.INTER_LINEAR, with its 11-bit weights).

// rows: an iterable of RGBA bytes, each a number of whole rows, top to bottom.
// Returns uint8 (inputHeight, inputWidth, 3).
export function shrink(rows, width, height, inputHeight, inputWidth) {
  const mid = {
    width: width >= 2 * inputWidth ? inputWidth : width,
    height: height >= 2 * inputHeight ? inputHeight : height,
  };
  const pixels = byArea(rgb(rows, width), { width, height }, mid);
  return linearly(pixels, mid, { width: inputWidth, height: inputHeight });
}

function* rgb(rows, width) {
  for (const rgba of rows) {
    const data = new Uint8Array((rgba.length / 4) * 3);
    for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
      data[to] = rgba[from]; data[to + 1] = rgba[from + 1]; data[to + 2] = rgba[from + 2];
    }
    yield { data, height: rgba.length / 4 / width, width };
  }
}

// For each of `to` places, the first of the `from` places that it covers, and their shares, which add up to 1.
function areas(from, to) {
  const scale = from / to;
  return Array.from({ length: to }, (_, place) => {
    const [start, end] = [place * scale, Math.min((place + 1) * scale, from)];
    const first = Math.floor(start + 1e-9);
    const shares = [];
    for (let i = first; i < end - 1e-9; i += 1) shares.push((Math.min(i + 1, end) - Math.max(i, start)) / (end - start));
    return { first, shares };
  });
}

// Strips of rows -> one array of whole pixels, uint8 (mid.height, mid.width, 3).
function byArea(strips, size, mid) {
  const across = areas(size.width, mid.width);
  const down = areas(size.height, mid.height);
  const sums = new Float64Array(mid.height * mid.width * 3);
  const line = new Float64Array(mid.width * 3);
  let y = 0;
  let open = 0; // the first output row that is not yet complete
  for (const { data, height, width } of strips) {
    for (let row = 0; row < height; row += 1, y += 1) {
      shrinkLine(data, row * width * 3, across, line);
      while (open < mid.height && down[open].first + down[open].shares.length <= y) open += 1;
      for (let out = open; out < mid.height && down[out].first <= y; out += 1) {
        const share = down[out].shares[y - down[out].first];
        for (let x = 0, to = out * line.length; x < line.length; x += 1, to += 1) sums[to] += share * line[x];
      }
    }
  }
  return Uint8ClampedArray.from(sums);
}

function shrinkLine(data, start, across, line) {
  for (let x = 0; x < across.length; x += 1) {
    const { first, shares } = across[x];
    let [red, green, blue] = [0, 0, 0];
    for (let i = 0, from = start + first * 3; i < shares.length; i += 1, from += 3) {
      red += shares[i] * data[from]; green += shares[i] * data[from + 1]; blue += shares[i] * data[from + 2];
    }
    line[x * 3] = red; line[x * 3 + 1] = green; line[x * 3 + 2] = blue;
  }
}

// Two neighbours and their 11-bit weights for each place.
function neighbours(from, to) {
  return Array.from({ length: to }, (_, place) => {
    const at = Math.fround((place + 0.5) * (from / to) - 0.5);
    const first = Math.floor(at);
    const share = first < 0 || first >= from - 1 ? 0 : Math.fround(at - first);
    const low = Math.min(Math.max(first, 0), from - 1);
    return { low, high: Math.min(low + 1, from - 1), a: Math.round((1 - share) * 2048), b: Math.round(share * 2048) };
  });
}

function linearly(pixels, size, wanted) {
  if (size.width === wanted.width && size.height === wanted.height) return new Uint8Array(pixels.buffer);
  const across = neighbours(size.width, wanted.width);
  const down = neighbours(size.height, wanted.height);
  const stride = wanted.width * 3;
  const wide = new Int32Array(size.height * stride);
  for (let y = 0; y < size.height; y += 1) {
    for (let x = 0; x < wanted.width; x += 1) {
      const { low, high, a, b } = across[x];
      for (let c = 0; c < 3; c += 1) {
        const row = y * size.width;
        wide[y * stride + x * 3 + c] = a * pixels[(row + low) * 3 + c] + b * pixels[(row + high) * 3 + c];
      }
    }
  }
  const out = new Uint8Array(wanted.height * stride);
  for (let y = 0; y < wanted.height; y += 1) {
    const { low, high, a, b } = down[y];
    for (let x = 0; x < stride; x += 1) {
      const sum = ((a * (wide[low * stride + x] >> 4)) >> 16) + ((b * (wide[high * stride + x] >> 4)) >> 16);
      out[y * stride + x] = (sum + 2) >> 2;
    }
  }
  return out;
}
