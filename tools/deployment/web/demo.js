// Shows in a browser what tools/deployment/demo_onnx.py draws: the same steps, with the same rounding.
// An image is {data, channels, height, width}, with one plane after the other in `data`.

// What the user gave cannot be used.
class InputError extends Error {}

// ---- The file ----

// Fields of a protobuf message with their bytes; numbers are skipped.
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const key = varint();
    const wire = key & 7;
    if (wire === 0) {
      varint();
      continue;
    }
    const length = { 1: 8, 2: wire === 2 && varint(), 5: 4 }[wire];
    if (length === undefined) throw new InputError('model.onnx is not an ONNX file');
    yield [key >>> 3, bytes.subarray(at, at + length)];
    at += length;
  }
}

// The metadata of an ONNX file, which onnxruntime-web does not show: field 14 of ModelProto.
export function metadata(bytes) {
  const text = (part) => new TextDecoder().decode(part);
  const entries = [...fields(bytes)].filter(([field]) => field === 14).map(([, entry]) => {
    const { 1: key, 2: value } = Object.fromEntries(fields(entry));
    return [text(key), text(value)];
  });
  const meta = Object.fromEntries(entries);
  for (const key of ['classes', 'palette', 'size', 'resize', 'notes']) {
    if (!(key in meta)) throw new InputError('model.onnx was not written by tools/deployment/export.py');
    meta[key] = JSON.parse(meta[key]);
  }
  return meta;
}

async function load(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new InputError(`${address} cannot be read (${answer.status})`);
  return new Uint8Array(await answer.arrayBuffer());
}

// onnxruntime-web, from where the import map of the page says.
async function runtime() {
  try {
    const ort = await import('onnxruntime-web');
    // A worker computes, so that the page stays alive.
    ort.env.wasm.proxy = true;
    ort.env.logLevel = 'error';
    return ort;
  } catch (error) {
    throw new InputError(`onnxruntime-web cannot be loaded: install it as export.py printed (${error.message})`);
  }
}

// ---- Resizing ----

const cubic = (a) => (d) =>
  d <= 1 ? ((a + 2) * d - (a + 3)) * d * d + 1 : d < 2 ? ((a * d - 5 * a) * d + 8 * a) * d - 4 * a : 0;
const triangle = (d) => Math.max(0, 1 - d);
const clamp = (i, n) => Math.min(Math.max(i, 0), n - 1);

// The taps of an axis: for each of n new positions, `count` old ones (`from`) and their weights.
function taps(n, count, tap) {
  const from = new Int32Array(n * count);
  const weights = new Float64Array(n * count);
  for (let i = 0; i < n; i++) {
    for (let t = 0; t < count; t++) [from[i * count + t], weights[i * count + t]] = tap(i, t);
  }
  return { n, count, from, weights };
}

const nearest = (index) => (old, n) => taps(n, 1, (i) => [clamp(Math.floor(index(i, old, n)), old), 1]);

// Between pixel centres, as cv2 and torch do, in float32.
const between = (first, count, weight) => (old, n) =>
  taps(n, count, (i, t) => {
    const at = ((i + 0.5) * old) / n - 0.5;
    const low = Math.floor(at) + first + t;
    return [clamp(low, old), Math.fround(weight(Math.abs(at - low)))];
  });

// Over all pixels that a new one covers, as pillow does, with weights of 22 bits.
const over = (reach, weight) => (old, n) => {
  const scale = old / n;
  const wide = Math.max(scale, 1);
  const windows = Array.from({ length: n }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - reach * wide + 0.5));
    const end = Math.min(old, Math.trunc(centre + reach * wide + 0.5));
    const raw = Array.from({ length: end - start }, (_, t) =>
      weight(Math.abs((t + start - centre + 0.5) / wide)));
    const sum = raw.reduce((a, b) => a + b, 0);
    return { start, weights: raw.map((w) => Math.trunc((w / sum) * 2 ** 22 + Math.sign(w) * 0.5) / 2 ** 22) };
  });
  const count = Math.max(...windows.map((w) => w.weights.length));
  return taps(n, count, (i, t) => [clamp(windows[i].start + t, old), windows[i].weights[t] ?? 0]);
};

const TAPS = {
  cv2: {
    nearest: nearest((i, old, n) => i * (old / n)),
    bilinear: between(0, 2, triangle),
    bicubic: between(-1, 4, cubic(-0.75)),
  },
  pillow: {
    nearest: nearest((i, old, n) => (i + 0.5) * (old / n)),
    bilinear: over(1, triangle),
    bicubic: over(2, cubic(-0.5)),
  },
};

// Resize one axis. `round` follows each operation, `finish` the sum.
function along(image, vertical, { n, count, from, weights }, Data, round, finish) {
  const { data, channels, height, width } = image;
  const [rows, columns] = vertical ? [n, width] : [height, n];
  const result = new Data(channels * rows * columns);
  const step = vertical ? width : 1;
  for (let c = 0, out = 0; c < channels; c++) {
    for (let y = 0; y < rows; y++) {
      for (let x = 0; x < columns; x++, out++) {
        const start = c * height * width + (vertical ? x : y * width);
        const first = (vertical ? y : x) * count;
        let sum = 0;
        for (let t = first; t < first + count; t++) {
          sum = round(sum + round(data[start + from[t] * step] * weights[t]));
        }
        result[out] = finish(sum);
      }
    }
  }
  return { data: result, channels, height: rows, width: columns };
}

