// The mask painter: strokes over the input image, white where it is repainted.

const dialog = document.getElementById("painter");
const canvas = document.getElementById("canvas");
const context = canvas.getContext("2d");
const layer = document.createElement("canvas");
const strokes = [];
const erase = document.getElementById("erase");
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
  const brush = tint.getContext("2d");
  brush.drawImage(layer, 0, 0);
  brush.globalCompositeOperation = "source-in";
  brush.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent");
  brush.fillRect(0, 0, tint.width, tint.height);
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
  const size = Number(document.getElementById("brush").value) * canvas.width / canvas.getBoundingClientRect().width;
  stroke = { points: [place(event)], size, erase: erase.ariaPressed === "true" };
  strokes.push(stroke);
  draw();
};
canvas.onpointermove = event => { if (stroke) { stroke.points.push(place(event)); draw(); } };
canvas.onpointerup = canvas.onpointercancel = () => { stroke = null; };
erase.onclick = () => { erase.ariaPressed = erase.ariaPressed === "true" ? "false" : "true"; };
document.getElementById("undo").onclick = () => { strokes.pop(); draw(); };
document.getElementById("clear-mask").onclick = clearMask;
document.getElementById("done").onclick = () => dialog.close();
