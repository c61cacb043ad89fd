// The page of bcd_review: a picture, its mask as a layer over it, and brushes. No build step, nothing from elsewhere.
'use strict';

const OBJECT = 255, GROUND = 0, UNKNOWN = 127, UNTOUCHED = 64; // values of masks; the last one of drafts alone
const VALUE_OF = {brush: OBJECT, eraser: GROUND, unknown: UNKNOWN};
const LOOKS = ['fill', 'outline', 'none'];
const SAVE_AFTER = 400, TRY_AGAIN = 5000; // ms
const MOST_STEPS = 200, MOST_HELD = 2**28; // of undo: steps, bytes
const AMBER = 0x00beff, BLUE = 0xff8c3f; // blue, green, red
const BAND = 512; // rows that are drawn at a time
const HATCH = 8; // pixels, of what is unknown

const $ = id => document.getElementById(id);
const tab = crypto.randomUUID();
const view = $('view'), pen = view.getContext('2d');
const S = { // what is shown
  pictures: [], at: -1, about: null, w: 0, h: 0, busy: true,
  pixels: null, levels: null, saved: null, strokes: null, mask: null, // (h*w) each; pixels are RGBA
  level: 128, base: 'prediction', steps: [], place: 0, // steps before `place` are done
  tool: 'brush', size: 12, look: 'fill', opacity: 70, stretch: false, bright: 0,
  scale: 1, x: 0, y: 0, brush: null, stroke: null, drag: null, space: false,
  change: 0, kept: 0, timer: null, sending: null,
};
const shownPicture = document.createElement('canvas'), shownMask = document.createElement('canvas');
const clamp = (v, a, b) => Math.min(b, Math.max(a, v));

// ---- The server

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, {...options, headers: {'X-Review-Tab': tab}});
  } catch {
    throw new Error('bcd_review does not answer: start it again in the terminal. What was saved is in the folder.');
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({error: `bcd_review answered with ${answer.status}.`}));
  throw new Error(said.error);
}

async function pixelsOf(path) { // of a PNG -> ImageData
  const blob = await (await ask(path)).blob();
  const bitmap = await createImageBitmap(blob, {colorSpaceConversion: 'none', premultiplyAlpha: 'none'});
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height), c = canvas.getContext('2d');
  c.drawImage(bitmap, 0, 0);
  return c.getImageData(0, 0, bitmap.width, bitmap.height);
}

// Masks never go through a canvas: some browsers change what is read from one, so that pages cannot know a machine.

async function grayOf(path) { // bytes of (h*w), which the browser inflates -> Uint8Array
  return new Uint8Array(await (await ask(path)).arrayBuffer());
}

const CRC = new Uint32Array(256).map((_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320^(n>>>1) : n>>>1;
  return n;
});

function chunk(kind, data) { // of a PNG: length, name, data, checksum
  const out = new Uint8Array(data.length+12), words = new DataView(out.buffer);
  words.setUint32(0, data.length);
  for (let i = 0; i < 4; i++) out[4+i] = kind.charCodeAt(i);
  out.set(data, 8);
  let crc = -1;
  for (let i = 4; i < data.length+8; i++) crc = CRC[(crc^out[i]) & 255]^(crc>>>8);
  words.setUint32(data.length+8, ~crc);
  return out;
}

async function pngOf(gray) { // Uint8Array -> Blob
  const {w, h} = S, rows = new Uint8Array((w+1)*h), head = new DataView(new ArrayBuffer(13));
  for (let y = 0; y < h; y++) rows.set(gray.subarray(y*w, (y+1)*w), y*(w+1)+1); // each after a 0: no filter
  head.setUint32(0, w);
  head.setUint32(4, h);
  head.setUint8(8, 8); // bits, gray
  const packed = new Blob([rows]).stream().pipeThrough(new CompressionStream('deflate'));
  const data = new Uint8Array(await new Response(packed).arrayBuffer());
  const first = new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]);
  return new Blob([first, chunk('IHDR', new Uint8Array(head.buffer)), chunk('IDAT', data), chunk('IEND', [])]);
}