const same = (x) => x;

// Maps between pixel centres in another size.
function interpolate(maps, [height, width], axis = TAPS.cv2.bilinear) {
  const rows = along(maps, true, axis(maps.height, height), Float32Array, Math.fround, same);
  return along(rows, false, axis(maps.width, width), Float32Array, Math.fround, same);
}

// An image in another size.
export function resize(image, [height, width], { backend = 'cv2', interpolation = 'bilinear' } = {}) {
  if (image.height === height && image.width === width) return image;
  const axis = TAPS[backend]?.[interpolation];
  if (!axis) throw new InputError(`interpolation='${interpolation}' of the test pipeline is not in this demo`);
  if (backend === 'cv2') {
    const resized = interpolate(image, [height, width], axis);
    // This array rounds to the nearest, halves to even, and clips.
    return { ...resized, data: Uint8ClampedArray.from(resized.data) };
  }
  const byte = [Uint8ClampedArray, same, (sum) => Math.floor(sum + 0.5)];
  const columns = along(image, false, axis(image.width, width), ...byte);
  return along(columns, true, axis(image.height, height), ...byte);
}

function crop({ data, channels, height, width }, top, left, rows, columns) {
  const [bottom, right] = [Math.min(top + rows, height), Math.min(left + columns, width)];
  const result = new Uint8ClampedArray(channels * (bottom - top) * (right - left));
  for (let c = 0, out = 0; c < channels; c++) {
    for (let y = top; y < bottom; y++, out += right - left) {
      const row = (c * height + y) * width;
      result.set(data.subarray(row + left, row + right), out);
    }
  }
  return { data: result, channels, height: bottom - top, width: right - left };
}

// Python rounds halves to even.
const rounded = (x) => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

// One step of the test pipeline that changes the size.
export function follow(step, image) {
  const { height, width } = image;
  const how = { backend: step.backend ?? undefined, interpolation: step.interpolation ?? undefined };
  if (step.type === 'CenterCrop') {
    const [columns, rows] = [step.crop_size].flat().length > 1 ? step.crop_size : Array(2).fill(step.crop_size);
    const [top, left] = [(height - rows) / 2, (width - columns) / 2].map((x) => Math.max(0, rounded(x)));
    return crop(image, top, left, rows, columns);
  }
  let scale = step.scale;
  if (step.type === 'ResizeEdge') {
    const edge = step.edge ?? 'short';
    const wide = edge === 'width' || (edge === 'short' && width < height) || (edge === 'long' && width > height);
    const size = wide
      ? [Math.trunc((scale * height) / width), scale]
      : [scale, Math.trunc((scale * width) / height)];
    return resize(image, size, how);
  }
  if (scale == null) {
    const factors = [step.scale_factor].flat();
    scale = [width * factors[0], height * (factors[1] ?? factors[0])].map((n) => Math.trunc(n + 0.5));
  }
  scale = Array.isArray(scale) ? scale : [scale, scale];
  if (!step.keep_ratio) return resize(image, [scale[1], scale[0]], how);
  const factor = Math.min(
    Math.max(...scale) / Math.max(height, width), Math.min(...scale) / Math.min(height, width));
  return resize(image, [height, width].map((n) => Math.trunc(n * factor + 0.5)), how);
}

// ---- Reading and predicting ----

// An image, RGB, upright, without a colour profile applied.
async function read(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: 'none', premultiplyAlpha: 'none' });
  } catch {
    throw new InputError(`${blob.name ?? 'this'} is not an image that this browser can read`);
  }
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, width, height).data;
  const size = width * height;
  const data = new Uint8ClampedArray(3 * size);
  for (let i = 0; i < size; i++) for (let c = 0; c < 3; c++) data[c * size + i] = pixels[4 * i + c];
  return { data, channels: 3, height, width };
}

// The label of each pixel of the image.
export function labels(outputs, { height, width }) {
  const result = new Int32Array(height * width);
  const maps = outputs.logits ?? outputs.scores;
  if (!maps) {
    const [, rows, columns] = outputs.labels.dims;
    for (let y = 0, i = 0; y < height; y++) {
      const row = Math.floor((y * rows) / height) * columns;
      for (let x = 0; x < width; x++, i++) {
        result[i] = Number(outputs.labels.data[row + Math.floor((x * columns) / width)]);
      }
    }
    return result;
  }
  const [, classes, rows, columns] = maps.dims;
  const best = new Float32Array(height * width).fill(-Infinity);
  for (let c = 0; c < classes; c++) {
    const data = maps.data.subarray(c * rows * columns, (c + 1) * rows * columns);
    const plane = interpolate({ data, channels: 1, height: rows, width: columns }, [height, width]).data;
    for (let i = 0; i < plane.length; i++) if (plane[i] > best[i]) [best[i], result[i]] = [plane[i], c];
  }
  return result;
}

