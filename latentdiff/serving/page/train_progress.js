// The progress of a fine-tune: the loss as a chart, and samples of the same prompts side by side.

import { call } from "./api.js";
import { byId, EMPTY, make, showImage } from "./dom.js";
import { text } from "./texts.js";

const HEIGHT = 180, LEFT = 52, BOTTOM = 24;
const ROWS = 6;

const svg = (tag, values, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(values)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};

// An exponential mean over about a twentieth of the curve.
function smooth(points) {
  const weight = 1 / Math.max(1, points.length / 20);
  let mean = points[0]?.[1];
  return points.map(([step, value]) => [step, mean += weight * (value - mean)]);
}

export function showCurve({ losses, held_out: held, total }) {
  const figure = byId("curve");
  figure.hidden = losses.length < 2;
  if (figure.hidden) return;
  const width = Math.max(figure.clientWidth, 240);
  const all = [...losses, ...held].map(([, value]) => value);
  let [low, high] = [Math.min(...all), Math.max(...all)];
  if (high - low < 1e-6) [low, high] = [low - 0.5, high + 0.5];
  const x = step => LEFT + (width - LEFT - 8) * step / Math.max(total, 1);
  const y = value => 8 + (HEIGHT - BOTTOM - 8) * (high - value) / (high - low);
  const line = (points, kind) => svg("polyline", { class: kind, points: points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ") });
  const marks = [low, (low + high) / 2, high].flatMap(value => [
    svg("line", { class: "grid", x1: LEFT, x2: width - 8, y1: y(value), y2: y(value) }),
    svg("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, value.toPrecision(3)),
  ]);
  const steps = [0, total / 2, total].map((step, k) =>
    svg("text", { x: x(step), y: HEIGHT - 4, "text-anchor": ["start", "middle", "end"][k] }, String(Math.round(step))));
  const last = smooth(losses).at(-1)[1];
  const chart = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": text("lossNow", last.toPrecision(3)) },
    ...marks, ...steps, line(losses, "raw"), line(smooth(losses), "smooth"), line(held, "held"));
  const names = [make("span", { textContent: text("loss") })];
  if (held.length) names.push(make("span", { className: "held-name", textContent: text("heldOutLoss") }));
  figure.replaceChildren(chart, make("figcaption", {}, ...names));
}

let shown = "";

// Columns of prompts, rows of steps, the newest first and the first one, before training, last.
export function showSamples({ name, samples, captions }) {
  const steps = samples.length <= ROWS ? samples : [samples[0], ...samples.slice(1 - ROWS)];
  const now = JSON.stringify([name, steps, captions]);
  if (now === shown) return;
  shown = now;
  const box = byId("samples");
  box.hidden = !steps.length;
  const head = make("tr", {}, make("td"), ...captions.map(caption => make("th", { scope: "col", textContent: caption })));
  const rows = steps.toReversed().map(step => make("tr", {}, make("th", { scope: "row", textContent: step ? text("atStep", step) : text("before") }),
    ...captions.map((caption, k) => make("td", {}, sample(name, step, k, caption)))));
  box.style.setProperty("--columns", captions.length);
  box.replaceChildren(make("table", {}, make("caption", { textContent: text("samples") }), make("thead", {}, head), make("tbody", {}, ...rows)));
}

function sample(name, step, k, caption) {
  const image = make("img", { className: "cell", alt: text("sampleOf", caption, step), width: 144, height: 144, src: EMPTY });
  showImage(image, call, `/finetunes/${encodeURIComponent(name)}/samples/${step}/${k}`).catch(() => {});
  return image;
}