// ---- Mask: the prediction from the threshold on, or a saved mask; strokes lie on top

function layValues(i, end) { // of the mask, pixels from i on
  const {mask, strokes, saved, levels, level} = S, kept = S.base === 'mask';
  for (; i < end; i++) {
    const s = strokes[i];
    mask[i] = s !== UNTOUCHED ? s : kept ? saved[i] : levels[i] >= level ? OBJECT : GROUND;
  }
}

const reach = () => Math.max(1, 2**Math.round(Math.log2(2/S.scale))); // width of an outline, pixels of the picture

function layBand(x0, y0, x1, y1, d) { // how a rectangle of the mask looks; d: `reach`
  const {w, h, mask} = S, outline = S.look === 'outline', context = shownMask.getContext('2d');
  const image = new ImageData(x1-x0, y1-y0), words = new Uint32Array(image.data.buffer);
  for (let y = y0, k = 0; y < y1; y++) for (let x = x0, i = y*w+x0; x < x1; x++, i++, k++) {
    const v = mask[i];
    if (v === GROUND) continue;
    const edge = x >= d && mask[i-d] !== v || x+d < w && mask[i+d] !== v ||
      y >= d && mask[i-d*w] !== v || y+d < h && mask[i+d*w] !== v;
    const colour = v === OBJECT ? AMBER : BLUE, hatched = v === UNKNOWN && (x+y)%HATCH >= HATCH/2;
    if (edge || !outline) words[k] = (edge ? 0xff000000 : hatched ? 0x30000000 : 0x98000000) | colour;
  }
  context.putImageData(image, x0, y0);
}

function layMask(x0 = 0, y0 = 0, x1 = S.w, y1 = S.h, anew = true) { // a rectangle of the mask, and how it looks
  const {w, h} = S, d = reach();
  if (anew) for (let y = y0; y < y1; y++) layValues(y*w+x0, y*w+x1);
  x0 = clamp(x0-d, 0, w); x1 = clamp(x1+d, 0, w); y0 = clamp(y0-d, 0, h); y1 = clamp(y1+d, 0, h);
  if (x1 > x0) for (let y = y0; y < y1; y += BAND) layBand(x0, y, x1, Math.min(y+BAND, y1), d);
}

// ---- Picture: contrast and brightness

function layPicture() {
  const {pixels, w, h} = S, counts = new Uint32Array(256);
  let low = 0, high = 255;
  if (S.stretch) {
    for (let i = 0; i < pixels.length; i += 4) counts[(pixels[i]+pixels[i+1]+pixels[i+2])/3|0]++;
    const n = pixels.length/4;
    let sum = 0;
    for (low = 0; low < 255 && (sum += counts[low]) < .005*n; low++);
    for (sum = 0, high = 255; high > low+1 && (sum += counts[high]) < .005*n; high--);
  }
  const gamma = 2**(-S.bright/50), table = new Uint8ClampedArray(256);
  for (let v = 0; v < 256; v++) table[v] = 255*clamp((v-low)/(high-low), 0, 1)**gamma;
  const image = new ImageData(w, h), out = image.data;
  for (let i = 0; i < pixels.length; i += 4) {
    out[i] = table[pixels[i]]; out[i+1] = table[pixels[i+1]]; out[i+2] = table[pixels[i+2]]; out[i+3] = 255;
  }
  shownPicture.getContext('2d').putImageData(image, 0, 0);
}

// ---- Screen

let asked = false;
function draw() {
  if (!asked) requestAnimationFrame(drawNow);
  asked = true;
}