// The score of each class of a classifier, or null where the file gives only the label.
function scores({ scores, logits }) {
  if (!logits) return scores ? Array.from(scores.data) : null;
  const largest = Math.max(...logits.data);
  const powers = Array.from(logits.data, (x) => Math.exp(x - largest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((x) => x / sum);
}

// ---- The page ----

const $$ = (id) => document.getElementById(id);

function say(text, wrong = false) {
  $$('status').textContent = text;
  $$('status').className = wrong ? 'wrong' : '';
}

// Pixels (H, W) of a canvas; `colour` gives the red, green and blue of one.
function paint(canvas, { height, width }, colour) {
  Object.assign(canvas, { height, width, className: width < 400 ? 'small' : '' });
  const pixels = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    const [red, green, blue] = colour(i);
    pixels.data[4 * i] = red;
    pixels.data[4 * i + 1] = green;
    pixels.data[4 * i + 2] = blue;
    pixels.data[4 * i + 3] = 255;
  }
  canvas.getContext('2d').putImageData(pixels, 0, 0);
}

// A line for each class with its share or score.
function list(shares, meta, colours) {
  const order = shares.map((share, label) => ({ share, label })).sort((a, b) => b.share - a.share);
  const shown = colours ? order.filter(({ share }) => share > 0) : order.slice(0, 5);
  const rows = shown.map(({ share, label }) => {
    const row = document.createElement('li');
    row.innerHTML = `${colours ? '<i></i>' : ''}<b></b><output></output>${colours ? '' : '<progress></progress>'}`;
    row.querySelector('b').textContent = meta.classes[label];
    row.querySelector('output').textContent = `${(100 * share).toFixed(1)} %`;
    if (colours) row.querySelector('i').style.background = `rgb(${meta.palette[label]})`;
    else row.querySelector('progress').value = share;
    return row;
  });
  $$('classes').replaceChildren(...rows);
}

function show(image, outputs, meta) {
  const size = image.width * image.height;
  const segmentor = meta.task === 'segmentation';
  $$('result').hidden = false;
  $$('blend').hidden = $$('mask').hidden = !segmentor;
  paint($$('image'), image, (i) => [image.data[i], image.data[size + i], image.data[2 * size + i]]);
  if (segmentor) {
    const found = labels(outputs, image);
    const shares = new Array(meta.classes.length).fill(0);
    for (const label of found) shares[label] += 1 / size;
    paint($$('mask'), image, (i) => meta.palette[found[i]]);
    list(shares, meta, true);
  } else {
    const label = Number(outputs.labels?.data[0]);
    list(scores(outputs) ?? meta.classes.map((_, i) => Number(i === label)), meta, false);
  }
}

async function predict(blob, { ort, session, meta }) {
  const start = performance.now();
  const image = await read(blob);
  const x = meta.size ? resize(image, meta.size) : meta.resize.reduce((last, step) => follow(step, last), image);
  const images = new ort.Tensor('float32', Float32Array.from(x.data), [1, 3, x.height, x.width]);
  show(image, await session.run({ images }), meta);
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  say(`${image.width} x ${image.height}, seen at ${x.width} x ${x.height}, in ${seconds} s`);
}

function enable(on) {
  $$('file').disabled = $$('sample').disabled = !on;
}

// Run an action with the buttons off; its end, or the reason why it failed, is in the status line.
async function busy(text, action) {
  document.body.dataset.state = 'busy';
  enable(false);
  say(text);
  try {
    await action();
    document.body.dataset.state = 'done';
  } catch (error) {
    say(error instanceof InputError ? error.message : `This did not work: ${error.message ?? error}`, true);
    document.body.dataset.state = 'failed';
  }
}

async function start() {
  let model;
  $$('sample').hidden = !$$('sample').value;
  await busy('Loading the model', async () => {
    const file = await load('model.onnx');
    const meta = metadata(file);
    const [kind, number] = [meta.task === 'segmentation' ? 'Segmentation' : 'Classification', meta.classes.length];
    $$('name').textContent = `${kind} into ${number} classes`;
    for (const note of meta.notes) $$('notes').appendChild(document.createElement('li')).textContent = note;
    const ort = await runtime();
    model = { ort, meta, session: await ort.InferenceSession.create(file) };
    say('Ready');
  });
  if (!model) return;
  enable(true);
  const run = async (blob) => {
    if (!blob || document.body.dataset.state === 'busy') return;
    await busy('Working', async () => predict(await blob, model));
    enable(true);
  };
  $$('file').onchange = ({ target }) => run(target.files[0]);
  $$('sample').onclick = () => run(load($$('sample').value).then((bytes) => new Blob([bytes])));
  $$('opacity').oninput = ({ target }) => { $$('mask').style.opacity = target.value; };
  $$('mask').style.opacity = $$('opacity').value;
  document.ondragover = (event) => {
    event.preventDefault();
    $$('drop').className = 'over';
  };
  document.ondragleave = () => { $$('drop').className = ''; };
  document.ondrop = (event) => {
    event.preventDefault();
    $$('drop').className = '';
    run(event.dataTransfer.files[0]);
  };
}

start();
