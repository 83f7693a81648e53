// Handles at the edges of the input image: drag one outwards, or use the arrow keys, to paint beyond that edge.

import { byId } from "./dom.js";
import { text } from "./texts.js";

const EDGES = ["left", "right", "top", "bottom"];
const LARGEST = 2048;
const MAX_HEIGHT = 260;
const stage = byId("stage");
const image = byId("source");
const inputs = Object.fromEntries(EDGES.map(edge => [edge, byId(edge)]));
const handles = Object.fromEntries([...stage.querySelectorAll("[data-edge]")].map(one => [one.dataset.edge, one]));
let multiple = 8;
let scale = 1;

export function extension() {
  return Object.fromEntries(EDGES.map(edge => [edge, pixels(edge)]).filter(([, value]) => value > 0));
}

export function resetExtension(sizeMultiple = 8) {
  multiple = sizeMultiple;
  for (const edge of EDGES) inputs[edge].step = multiple;
  for (const edge of EDGES) inputs[edge].value = 0;
  draw();
}

const pixels = edge => Math.max(0, Number(inputs[edge].value) || 0);

function set(edge, value) {
  inputs[edge].value = Math.min(LARGEST, Math.max(0, Math.round(value / multiple) * multiple));
  place();
}

// Scales the extended image to fit the form, and positions its parts.
function draw() {
  if (!image.naturalWidth) return;
  const width = image.naturalWidth + pixels("left") + pixels("right");
  const height = image.naturalHeight + pixels("top") + pixels("bottom");
  const room = stage.parentElement.clientWidth - 24 || 300;
  scale = Math.min(room / width, MAX_HEIGHT / height, 1.6);
  place();
}

function place() {
  const [left, right, top, bottom] = EDGES.map(pixels);
  Object.assign(stage.style, { width: `${(image.naturalWidth + left + right) * scale}px`, height: `${(image.naturalHeight + top + bottom) * scale}px` });
  Object.assign(image.style, { left: `${left * scale}px`, top: `${top * scale}px`, width: `${image.naturalWidth * scale}px`, height: `${image.naturalHeight * scale}px` });
  for (const edge of EDGES) {
    handles[edge].ariaValueNow = pixels(edge);
    handles[edge].ariaValueText = text("pixels", pixels(edge));
  }
  byId("extended").textContent = left + right + top + bottom
    ? text("extendedSize", image.naturalWidth + left + right, image.naturalHeight + top + bottom) : text("extendHint");
}

for (const [edge, handle] of Object.entries(handles)) {
  const horizontal = edge === "left" || edge === "right";
  const outwards = edge === "left" || edge === "top" ? -1 : 1;
  let from = null;
  handle.onpointerdown = event => {
    handle.setPointerCapture(event.pointerId);
    from = { at: horizontal ? event.clientX : event.clientY, value: pixels(edge), scale };
  };
  handle.onpointermove = event => {
    if (!from) return;
    const moved = (horizontal ? event.clientX : event.clientY) - from.at;
    set(edge, from.value + outwards * moved / from.scale);
  };
  handle.onpointerup = handle.onpointercancel = () => { from = null; draw(); };
  handle.onkeydown = event => {
    const keys = horizontal ? ["ArrowLeft", "ArrowRight"] : ["ArrowUp", "ArrowDown"];
    const step = keys.indexOf(event.key) * 2 - 1;
    if (event.key === "Home") set(edge, 0);
    else if (keys.includes(event.key)) set(edge, pixels(edge) + step * outwards * multiple * (event.shiftKey ? 4 : 1));
    else return;
    event.preventDefault();
    draw();
  };
  inputs[edge].addEventListener("input", draw);
}

image.addEventListener("load", draw);
addEventListener("resize", draw);