function drawNow() {
  asked = false;
  const dpr = devicePixelRatio;
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, view.width, view.height);
  if (!S.mask) return;
  refresh();
  pen.setTransform(dpr*S.scale, 0, 0, dpr*S.scale, dpr*S.x, dpr*S.y);
  pen.imageSmoothingEnabled = S.scale*dpr < 1.5;
  pen.imageSmoothingQuality = 'high';
  pen.drawImage(shownPicture, 0, 0);
  pen.globalAlpha = S.look === 'outline' ? Math.min(1, .3+S.opacity/100) : S.opacity/100;
  if (S.look !== 'none') pen.drawImage(shownMask, 0, 0);
  pen.globalAlpha = 1;
  if (S.brush && !S.space && !S.drag) drawBrush(dpr);
}

function drawBrush(dpr) {
  const [x, y] = screenOf(S.brush.x, S.brush.y);
  pen.setTransform(dpr, 0, 0, dpr, 0, 0);
  for (const [colour, width] of [['rgb(0 0 0 / .7)', 3], ['#ffffff', 1.4]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.setLineDash(S.tool === 'eraser' ? [4, 3] : []);
    pen.beginPath();
    pen.arc(x, y, Math.max(2, S.size/2*S.scale), 0, 2*Math.PI);
    pen.moveTo(x-2, y); pen.lineTo(x+2, y); pen.moveTo(x, y-2); pen.lineTo(x, y+2);
    pen.stroke();
  }
}

const screenOf = (x, y) => [S.x+S.scale*x, S.y+S.scale*y]; // of the picture -> of the canvas
const pictureOf = (x, y) => ({x: (x-S.x)/S.scale, y: (y-S.y)/S.scale});
const leastScale = () => .9*Math.min(1, view.clientWidth/S.w, view.clientHeight/S.h);

function zoomTo(scale, x = view.clientWidth/2, y = view.clientHeight/2) { // about a point of the canvas
  const p = pictureOf(x, y), before = reach();
  S.scale = clamp(scale, leastScale(), 40);
  moveTo(x-S.scale*p.x, y-S.scale*p.y);
  if (reach() !== before && S.mask) layMask(0, 0, S.w, S.h, false);
  $('scale').textContent = `${Math.round(100*S.scale)} %`;
}

function moveTo(x, y) { // some of the picture stays in sight
  S.x = clamp(x, 60-S.scale*S.w, view.clientWidth-60);
  S.y = clamp(y, 60-S.scale*S.h, view.clientHeight-60);
  draw();
}

function fit() {
  if (!S.w) return;
  zoomTo(.96*Math.min(view.clientWidth/S.w, view.clientHeight/S.h));
  moveTo((view.clientWidth-S.scale*S.w)/2, (view.clientHeight-S.scale*S.h)/2);
}

function onResize() {
  view.width = Math.round(view.clientWidth*devicePixelRatio);
  view.height = Math.round(view.clientHeight*devicePixelRatio);
  if (S.mask && !S.moved) fit();
  drawNow();
}

// ---- Strokes

function stampLine(a, b, value) { // all pixels whose middle is near the line from a to b
  const r = S.size/2, {w, h, strokes} = S;
  const x0 = clamp(Math.floor(Math.min(a.x, b.x)-r), 0, w), x1 = clamp(Math.ceil(Math.max(a.x, b.x)+r), 0, w);
  const y0 = clamp(Math.floor(Math.min(a.y, b.y)-r), 0, h), y1 = clamp(Math.ceil(Math.max(a.y, b.y)+r), 0, h);
  const dx = b.x-a.x, dy = b.y-a.y, length = dx*dx+dy*dy, near = Math.max(r*r, .51);
  for (let y = y0; y < y1; y++) for (let x = x0; x < x1; x++) {
    const px = x+.5-a.x, py = y+.5-a.y, t = length ? clamp((px*dx+py*dy)/length, 0, 1) : 0;
    if ((px-t*dx)**2+(py-t*dy)**2 <= near) strokes[y*w+x] = value;
  }
  if (x1 > x0 && y1 > y0) layMask(x0, y0, x1, y1);
  return [x0, y0, x1, y1];
}

const both = (a, b) => a[2] <= a[0] || a[3] <= a[1] ? b : b[2] <= b[0] || b[3] <= b[1] ? a :
  [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[2], b[2]), Math.max(a[3], b[3])];

