// One scan of a JPEG: Huffman codes -> blocks of frequencies, straight to pixels where the file is sequential.

import { inverse } from "./jpeg_blocks.js";

// file, segment: as jpeg.js has them; at: where the codes start. Returns where they end. PictureError as given.
export function decodeScan(file, segment, at, zigzag, PictureError) {
  const { frame } = file;
  const chosen = Array.from({ length: segment[0] }, (_, i) => {
    const component = frame.components.find((each) => each.id === segment[1 + 2 * i]);
    if (!component || !file.quantisers[component.quantiser]) throw new PictureError("corrupt", "a scan without its tables");
    return Object.assign(component, { dc: file.dc[segment[2 + 2 * i] >> 4], ac: file.ac[segment[2 + 2 * i] & 15], last: 0 });
  });
  const [first, end, bits] = segment.subarray(1 + 2 * segment[0], 4 + 2 * segment[0]);
  const reader = new Bits(file.bytes, at, PictureError);
  const scan = { reader, zigzag, first, end, high: bits >> 4, low: bits & 15, run: 0, block: new Int32Array(64) };
  const decode = frame.isProgressive ? progressive(scan) : sequential(scan, file);
  let until = file.restart || Infinity;
  for (const [component, row, column, startsUnit] of blocks(frame, chosen)) {
    if (startsUnit) {
      if (until === 0) { reader.restart(); scan.run = 0; for (const each of chosen) each.last = 0; until = file.restart; }
      until -= 1;
    }
    decode(component, row, column);
    if (startsUnit) reader.check();
  }
  reader.check();
  return reader.end();
}

// Every block of a scan in the order of the file: component, row, column, and whether a restart may stand before it.
function* blocks(frame, chosen) {
  if (chosen.length === 1) {
    const [component] = chosen;
    for (let row = 0; row < component.blocksDown; row += 1) {
      for (let column = 0; column < component.blocksAcross; column += 1) yield [component, row, column, true];
    }
    return;
  }
  for (let unit = 0; unit < frame.mcusAcross * frame.mcusDown; unit += 1) {
    const [down, across] = [Math.floor(unit / frame.mcusAcross), unit % frame.mcusAcross];
    let isFirst = true;
    for (const component of chosen) {
      for (let v = 0; v < component.down; v += 1) {
        for (let h = 0; h < component.across; h += 1) {
          yield [component, down * component.down + v, across * component.across + h, isFirst];
          isFirst = false;
        }
      }
    }
  }
}

function sequential({ reader, zigzag, block }, file) {
  return (component, row, column) => {
    const quantiser = file.quantisers[component.quantiser];
    block.fill(0);
    component.last += reader.signed(reader.symbol(component.dc));
    block[0] = component.last * quantiser[0];
    for (let k = 1; k < 64; k += 1) {
      const symbol = reader.symbol(component.ac);
      const size = symbol & 15;
      k += symbol >> 4;
      if (!size) { if (symbol < 0xf0) break; continue; }
      const place = zigzag[k & 63];
      block[place] = reader.signed(size) * quantiser[place];
    }
    inverse(block, component, row, column);
  };
}

function progressive(scan) {
  const { reader, first, high, low } = scan;
  const start = (component, row, column) => (row * component.stride + column) * 64;
  if (first === 0 && high === 0) {
    return (component, row, column) => {
      component.last += reader.signed(reader.symbol(component.dc));
      component.coefficients[start(component, row, column)] = component.last << low;
    };
  }
  if (first === 0) {
    return (component, row, column) => {
      if (reader.bits(1)) component.coefficients[start(component, row, column)] |= 1 << low;
    };
  }
  const step = high === 0 ? firstPass : refine;
  return (component, row, column) => step(scan, component, start(component, row, column));
}

function firstPass(scan, component, start) {
  if (scan.run) { scan.run -= 1; return; }
  const { reader, zigzag, first, end, low } = scan;
  for (let k = first; k <= end; k += 1) {
    const symbol = reader.symbol(component.ac);
    const [zeros, size] = [symbol >> 4, symbol & 15];
    if (!size && zeros < 15) { scan.run = (1 << zeros) - 1 + reader.bits(zeros); return; }
    k += zeros;
    if (size) component.coefficients[start + zigzag[k & 63]] = reader.signed(size) * (1 << low);
  }
}

// Adds one bit to what is known, and brings in what was still zero.
function refine(scan, component, start) {
  const { reader, zigzag, first, end, low } = scan;
  const values = component.coefficients;
  const more = (place) => {
    if (reader.bits(1) && !(values[place] & (1 << low))) values[place] += values[place] > 0 ? 1 << low : -(1 << low);
  };
  let k = first;
  while (k <= end && !scan.run) {
    const symbol = reader.symbol(component.ac);
    let zeros = symbol >> 4;
    let fresh = 0;
    if (symbol & 15) fresh = reader.bits(1) ? 1 << low : -(1 << low);
    else if (zeros < 15) { scan.run = (1 << zeros) + reader.bits(zeros); break; }
    for (; k <= end; k += 1) {
      const place = start + zigzag[k];
      if (values[place]) more(place);
      else if (zeros === 0) { if (fresh) values[place] = fresh; break; }
      else zeros -= 1;
    }
    k += 1;
  }
  if (!scan.run) return;
  for (; k <= end; k += 1) if (values[start + zigzag[k]]) more(start + zigzag[k]);
  scan.run -= 1;
}

// The bits of a scan, most significant first; behind its end come zeros, and check() says when they were used.
class Bits {
  constructor(bytes, at, PictureError) {
    Object.assign(this, { bytes, at, held: 0, count: 0, numAdded: 0, PictureError });
  }

  fill() {
    const { bytes } = this;
    while (this.count <= 24) {
      let byte = 0;
      if (this.at < bytes.length && (bytes[this.at] !== 0xff || bytes[this.at + 1] === 0)) {
        byte = bytes[this.at];
        this.at += byte === 0xff ? 2 : 1;
      } else this.numAdded += 8;
      this.held = (this.held << 8) | byte;
      this.count += 8;
    }
  }

  symbol(table) {
    if (this.count < 16) this.fill();
    const found = table ? table[(this.held >>> (this.count - 16)) & 0xffff] : 0;
    if (!found) this.fail();
    this.count -= found >> 8;
    return found & 255;
  }

  bits(number) {
    if (!number) return 0;
    if (this.count < number) this.fill();
    this.count -= number;
    return (this.held >>> this.count) & ((1 << number) - 1);
  }

  // A number of `size` bits, as JPEG writes them: the lower half of the range is negative.
  signed(size) {
    const value = this.bits(size);
    return size && value < 1 << (size - 1) ? value - (1 << size) + 1 : value;
  }

  check() { if (this.count < this.numAdded) this.fail(); }

  fail() {
    if (this.at >= this.bytes.length) throw new this.PictureError("truncated", "the JPEG file ends too early");
    throw new this.PictureError("corrupt", "damaged JPEG data");
  }

  restart() {
    this.at = this.end();
    if ((this.bytes[this.at + 1] & 0xf8) !== 0xd0) this.fail();
    Object.assign(this, { at: this.at + 2, held: 0, count: 0, numAdded: 0 });
  }

  // Where the marker behind the codes is.
  end() {
    let at = this.at;
    while (at < this.bytes.length && !(this.bytes[at] === 0xff && this.bytes[at + 1] !== 0)) at += 1;
    return at;
  }
}
