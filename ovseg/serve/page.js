const settings = JSON.parse(document.querySelector("main").dataset.settings);
const element = id => document.getElementById(id);
const hasCategories = settings.categories.length > 0;
const canvas = element("canvas");
let shown = null; // the picture in the viewer
let painted = null; // a canvas of it with its outline
let cursor = null; // where the keyboard points in it: [column, row]

// Pictures are sent one after the other, in the order in which they were chosen.
let sending = Promise.resolve();
function add(files) {
  const batch = { isShown: false }; // the first result of it is shown at once
  for (const file of files) {
    const item = document.createElement("li");
    item.textContent = `${file.name}: waiting`;
    element("list").append(item);
    sending = sending.then(() => handle(file, item, batch));
  }
}

async function handle(file, item, batch) {
  item.textContent = `${file.name}: in work ...`;
  tell(`${file.name} is in work.`);
  try {
    const picture = await read(file, 1, []);
    picture.isInWork = false;
    picture.problem = ""; // why the last outline that was asked for is not there
    const button = document.createElement("button");
    button.type = "button";
    picture.button = button;
    picture.threshold = settings.threshold;
    button.textContent = `${file.name}: ${describeArea(picture.ownMask)}`;
    button.addEventListener("click", () => show(picture));
    item.replaceChildren(button);
    if (!batch.isShown && !isMarking()) show(picture);
    batch.isShown = true;
    tell(`${file.name} is done: ${describeArea(picture.ownMask)}.`);
  } catch (error) {
    item.className = "problem";
    item.textContent = `${file.name}: ${error.message}`;
    tell(`${file.name} was not segmented.`);
  }
}

// Another frame of a cine, or the same one with the lesion's ends marked, takes the place of the one
// in the viewer.
function readAgain(picture, frame, ends) {
  const name = nameFrame(picture.file, frame, picture.answer.frames);
  picture.isInWork = true;
  picture.problem = "";
  draw();
  sending = sending.then(async () => {
    tell(`${name} is in work.`);
    try {
      Object.assign(picture, await read(picture.file, frame, ends));
      picture.button.textContent = `${name}: ${describeArea(picture.ownMask)}`;
      tell(`${name} is done: ${describeArea(picture.ownMask)}.`);
    } catch (error) {
      picture.clicked = picture.ends;
      picture.problem = error.message;
      tell(`${name}: ${error.message}`);
    }
    picture.isInWork = false;
    if (shown === picture) show(picture);
  });
}

function nameFrame(file, frame, frames) {
  return frames > 1 ? `${file.name}, frame ${frame}` : file.name;
}

// Whether the person is between two clicks, or waits for what they lead to.
function isMarking() {
  return shown !== null && (shown.clicked.length % 2 === 1 || shown.isInWork);
}

// An end of the lesion, [column, row]; with each second one the model is asked again. There are at
// most two pairs, then they begin anew.
function placeEnd(end) {
  if (shown.isInWork) return;
  shown.clicked = shown.clicked.length === 4 ? [end] : [...shown.clicked, end];
  shown.problem = "";
  if (shown.clicked.length % 2 === 0) readAgain(shown, shown.frame, shown.clicked);
  else drawEnds();
}

// A single end, or all of them.
function clearEnds() {
  if (shown.isInWork) return;
  if (shown.clicked.length % 2 === 1) {
    shown.clicked = shown.ends;
    drawEnds();
  } else if (shown.ends.length) {
    readAgain(shown, shown.frame, []);
  }
}

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
function listenForEnds() {
  canvas.addEventListener("click", event => {
    if (event.detail > 1) return; // the second of a double click
    const column = Math.floor(event.offsetX * canvas.width / canvas.clientWidth);
    const row = Math.floor(event.offsetY * canvas.height / canvas.clientHeight);
    cursor = null; // it is the keyboard's
    placeEnd(clampToPicture([column, row]));
  });
  canvas.addEventListener("keydown", event => {
    if (event.repeat && event.key === "Enter") return;
    if (event.altKey || event.ctrlKey || event.metaKey) return; // the browser's
    if (event.key === "Enter" && cursor) {
      placeEnd(cursor);
    } else if (event.key === "Escape") {
      clearEnds();
    } else if (event.key in STEPS) {
      event.preventDefault(); // the page would scroll
      const length = event.shiftKey ? 10 : 1;
      const [columns, rows] = STEPS[event.key];
      const [column, row] = cursor ?? [Math.floor(canvas.width / 2), Math.floor(canvas.height / 2)];
      cursor = clampToPicture([column + length * columns, row + length * rows]);
      drawEnds();
    }
  });
  canvas.addEventListener("focus", drawEnds); // with the cursor
  canvas.addEventListener("blur", drawEnds);
  element("clear-ends").addEventListener("click", () => {
    canvas.focus(); // the button will be disabled, and would lose it
    clearEnds();
  });
}