function beginStroke(tool) {
  if (S.busy || !S.mask) return;
  S.stroke = {value: VALUE_OF[tool], last: {...S.brush}, before: S.strokes.slice(), was: setting()};
  S.stroke.rect = stampLine(S.brush, S.brush, S.stroke.value);
  draw();
}

function goOn() {
  const s = S.stroke;
  s.rect = both(s.rect, stampLine(s.last, S.brush, s.value));
  s.last = {...S.brush};
}

function endStroke() {
  const s = S.stroke;
  S.stroke = null;
  if (s && s.rect[2] > s.rect[0] && s.rect[3] > s.rect[1])
    keep({rect: s.rect, before: cut(s.before, s.rect), after: cut(S.strokes, s.rect), was: s.was, is: setting()});
}

// ---- Undo

const setting = () => ({level: S.level, base: S.base});

function cut(a, [x0, y0, x1, y1]) {
  const out = new Uint8Array((x1-x0)*(y1-y0));
  for (let y = y0; y < y1; y++) out.set(a.subarray(y*S.w+x0, y*S.w+x1), (y-y0)*(x1-x0));
  return out;
}

function paste(part, [x0, y0, x1, y1]) {
  for (let y = y0; y < y1; y++) S.strokes.set(part.subarray((y-y0)*(x1-x0), (y-y0+1)*(x1-x0)), y*S.w+x0);
}

function keep(step) { // what was done
  S.steps.length = S.place;
  const last = S.steps.at(-1);
  if (step.key && last?.key && Date.now()-last.time < 900) last.is = step.is; // a threshold that is being typed
  else S.steps.push({...step, time: Date.now()});
  const held = () => S.steps.reduce((n, s) => n+(s.rect ? s.before.length+s.after.length : 0), 0);
  while (S.steps.length > MOST_STEPS || S.steps.length > 1 && held() > MOST_HELD) S.steps.shift();
  S.place = S.steps.length;
  changed();
}

function apply(step, part, set) {
  if (step.rect) paste(part, step.rect);
  Object.assign(S, set);
  layMask();
  changed();
}

function undo() {
  if (S.busy || S.stroke || !S.place) return;
  const step = S.steps[--S.place];
  apply(step, step.before, step.was);
}

function redo() {
  if (S.busy || S.stroke || S.place === S.steps.length) return;
  const step = S.steps[S.place++];
  apply(step, step.after, step.is);
}

function fresh() {
  if (S.busy || !S.mask) return;
  const rect = [0, 0, S.w, S.h], before = S.strokes.slice(), was = setting();
  S.strokes.fill(UNTOUCHED);
  Object.assign(S, {level: S.about.level, base: 'prediction'});
  layMask();
  keep({rect, before, after: S.strokes.slice(), was, is: setting()});
}

function setLevel(level, key = false) {
  if (S.busy || S.base === 'mask') return;
  const was = setting();
  S.level = clamp(level, 1, 255);
  if (S.level === was.level) return;
  if (key) keep({key, was, is: setting()});
  S.stale = true; // until the next frame: a slider asks for many levels in one
  show();
}

function refresh() { // the mask at a new threshold
  if (S.stale && S.mask) layMask();
  S.stale = false;
}

// ---- Saving: a draft after each change; `right` and `nothing` write the mask

function changed() {
  S.change++;
  S.said = '';
  clearTimeout(S.timer);
  S.timer = setTimeout(save, SAVE_AFTER);
  show();
}

const untouched = () => S.level === S.about.level && S.base === S.about.base && S.strokes.every(v => v === UNTOUCHED);

async function save() { // resolves when all is saved, or could not be
  clearTimeout(S.timer);
  while (S.sending) await S.sending;
  if (S.change === S.kept) return;
  S.sending = send();
  await S.sending;
  S.sending = null;
  if (S.change !== S.kept && !S.failed) return save();
}

