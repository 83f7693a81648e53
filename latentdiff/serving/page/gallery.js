// The gallery: thumbnails, a viewer with the recipe, and two images side by side.

import { byId, make } from "./dom.js";
import { allImages, removeImage, saveImage } from "./store.js";
import { text } from "./texts.js";

const list = byId("gallery");
const empty = byId("empty");
const viewer = byId("viewer");
const compare = byId("compare");
const images = new Map();
const picked = new Set();
const use = { again: () => {}, input: () => {} };

export function onUse(again, input) { Object.assign(use, { again, input }); }

export async function showGallery() {
  const all = await allImages();
  for (const image of all.sort((a, b) => a.created - b.created)) if (!images.has(image.id)) show(image);
  empty.hidden = images.size > 0;
}

export async function addImage(image) {
  if (images.has(image.id)) return;
  await saveImage(image).catch(() => { byId("gallery-problem").textContent = text("storageFull"); });
  show(image);
  empty.hidden = true;
}

function show(image) {
  images.set(image.id, image);
  image.address = URL.createObjectURL(image.blob);
  const picture = make("img", { src: image.address, alt: "", loading: "lazy", decoding: "async" });
  const open = make("button", { className: "open", type: "button", ariaLabel: text("open", image.settings.prompt) }, picture);
  open.onclick = () => view([image]);
  const pick = make("input", { type: "checkbox", className: "pick", ariaLabel: text("select") });
  pick.onchange = () => {
    pick.checked ? picked.add(image.id) : picked.delete(image.id);
    compare.hidden = picked.size !== 2;
  };
  const item = make("li", {}, open, pick);
  item.dataset.id = image.id;
  image.item = item;
  const older = [...list.children].find(other => images.get(other.dataset.id).created <= image.created);
  list.insertBefore(item, older ?? null);
}

// The arrow keys show the previous and the next image.
let viewed = null;
function step(by) {
  const item = by < 0 ? viewed?.item.previousElementSibling : viewed?.item.nextElementSibling;
  if (item) view([images.get(item.dataset.id)]);
}
viewer.onkeydown = event => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
};

compare.onclick = () => view([...picked].map(id => images.get(id)));

function recipe(settings) {
  const loras = Object.entries(settings.loras || {}).map(([name, weight]) => `${name}: ${[...new Set([weight].flat())].join(" / ")}`).join(", ");
  const values = { prompt: settings.prompt, negative: settings.negative_prompt, size: `${settings.width} × ${settings.height}`,
    steps: settings.steps, guidance: settings.guidance_scale, sampler: settings.sampler, seed: settings.seed, model: settings.model,
    loras, strength: settings.strength };
  const given = Object.entries(values).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return make("dl", {}, ...given.flatMap(([key, value]) => [make("dt", { textContent: text(key) }), make("dd", { textContent: value })]));
}

function figureOf({ address, settings }) {
  const { width, height, prompt } = settings;
  const picture = make("img", { src: address, alt: prompt, width, height });
  picture.style.height = "auto";
  return make("figure", {}, picture);
}

function view(shown) {
  const [body, row] = viewer.children;
  const [image] = shown;
  viewed = shown.length > 1 ? null : image;
  body.classList.toggle("pair", !viewed);
  if (viewed) body.replaceChildren(figureOf(image), recipe(image.settings));
  else body.replaceChildren(...shown.map(one => { const figure = figureOf(one); figure.append(recipe(one.settings)); return figure; }));
  const stays = { previous: () => step(-1), next: () => step(1), download: () => download(image) };
  const closes = { remove: () => remove(image), asInput: () => use.input(image.blob), again: () => use.again(image.settings), close: () => {} };
  const focused = document.activeElement?.dataset.key;
  const buttons = (viewed ? ["previous", "next", "remove", "download", "asInput", "again", "close"] : ["close"]).map(key => {
    const button = make("button", { type: "button", textContent: text(key) });
    button.dataset.key = key;
    button.onclick = stays[key] ?? (() => { viewer.close(); closes[key](); });
    return button;
  });
  buttons.at(-1).classList.add("primary");
  row.replaceChildren(...buttons);
  if (viewed) {
    buttons[0].disabled = !image.item.previousElementSibling;
    buttons[1].disabled = !image.item.nextElementSibling;
  }
  if (!viewer.open) viewer.showModal();
  (buttons.find(one => one.dataset.key === focused && !one.disabled) ?? buttons.at(-1)).focus();
}

function download({ address, settings }) {
  make("a", { href: address, download: `latentdiff-${settings.seed}.png` }).click();
}

async function remove(image) {
  await removeImage(image.id);
  image.item.remove();
  images.delete(image.id);
  picked.delete(image.id);
  compare.hidden = picked.size !== 2;
  URL.revokeObjectURL(image.address);
  empty.hidden = images.size > 0;
  byId("gallery-problem").textContent = "";
  const restore = byId("restore");
  restore.hidden = false;
  restore.onclick = () => {
    restore.hidden = true;
    addImage({ id: image.id, blob: image.blob, created: image.created, settings: image.settings });
  };
}
