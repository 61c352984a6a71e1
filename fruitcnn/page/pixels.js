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
    strips = inBlocks(strips, width, eighths, size);
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

function* rgb(rows, width) {
  for (const rgba of rows) {
    const count = rgba.length / 4;
    const out = new Uint8ClampedArray(count * 3);
    for (let i = 0, j = 0, k = 0; i < count; i += 1, j += 4, k += 3) {
      out[k] = rgba[j]; out[k + 1] = rgba[j + 1]; out[k + 2] = rgba[j + 2];
    }
    yield { data: out, height: count / width };
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

// A picture that ends within a block is filled up with its last pixel, as encoders do.
function* inBlocks(strips, width, m, scaled) {
  const matrix = blockMatrix(m);
  let rowsLeft = scaled.height;
  for (const { data, height } of strips) {
    const blockRows = Math.ceil(height / 8);
    const half = new Float32Array(height * scaled.width * 3); // shrunk across, not yet down
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < scaled.width; x += 1) {
        const block = Math.floor(x / m) * 8;
        const weights = (x % m) * 8;
        for (let c = 0; c < 3; c += 1) {
          let sum = 0;
          for (let i = 0; i < 8; i += 1) {
            sum += matrix[weights + i] * data[(y * width + Math.min(block + i, width - 1)) * 3 + c];
          }
          half[(y * scaled.width + x) * 3 + c] = sum;
        }
      }
    }
    const outHeight = Math.min(blockRows * m, rowsLeft);
    rowsLeft -= outHeight;
    const out = new Uint8ClampedArray(outHeight * scaled.width * 3); // rounds and clamps
    const stride = scaled.width * 3;
    for (let y = 0; y < outHeight; y += 1) {
      const block = Math.floor(y / m) * 8;
      const weights = (y % m) * 8;
      for (let x = 0; x < stride; x += 1) {
        let sum = 0;
        for (let i = 0; i < 8; i += 1) sum += matrix[weights + i] * half[Math.min(block + i, height - 1) * stride + x];
        out[y * stride + x] = sum;
      }
    }
    yield { data: out, height: outHeight };
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
  for (const { data, height } of strips) {
    for (let row = 0; row < height; row += 1, y += 1) {
      shrinkLine(data, row * size.width * 3, across, line);
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