function clampToPicture([column, row]) {
  const within = (value, size) => Math.min(Math.max(value, 0), size - 1);
  return [within(column, canvas.width), within(row, canvas.height)];
}

function tell(text) {
  element("status").textContent = text;
}

// The server's answer; an Error with a sentence for the user if there is none.
async function ask(file, frame, ends) {
  if (file.size > settings.maxBytes) {
    throw new Error(`It has more than ${settings.maxBytes / 1e6} MB, the most that is taken.`);
  }
  let content;
  try {
    content = new Blob([await file.arrayBuffer()]);
  } catch {
    throw new Error("The file can't be read any more. Was it moved or changed?");
  }
  const form = new FormData();
  form.append("file", content, "picture"); // the server needs no name
  const query = new URLSearchParams({ frame, mask: true, probabilities: true, picture: true });
  for (let first = 0; first < ends.length; first += 2) {
    query.append("ends", [ends[first], ends[first + 1]].join(","));
  }
  let response;
  try {
    response = await fetch(`predict?${query}`, { method: "POST", body: form });
  } catch {
    throw new Error("The server does not answer. Was it stopped?");
  }
  const isJson = response.headers.get("content-type")?.includes("json");
  if (!isJson) throw new Error(`The server answers with an error (${response.status}).`);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.detail);
  return answer;
}

// An answer with its pictures decoded: masks and probabilities as one byte a pixel.
async function read(file, frame, ends) {
  const answer = await ask(file, frame, ends);
  const mask = await decode(answer.mask);
  const probabilities = await decode(answer.probabilities);
  const ownMask = firstChannel(mask, answer);
  if (!hasCategories) ownMask.forEach((value, index) => { ownMask[index] = value ? 1 : 0; });
  return {
    answer,
    file,
    frame,
    ends, // of the lesion, which the model was shown: none, one pair or two
    clicked: ends, // as they are drawn; newer while a pair is not whole, or in work
    name: nameFrame(file, frame, answer.frames),
    ownMask,
    probabilities: firstChannel(probabilities, answer),
    image: await decode(answer.picture),
  };
}

async function decode(base64) {
  const image = new Image();
  image.src = `data:image/png;base64,${base64}`;
  await image.decode();
  return image;
}

function firstChannel(image, { width, height }) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, width, height).data;
  const values = new Uint8Array(width * height);
  for (let index = 0; index < values.length; index += 1) values[index] = pixels[4 * index];
  return values;
}

function show(picture) {
  if (picture !== shown) cursor = null;
  shown = picture;
  for (const button of document.querySelectorAll("#list button")) {
    button.setAttribute("aria-current", button === picture.button);
  }
  const { answer } = picture;
  canvas.width = answer.width;
  canvas.height = answer.height;
  element("viewer").hidden = false;
  element("name").textContent = picture.name;
  element("frame-part").hidden = answer.frames === 1;
  element("frames").textContent = answer.frames;
  element("frame").max = answer.frames;
  element("frame").value = picture.frame;
  element("calibration").textContent = describePixel(answer);
  element("size").textContent = `${answer.width} x ${answer.height} pixels`;
  element("confidence").textContent = answer.confidence.toFixed(2);
  element("confidence-ends").hidden = picture.ends.length === 0;
  element("flag").hidden = answer.flag !== true;
  element("threshold-part").hidden = hasCategories;
  element("threshold").value = picture.threshold;
  draw();
}

// The slider moves in steps of 0.01; within half a step of the model's threshold it stands on it.
function isOwn(picture) {
  return hasCategories || Math.abs(picture.threshold - settings.threshold) < 0.005;
}