async function send() {
  const change = S.change, about = S.about, none = untouched();
  S.failed = '';
  try {
    if (none) await ask(`api/forget?picture=${S.at}`, {method: 'POST'});
    else {
      const words = `picture=${S.at}&level=${S.level}&base=${S.base}`;
      await ask(`api/draft?${words}`, {method: 'POST', body: await pngOf(S.strokes)});
    }
    S.kept = change;
    S.pictures[S.at].draft = !none;
  } catch (e) {
    S.failed = e.message;
    S.timer = setTimeout(save, TRY_AGAIN);
  }
  if (about === S.about) show();
}

async function finish(how) {
  if (S.busy || S.stroke || !S.mask) return;
  refresh();
  S.busy = true;
  show();
  try {
    clearTimeout(S.timer);
    while (S.sending) await S.sending;
    const body = how === 'right' ? await pngOf(S.mask) : undefined;
    const state = await (await ask(`api/${how}?picture=${S.at}`, {method: 'POST', body})).json();
    S.kept = S.change;
    S.failed = '';
    Object.assign(S.pictures[S.at], state);
    S.said = `${S.pictures[S.at].name}: ${how === 'right' ? 'mask' : 'empty mask'} saved`;
  } catch (e) {
    S.failed = e.message;
    S.busy = false;
    return show();
  }
  S.busy = false;
  const next = [...S.pictures.keys()].map(i => (S.at+1+i)%S.pictures.length).find(i => !S.pictures[i].done);
  if (next === undefined) return end();
  await open(next);
}

function end() {
  const n = S.pictures.length, empty = S.pictures.filter(p => p.done === 'nothing').length;
  $('endText').textContent = `${n} mask${n > 1 ? 's' : ''} written, ${empty} of them of pictures where nothing is.`;
  show();
  $('end').showModal();
}

// ---- One picture after the other

async function open(at) {
  if (at < 0 || at >= S.pictures.length || S.busy || S.stroke) return;
  if (S.mask) await save();
  if (S.mask && S.change !== S.kept) return show(); // it could not be saved
  S.failed = '';
  const picture = S.pictures[at];
  Object.assign(S, {at, busy: true, mask: null, about: null, steps: [], place: 0, change: 0, kept: 0, moved: false});
  $('alert').hidden = true;
  $('waiting').textContent = 'The mask is being predicted';
  const slow = setTimeout(() => { $('wait').hidden = false; }, 150);
  show();
  draw();
  try {
    await take(at);
  } catch (e) {
    $('alert').textContent = e.message;
    $('alert').hidden = false;
  }
  clearTimeout(slow);
  $('wait').hidden = true;
  S.busy = false;
  if (S.mask && S.about.note) Object.assign(S, {failed: '', said: S.about.note});
  show();
  return picture;
}

async function take(at) {
  const about = await (await ask(`api/picture?picture=${at}`)).json(), n = about.width*about.height;
  const blank = () => new Uint8Array(n).fill(UNTOUCHED);
  const [image, levels, saved, strokes] = await Promise.all([
    pixelsOf(`api/image?picture=${at}`), grayOf(`api/levels?picture=${at}`),
    about.mask ? grayOf(`api/mask?picture=${at}`) : null, about.draft ? grayOf(`api/draft?picture=${at}`) : blank()]);
  const {level, base} = about.draft || about;
  Object.assign(S, {about, w: about.width, h: about.height, pixels: image.data, levels, saved, strokes, level, base});
  for (const c of [shownPicture, shownMask]) Object.assign(c, {width: S.w, height: S.h});
  S.mask = new Uint8Array(n);
  layPicture();
  layMask();
  fit();
}

async function skip() {
  const before = S.at;
  if (S.at+1 < S.pictures.length) await open(S.at+1);
  if (S.at !== before) S.said = `${S.pictures[before].name} skipped`;
  show();
}

// ---- What stands around the picture

function shareAt(level) { // a level -> the probability from which on a pixel is object
  const t = S.about.threshold, own = S.about.own;
  return level <= own ? t*level/own : t+(1-t)*(level-own)/(255-own);
}

