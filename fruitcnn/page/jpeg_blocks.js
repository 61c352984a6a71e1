// One block of frequencies -> pixels, at any size from 1x1 to 16x16, as libjpeg sizes them.

// (size, 8): from 8 frequencies to `size` pixels. 1, 2 and 4 pixels are means of the 8; every other size takes as many
// of the lowest frequencies as it has pixels.
export function blockMatrix(size) {
  const matrix = new Float64Array(size * 8);
  const isMean = [1, 2, 4].includes(size);
  for (let place = 0; place < size; place += 1) {
    for (let frequency = 0; frequency < (isMean ? 8 : Math.min(size, 8)); frequency += 1) {
      let value = 0;
      if (isMean) {
        const each = 8 / size;
        for (let i = 0; i < each; i += 1) value += cosine(8, frequency, place * each + i) / each;
      } else value = Math.sqrt(size / 8) * cosine(size, frequency, place);
      matrix[place * 8 + frequency] = Math.abs(value) < 1e-12 ? 0 : value;
    }
  }
  return matrix;
}

function cosine(size, frequency, place) {
  return Math.sqrt((frequency ? 2 : 1) / size) * Math.cos((Math.PI * (2 * place + 1) * frequency) / (2 * size));
}

const half = new Float64Array(16 * 8);
const BETWEEN = 4 * Math.sqrt(8); // libjpeg rounds to this fraction of a level between the two directions

// Writes block (64 values, frequencies down then across) to its place in component.plane.
export function inverse(block, component, row, column) {
  const { size, matrix, plane, stride } = component;
  const width = stride * size;
  const start = row * size * width + column * size;
  if (isFlat(block)) { fill(plane, start, width, size, block[0] / 8); return; }
  for (let y = 0; y < size; y += 1) {
    for (let v = 0; v < 8; v += 1) {
      let sum = 0;
      for (let u = 0; u < 8; u += 1) sum += matrix[y * 8 + u] * block[u * 8 + v];
      half[y * 8 + v] = Math.floor(sum * BETWEEN + 0.5) / BETWEEN;
    }
  }
  for (let y = 0; y < size; y += 1) {
    for (let x = 0; x < size; x += 1) {
      let sum = 128.5;
      for (let v = 0; v < 8; v += 1) sum += matrix[x * 8 + v] * half[y * 8 + v];
      plane[start + y * width + x] = Math.floor(sum);
    }
  }
}

function isFlat(block) {
  for (let i = 1; i < 64; i += 1) if (block[i]) return false;
  return true;
}

function fill(plane, start, width, size, level) {
  const value = Math.floor(level + 128.5);
  for (let y = 0; y < size; y += 1) plane.fill(value, start + y * width, start + y * width + size);
}