// What is lesion now: 0 for background, 1 for lesion, or the number of the category.
function currentMask(picture) {
  if (isOwn(picture)) return picture.ownMask;
  const limit = 255 * picture.threshold;
  return picture.probabilities.map(value => (value > limit ? 1 : 0));
}

function describeArea(mask) {
  const counts = new Array(256).fill(0);
  for (const id of mask) counts[id] += 1;
  const words = count => {
    const percent = (100 * count / mask.length).toFixed(1);
    return `${count.toLocaleString("en")} pixels (${percent} % of the picture)`;
  };
  if (counts[0] === mask.length) return "no lesion";
  if (!hasCategories) return words(counts[1]);
  const found = [];
  settings.categories.forEach((name, index) => {
    const count = counts[index + 1];
    if (count) found.push(`${name} ${words(count)}`);
  });
  return found.join(", ");
}

function millimetres(area) {
  const digits = { minimumFractionDigits: 1, maximumFractionDigits: 1 };
  return `${area.toLocaleString("en", digits)} mm²`;
}

function describePixel({ pixel_height_mm: height, pixel_width_mm: width, calibration }) {
  if (calibration === "no lesion") {
    return "unknown: the file gives it by region, and no lesion was found in one";
  }
  if (height === null) return calibration;
  const digits = length => Number(length.toPrecision(3));
  return `${digits(height)} mm high, ${digits(width)} mm wide, from the file (${calibration})`;
}

function draw() {
  element("frame").readOnly = shown.isInWork; // disabled, it would lose the focus
  const opacity = Number(element("opacity").value);
  element("opacity-value").textContent = `${opacity} %`;
  const mask = currentMask(shown);
  painted = new OffscreenCanvas(canvas.width, canvas.height);
  paint(painted, shown, mask, opacity / 100);
  drawEnds();
  canvas.setAttribute("aria-label", `${shown.name} with the outline: ${describeArea(mask)}`);
  const { area_mm2: area } = shown.answer;
  const isMeasured = area !== null && isOwn(shown);
  element("area").textContent = describeArea(mask) + (isMeasured ? `, ${millimetres(area)}` : "");
  element("alarm").hidden = mask.some(id => id > 0);
  if (!hasCategories) describeThreshold();
}

// The ends over what is painted already, which takes long for a large picture.
function drawEnds() {
  canvas.getContext("2d").drawImage(painted, 0, 0);
  if (hasCategories) return;
  for (const end of shown.clicked) drawCross(canvas, end, "yellow");
  const isPointing = document.activeElement === canvas && cursor !== null;
  if (isPointing) drawCross(canvas, cursor, "white");
  element("clear-ends").disabled = shown.clicked.length === 0 || shown.isInWork;
  element("ends-status").textContent = describeEnds(isPointing);
}

function describeEnds(isPointing) {
  if (shown.isInWork) return "The outline is in work; pictures that were chosen before come first.";
  if (shown.problem) return shown.problem;
  const place = isPointing ? `Column ${cursor[0]}, row ${cursor[1]}. ` : "";
  const isHalf = shown.clicked.length % 2 === 1;
  return place + (isHalf ? "One end is marked. Click the opposite one." : "");
}

function describeThreshold() {
  const own = isOwn(shown);
  const value = shown.threshold.toFixed(2);
  element("threshold-value").textContent = own
    ? `${Number(settings.threshold.toPrecision(3))} (the model's)`
    : value;
  element("reset").disabled = own;
  const cleanup = settings.cleanup.length
    ? `, without the model's clean-up (${settings.cleanup.join(", ")})`
    : "";
  const help = shown.ends.length ? ", with the ends that you marked" : "";
  element("note").textContent = own
    ? `This is the model's own mask${help}.`
    : `Not the model's own mask: what is above ${value} in the map of probabilities${help}` +
      `${cleanup}.`;
}

// Draw the picture, the tinted mask and its outline.
function paint(target, picture, mask, opacity) {
  const { width, height } = picture.answer;
  const layer = colored(mask, width, height, id => (id ? pack(...colorOf(id)) : 0));

  const context = target.getContext("2d");
  context.globalAlpha = 1;
  context.drawImage(picture.image, 0, 0);
  context.globalAlpha = opacity;
  context.drawImage(layer, 0, 0);
  context.globalAlpha = 1;
  drawOutline(context, mask, width, height);
}