function sayState() {
  if (S.failed) return ['bad', S.failed];
  if (!S.mask) return ['', ''];
  if (S.change !== S.kept) return ['open', 'saving'];
  const p = S.pictures[S.at];
  if (p.draft) return ['saved', 'Draft saved: it counts when you say Right'];
  if (S.said) return ['saved', S.said];
  return p.done || S.about.mask ? ['saved', 'Mask saved'] : ['', 'Not looked at yet'];
}

function show() {
  const p = S.pictures[S.at] || {name: ''}, here = Boolean(S.mask) && !S.busy;
  const done = S.pictures.filter(q => q.done).length;
  $('name').textContent = $('name').title = p.name;
  $('facts').textContent = S.about ? `${S.w} × ${S.h} pixels` : '';
  $('progress').textContent = S.at < 0 ? '' : `${S.at+1} of ${S.pictures.length}`;
  $('progress').title = `${done} done`;
  document.title = S.at < 0 ? 'bcd_review' : `${S.at+1} of ${S.pictures.length}, bcd_review`;
  for (const [i, b] of [...$('steps').querySelectorAll('button')].entries()) {
    const q = S.pictures[i], state = q.done ? 'done' : q.draft ? 'draft' : 'open';
    b.className = state;
    b.title = `${i+1}: ${q.name}, ${state}`;
    b.setAttribute('aria-label', b.title);
    i === S.at ? b.setAttribute('aria-current', 'step') : b.removeAttribute('aria-current');
  }
  for (const b of document.querySelectorAll('[data-tool]')) b.setAttribute('aria-checked', b.dataset.tool === S.tool);
  for (const b of document.querySelectorAll('[data-look]')) b.setAttribute('aria-checked', b.dataset.look === S.look);
  $('size').value = toSlide(S.size);
  $('sizeIs').textContent = `${S.size} px`;
  $('opacity').value = S.opacity;
  $('opacityIs').textContent = `${S.opacity} %`;
  $('bright').value = S.bright;
  $('brightIs').textContent = S.bright > 0 ? `+${S.bright}` : S.bright;
  $('stretch').checked = S.stretch;
  $('level').value = S.level;
  $('level').disabled = !here || S.base === 'mask';
  $('levelIs').textContent = !S.about ? '' : S.base === 'mask' ? 'saved mask' : shareAt(S.level).toFixed(3);
  $('about').textContent = !S.about ? '' : S.base === 'mask' ? 'The saved mask is shown as it is.' :
    `Strokes stay on top. The model's own threshold is ${S.about.threshold.toFixed(3)}.`;
  for (const id of ['right', 'nothing', 'fresh']) $(id).disabled = !here;
  $('undo').disabled = !here || !S.place;
  $('redo').disabled = !here || S.place === S.steps.length;
  $('back').disabled = S.busy || S.at < 1;
  $('skip').disabled = S.busy || S.at+1 >= S.pictures.length;
  const [kind, text] = sayState();
  $('status').className = kind;
  if ($('status').textContent !== text) $('status').textContent = $('status').title = text;
  draw();
}

const toSlide = size => Math.round(100*Math.log(size)/Math.log(400)); // sizes from 1 to 400 px
const fromSlide = v => Math.max(1, Math.round(400**(v/100)));

function setSize(size) { S.size = clamp(Math.round(size), 1, 400); show(); }
function setTool(tool) { S.tool = tool; show(); }
function setLook(look) {
  S.look = look;
  if (S.mask) layMask(0, 0, S.w, S.h, false);
  show();
}
function setPicture(change) {
  Object.assign(S, change);
  if (S.mask) layPicture();
  show();
}

