// Whole pixels -> the model's input, as fruitcnn/images.py makes it: the same steps, in the same order and rounding.
//
// 1. JPEG: images.py has libjpeg decode at M/8 of the size, M the smallest that is not under the input. Browsers decode
//    whole, so this takes the M lowest frequencies of each block of 8x8 pixels, which is what libjpeg does. libjpeg does
//    it before colours are made of luma and chroma, so results differ by half a grey level on average.
// 2. By area, every axis that must shrink twofold or more (cv2.INTER_AREA).
// 3. Linearly, what is left (cv2.INTER_LINEAR, with its 11-bit weights).

// rows: an iterable of RGBA bytes, each a number of whole rows (a multiple of 8, except the last), top to bottom.
// Returns uint8 (inputHeight, inputWidth, 3).
export function shrink(rows, width, height, inputHeight, inputWidth, isJpeg) {
  const eighths = isJpeg ? chooseEighths(width, height, inputWidth, inputHeight) : 8;
  let size = { width, height };
  let strips = rgb(rows, width);
  if (eighths < 8) {
    size = { width: Math.ceil((width * eighths) / 8), height: Math.ceil((height * eighths) / 8) };
    strips = inBlocks(strips, eighths, size);
  }
  const mid = {
    width: size.width >= 2 * inputWidth ? inputWidth : size.width,
    height: size.height >= 2 * inputHeight ? inputHeight : size.height,
  };
  const pixels = byArea(strips, size, mid);
  return linearly(pixels, mid, { width: inputWidth, height: inputHeight });
}

export function chooseEighths(width, height, inputWidth, inputHeight) {
  for (let m = 1; m < 8; m += 1) {
    if (Math.ceil((width * m) / 8) >= inputWidth && Math.ceil((height * m) / 8) >= inputHeight) return m;
  }
  return 8;
}

// RGBA -> RGB, each row filled up to whole blocks with its last pixel, as encoders do.
function* rgb(rows, width) {
  const padded = Math.ceil(width / 8) * 8;
  for (const rgba of rows) {
    const height = rgba.length / 4 / width;
    const out = new Uint8ClampedArray(padded * height * 3);
    for (let y = 0, from = 0, to = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1, from += 4, to += 3) {
        out[to] = rgba[from]; out[to + 1] = rgba[from + 1]; out[to + 2] = rgba[from + 2];
      }
      for (let x = width; x < padded; x += 1, to += 3) out.copyWithin(to, to - 3, to);
    }
    yield { data: out, height, width: padded };
  }
}

// (8 pixels) -> (M pixels): a cosine transform, and one back of its low end.
function blockMatrix(m) {
  const cosine = (size, frequency, place) =>
    Math.sqrt((frequency ? 2 : 1) / size) * Math.cos((Math.PI * (2 * place + 1) * frequency) / (2 * size));
  const matrix = new Float64Array(m * 8);
  for (let out = 0; out < m; out += 1) {
    for (let place = 0; place < 8; place += 1) {
      let sum = 0;
      for (let frequency = 0; frequency < m; frequency += 1) sum += cosine(m, frequency, out) * cosine(8, frequency, place);
      matrix[out * 8 + place] = Math.sqrt(m / 8) * sum;
    }
  }
  return matrix;
}

// Strips shrunk to M/8; their width may be more than scaled.width, by what the last block was filled up with.
function* inBlocks(strips, m, scaled) {
  const matrix = blockMatrix(m);
  let rowsLeft = scaled.height;
  for (const { data, height, width } of strips) {
    const outWidth = (width / 8) * m;
    const outHeight = Math.min(Math.ceil(height / 8) * m, rowsLeft);
    rowsLeft -= outHeight;
    const half = shrinkAcross(data, width, height, matrix, m);
    const stride = outWidth * 3;
    const out = new Uint8ClampedArray(outHeight * stride); // rounds and clamps
    const sums = new Float64Array(stride);
    for (let y = 0; y < outHeight; y += 1) {
      const block = Math.floor(y / m) * 8;
      sums.fill(0);
      for (let i = 0; i < 8; i += 1) {
        const weight = matrix[(y % m) * 8 + i];
        const from = Math.min(block + i, height - 1) * stride;
        for (let x = 0; x < stride; x += 1) sums[x] += weight * half[from + x];
      }
      out.set(sums, y * stride);
    }
    yield { data: out, height: outHeight, width: outWidth };
  }
}

function shrinkAcross(data, width, height, matrix, m) {
  const half = new Float32Array((width / 8) * m * height * 3);
  for (let block = 0, to = 0; block < data.length; block += 24) {
    for (let k = 0; k < m * 8; k += 8) {
      let [red, green, blue] = [0, 0, 0];
      for (let i = 0, from = block; i < 8; i += 1, from += 3) {
        const weight = matrix[k + i];
        red += weight * data[from]; green += weight * data[from + 1]; blue += weight * data[from + 2];
      }
      half[to] = red; half[to + 1] = green; half[to + 2] = blue;
      to += 3;
    }
  }
  return half;
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