// A canvas of a mask in the colours, see pack, of its ids.
function colored(mask, width, height, packedOf) {
  const table = Uint32Array.from({ length: 256 }, (_, id) => packedOf(id));
  const pixels = new ImageData(width, height);
  const packed = new Uint32Array(pixels.data.buffer);
  for (let index = 0; index < mask.length; index += 1) packed[index] = table[mask[index]];
  const layer = new OffscreenCanvas(width, height);
  layer.getContext("2d").putImageData(pixels, 0, 0);
  return layer;
}

// The four bytes of an opaque pixel as one number; all browsers run on little-endian machines.
function pack(red, green, blue) {
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

function colorOf(id) {
  return settings.colors[(id - 1) % settings.colors.length];
}

function drawOutline(context, mask, width, height) {
  const thickness = Math.max(1, Math.round(Math.max(width, height) / 256));
  const before = Math.floor(thickness / 2);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const index = y * width + x;
      const id = mask[index];
      if (!id) continue;
      const isInside = x > 0 && x < width - 1 && y > 0 && y < height - 1 &&
        mask[index - 1] === id && mask[index + 1] === id &&
        mask[index - width] === id && mask[index + width] === id;
      if (isInside) continue;
      context.fillStyle = `rgb(${colorOf(id).join(",")})`;
      context.fillRect(x - before, y - before, thickness, thickness);
    }
  }
}

function drawCross(target, [column, row], color) {
  const unit = Math.max(target.width / 512, target.height / 512, 0.5);
  const [x, y] = [column + 0.5, row + 0.5]; // the middle of the pixel
  const context = target.getContext("2d");
  context.fillStyle = color;
  context.fillRect(x - 8 * unit, y - unit, 16 * unit, 2 * unit);
  context.fillRect(x - unit, y - 8 * unit, 2 * unit, 16 * unit);
}

// As `ovseg infer` names masks: a DICOM file such as 1.2.840.10 has no suffix.
function stemOf(name) {
  const suffix = settings.suffixes.find(known => name.toLowerCase().endsWith(known));
  return suffix ? name.slice(0, -suffix.length) : name;
}

function save(content, kind) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  const frame = shown.answer.frames > 1 ? `_${String(shown.frame).padStart(4, "0")}` : "";
  const help = shown.ends.length ? "_ends" : "";
  link.download = `${stemOf(shown.file.name)}${frame}${help}_${kind}.png`;
  link.click();
  URL.revokeObjectURL(link.href);
}

function savePng(base64, kind) {
  const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
  save(new Blob([bytes], { type: "image/png" }), kind);
}

function saveMask() {
  if (isOwn(shown)) {
    savePng(shown.answer.mask, "mask"); // as the server wrote it
    return;
  }
  const { width, height } = shown.answer;
  const black = pack(0, 0, 0);
  const white = pack(255, 255, 255);
  const layer = colored(currentMask(shown), width, height, id => (id ? white : black));
  layer.convertToBlob().then(content => save(content, "mask"));
}

element("files").addEventListener("change", event => {
  add(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});
const form = document.querySelector("form");
for (const name of ["dragover", "dragleave", "drop"]) {
  // On the whole window, else the browser opens a file that was dropped beside the field.
  window.addEventListener(name, event => {
    event.preventDefault();
    form.classList.toggle("over", name === "dragover");
    if (name === "drop") add(event.dataTransfer.files);
  });
}
element("opacity").addEventListener("input", draw);
element("frame").addEventListener("change", event => {
  const field = event.target;
  const wanted = field.value === "" ? shown.frame : Math.round(Number(field.value));
  const frame = Math.min(Math.max(wanted, 1), shown.answer.frames);
  field.value = frame;
  if (frame !== shown.frame) readAgain(shown, frame, []);
});
element("threshold").addEventListener("input", event => {
  shown.threshold = Number(event.target.value);
  draw();
});
element("reset").addEventListener("click", () => {
  shown.threshold = settings.threshold;
  element("threshold").value = settings.threshold;
  draw();
});
element("save-mask").addEventListener("click", saveMask);
element("save-overlay").addEventListener("click", () => {
  canvas.toBlob(content => save(content, "overlay"));
});
element("save-probabilities").addEventListener("click", () => {
  savePng(shown.answer.probabilities, "probabilities");
});
if (!hasCategories) listenForEnds();