function setTheme(theme) { document.documentElement.dataset.theme = theme; }
const darkIsWanted = matchMedia('(prefers-color-scheme: dark)');
setTheme(darkIsWanted.matches ? 'dark' : 'light');
darkIsWanted.onchange = e => setTheme(e.matches ? 'dark' : 'light');
const otherTheme = () => setTheme(document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark');

// ---- Mouse and pen

function follow(e) {
  const box = view.getBoundingClientRect();
  S.brush = pictureOf(e.clientX-box.left, e.clientY-box.top);
}

view.addEventListener('pointerdown', e => {
  if (S.stroke) return;
  view.setPointerCapture(e.pointerId);
  document.activeElement.blur();
  follow(e);
  if (e.button === 1 || S.space) S.drag = {x: e.clientX-S.x, y: e.clientY-S.y};
  else if (e.button === 0) beginStroke(S.tool);
  else if (e.button === 2) beginStroke('eraser');
  e.preventDefault();
});
view.addEventListener('pointermove', e => {
  const parts = e.getCoalescedEvents?.() ?? [];
  if (S.drag) {
    S.moved = true;
    moveTo(e.clientX-S.drag.x, e.clientY-S.drag.y);
  } else for (const part of parts.length ? parts : [e]) {
    follow(part);
    if (S.stroke) goOn();
  }
  draw();
});
for (const kind of ['pointerup', 'pointercancel']) view.addEventListener(kind, () => {
  S.drag = null;
  endStroke();
  draw();
});
view.addEventListener('pointerleave', () => {
  if (!S.stroke) S.brush = null;
  draw();
});
view.addEventListener('contextmenu', e => e.preventDefault());
view.addEventListener('wheel', e => {
  e.preventDefault();
  if (!S.mask) return;
  const box = view.getBoundingClientRect(), lines = e.deltaMode === 1 ? 16 : 1;
  S.moved = true;
  zoomTo(S.scale*Math.exp(-e.deltaY*lines*(e.ctrlKey ? .01 : .0016)), e.clientX-box.left, e.clientY-box.top);
  follow(e);
}, {passive: false});

// ---- Keys

function moveBrush(dx, dy) { // by keys, in pixels of the picture
  if (!S.mask) return;
  S.brush ??= {x: S.w/2, y: S.h/2};
  S.brush = {x: clamp(S.brush.x+dx, 0, S.w), y: clamp(S.brush.y+dy, 0, S.h)};
  if (S.stroke) goOn();
  draw();
}

const zoomKey = factor => () => { if (S.mask) { S.moved = true; zoomTo(S.scale*factor); } };
const arrow = (dx, dy) => e => {
  const step = Math.max(1, Math.round(S.size/4))*(e.shiftKey ? 10 : 1);
  moveBrush(step*dx, step*dy);
};
const KEYS = {
  'enter': () => finish('right'), 'n': () => finish('nothing'), 's': skip, 'p': () => open(S.at-1),
  'b': () => setTool('brush'), 'e': () => setTool('eraser'), 'u': () => setTool('unknown'),
  '[': () => setSize(Math.min(S.size-1, S.size/1.2)), ']': () => setSize(Math.max(S.size+1, S.size*1.2)),
  'm': () => setLook(LOOKS[(LOOKS.indexOf(S.look)+1)%LOOKS.length]),
  'o': () => { S.opacity = S.opacity > 80 ? 20 : S.opacity+20; show(); },
  'c': () => setPicture({stretch: !S.stretch}), 'l': () => setPicture({bright: S.bright >= 100 ? -50 : S.bright+25}),
  'r': fresh, 't': otherTheme, '?': () => $('keys').showModal(),
  ',': () => setLevel(S.level-2, true), '.': () => setLevel(S.level+2, true),
  '+': zoomKey(1.25), '=': zoomKey(1.25), '-': zoomKey(.8), 'f': () => { S.moved = false; fit(); },
  '1': () => { if (S.mask) { S.moved = true; zoomTo(1); } },
  'arrowleft': arrow(-1, 0), 'arrowright': arrow(1, 0), 'arrowup': arrow(0, -1), 'arrowdown': arrow(0, 1),
  'x': () => { if (!S.stroke) { moveBrush(0, 0); beginStroke(S.tool); } },
};

document.addEventListener('keydown', e => {
  if (document.querySelector('dialog[open]')) return;
  const key = e.key.toLowerCase(), at = e.target, isButton = at instanceof HTMLButtonElement;
  if ((e.ctrlKey || e.metaKey) && key === 'z') {
    e.preventDefault();
    return e.shiftKey ? redo() : undo();
  }
  if ((e.ctrlKey || e.metaKey) && key === 'y') {
    e.preventDefault();
    return redo();
  }
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  if (key === ' ' && !isButton && at.type !== 'checkbox') {
    e.preventDefault();
    S.space = true;
    view.classList.add('moving');
    return draw();
  }
  if (isButton && key === 'enter' || at.type === 'range' && key.startsWith('arrow')) return; // their own keys
  if (isButton && at.getAttribute('role') === 'radio' && key.startsWith('arrow')) {
    e.preventDefault();
    const all = [...at.parentElement.children], by = key === 'arrowleft' || key === 'arrowup' ? -1 : 1;
    const next = all[(all.indexOf(at)+by+all.length)%all.length];
    next.focus();
    return next.click();
  }
  const once = ['enter', 'n', 's', 'p', 'r', 'x', 't', 'm', 'c', '?'].includes(key);
  if (!KEYS[key]) return;
  e.preventDefault();
  if (!(once && e.repeat)) KEYS[key](e);
});
document.addEventListener('keyup', e => {
  if (e.key === ' ') {
    S.space = false;
    view.classList.remove('moving');
    draw();
  }
  if (e.key.toLowerCase() === 'x' && S.stroke) endStroke();
});
addEventListener('blur', () => { // a key that is let go elsewhere
  S.space = false;
  view.classList.remove('moving');
  endStroke();
});

// ---- Buttons and sliders

const CLICKS = {
  right: () => finish('right'), nothing: () => finish('nothing'), skip, back: () => open(S.at-1), undo, redo, fresh,
  theme: otherTheme, help: () => $('keys').showModal(), smaller: KEYS['-'], larger: KEYS['+'], fit: KEYS.f,
};
for (const [id, act] of Object.entries(CLICKS)) $(id).addEventListener('click', () => act());
for (const b of document.querySelectorAll('[data-tool]')) b.addEventListener('click', () => setTool(b.dataset.tool));
for (const b of document.querySelectorAll('[data-look]')) b.addEventListener('click', () => setLook(b.dataset.look));
document.addEventListener('click', e => { // keys mean the picture again after a click with the mouse
  const control = e.target.closest?.('button, input');
  if (control && e.detail && !control.closest('dialog')) control.blur();
});
$('size').addEventListener('input', e => setSize(fromSlide(e.target.value)));
$('opacity').addEventListener('input', e => { S.opacity = Number(e.target.value); show(); });
$('bright').addEventListener('input', e => setPicture({bright: Number(e.target.value)}));
$('stretch').addEventListener('input', e => setPicture({stretch: e.target.checked}));
let before = null; // the setting when the slider was taken
$('level').addEventListener('input', e => {
  before ??= setting();
  setLevel(Number(e.target.value));
});
$('level').addEventListener('change', () => {
  refresh();
  if (before && before.level !== S.level) keep({was: before, is: setting()});
  before = null;
});

addEventListener('beforeunload', e => { if (S.mask && S.change !== S.kept) e.preventDefault(); });
document.addEventListener('visibilitychange', () => { if (document.hidden && S.mask) save(); });
new ResizeObserver(onResize).observe(view);

async function start() {
  try {
    S.pictures = await (await ask('api/tab', {method: 'POST'})).json();
  } catch (e) {
    $('alert').textContent = e.message;
    $('alert').hidden = false;
    return;
  }
  if (S.pictures.length <= 60) for (const i of S.pictures.keys()) { // more would be too narrow to be hit
    const button = document.createElement('button'), item = document.createElement('li');
    button.addEventListener('click', () => open(i));
    item.append(button);
    $('steps').append(item);
  }
  S.busy = false;
  const first = S.pictures.findIndex(p => !p.done);
  await open(Math.max(0, first));
}
start();
