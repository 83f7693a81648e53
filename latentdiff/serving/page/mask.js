// The mask painter: strokes over the input image, white where it is repainted.

const dialog = document.getElementById("painter");
const canvas = document.getElementById("canvas");
const context = canvas.getContext("2d");
const layer = document.createElement("canvas");
const strokes = [];
const erase = document.getElementById("erase");
const brush = document.getElementById("brush");
const ring = document.getElementById("ring");
let picture = null;
let stroke = null;

export const maskBlur = () => Number(document.getElementById("blur").value);
export const hasMask = () => strokes.some(one => !one.erase);
export function clearMask() { strokes.length = 0; draw(); }

export function openPainter(image) {
  picture = image;
  for (const one of [canvas, layer]) Object.assign(one, { width: image.naturalWidth, height: image.naturalHeight });
  draw();
  dialog.showModal();
}

// The mask as base64 of a PNG, black and white.
export function maskAsBase64() {
  const flat = Object.assign(document.createElement("canvas"), { width: layer.width, height: layer.height });
  const pen = flat.getContext("2d");
  pen.fillRect(0, 0, flat.width, flat.height);
  pen.drawImage(layer, 0, 0);
  return flat.toDataURL("image/png");
}

function draw() {
  const pen = layer.getContext("2d");
  pen.clearRect(0, 0, layer.width, layer.height);
  Object.assign(pen, { lineCap: "round", lineJoin: "round", strokeStyle: "#fff" });
  for (const { points, size, erase: erasing } of strokes) {
    pen.globalCompositeOperation = erasing ? "destination-out" : "source-over";
    pen.lineWidth = size;
    pen.beginPath();
    points.forEach(([x, y], k) => (k ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    pen.lineTo(...points.at(-1));
    pen.stroke();
  }
  if (!picture) return;
  const tint = Object.assign(document.createElement("canvas"), { width: layer.width, height: layer.height });
  const colour = tint.getContext("2d");
  colour.drawImage(layer, 0, 0);
  colour.globalCompositeOperation = "source-in";
  colour.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent");
  colour.fillRect(0, 0, tint.width, tint.height);
  context.drawImage(picture, 0, 0);
  context.globalAlpha = 0.65;
  context.drawImage(tint, 0, 0);
  context.globalAlpha = 1;
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) * canvas.width / box.width, (event.clientY - box.top) * canvas.height / box.height];
}

canvas.onpointerdown = event => {
  canvas.setPointerCapture(event.pointerId);
  const size = Number(brush.value) * canvas.width / canvas.getBoundingClientRect().width;
  stroke = { points: [place(event)], size, erase: erase.ariaPressed === "true" };
  strokes.push(stroke);
  draw();
};
canvas.onpointermove = event => {
  cursor = place(event);
  showRing();
  if (stroke) { stroke.points.push(cursor); draw(); }
};
canvas.onpointerup = canvas.onpointercancel = () => { stroke = null; };
// The brush where the pointer or the keyboard is.
let cursor = null;
function showRing() {
  const [box, around] = [canvas.getBoundingClientRect(), canvas.parentElement.getBoundingClientRect()];
  const size = Number(brush.value);
  ring.hidden = !cursor;
  if (cursor) Object.assign(ring.style, { width: `${size}px`, height: `${size}px`, left: `${cursor[0] * box.width / canvas.width + box.left - around.left}px`,
    top: `${cursor[1] * box.height / canvas.height + box.top - around.top}px` });
}

// Arrow keys move the brush and Space paints; with Shift the arrow keys paint as they move.
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
canvas.onkeydown = event => {
  const size = Number(brush.value) * canvas.width / canvas.getBoundingClientRect().width;
  const before = cursor ?? [canvas.width / 2, canvas.height / 2];
  const move = MOVES[event.key];
  if (!move && event.key !== " ") return;
  event.preventDefault();
  const limits = [canvas.width, canvas.height];
  cursor = move ? before.map((value, k) => Math.min(limits[k], Math.max(0, value + move[k] * size / 2))) : before;
  if (!move || event.shiftKey) strokes.push({ points: [before, cursor], size, erase: erase.ariaPressed === "true" });
  draw();
  showRing();
};
dialog.onkeydown = event => {
  if (event.key === "z" && (event.ctrlKey || event.metaKey)) { strokes.pop(); draw(); }
};
canvas.onpointerleave = canvas.onblur = () => { cursor = null; showRing(); };
brush.oninput = showRing;
erase.onclick = () => { erase.ariaPressed = erase.ariaPressed === "true" ? "false" : "true"; };
document.getElementById("undo").onclick = () => { strokes.pop(); draw(); };
document.getElementById("clear-mask").onclick = clearMask;
document.getElementById("done").onclick = () => dialog.close();
