// The gallery: thumbnails, a viewer with the recipe, and two images side by side.

import { allImages, removeImage, saveImage } from "./store.js";
import { text } from "./texts.js";

const list = document.getElementById("gallery");
const empty = document.getElementById("empty");
const viewer = document.getElementById("viewer");
const compare = document.getElementById("compare");
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
  await saveImage(image);
  show(image);
  empty.hidden = true;
}

function show(image) {
  images.set(image.id, image);
  image.address = URL.createObjectURL(image.blob);
  const item = document.createElement("li");
  const open = Object.assign(document.createElement("button"), { className: "open", type: "button" });
  open.ariaLabel = text("open", image.settings.prompt);
  open.style.aspectRatio = "1";
  const picture = Object.assign(document.createElement("img"), { src: image.address, alt: "", loading: "lazy", decoding: "async" });
  open.append(picture);
  open.onclick = () => view([image]);
  const pick = Object.assign(document.createElement("input"), { type: "checkbox", className: "pick", ariaLabel: text("select") });
  pick.onchange = () => {
    pick.checked ? picked.add(image.id) : picked.delete(image.id);
    compare.hidden = picked.size !== 2;
  };
  item.append(open, pick);
  image.item = item;
  list.prepend(item);
}

compare.onclick = () => view([...picked].map(id => images.get(id)));

function recipe(settings) {
  const rows = document.createElement("dl");
  const size = `${settings.width} × ${settings.height}`;
  const loras = Object.entries(settings.loras || {}).map(([name, weight]) => `${name}: ${weight}`).join(", ");
  const values = { prompt: settings.prompt, negative: settings.negative_prompt, size, steps: settings.steps, guidance: settings.guidance_scale,
    sampler: settings.sampler, seed: settings.seed, model: settings.model, loras, strength: settings.strength };
  for (const [key, value] of Object.entries(values)) {
    if (value === undefined || value === null || value === "") continue;
    rows.append(Object.assign(document.createElement("dt"), { textContent: text(key) }),
      Object.assign(document.createElement("dd"), { textContent: value }));
  }
  return rows;
}

function view(shown) {
  const [body, row] = viewer.children;
  body.replaceChildren(...shown.flatMap(image => {
    const figure = document.createElement("figure");
    const { width, height } = image.settings;
    figure.append(Object.assign(document.createElement("img"), { src: image.address, alt: image.settings.prompt, width, height }));
    if (shown.length > 1) figure.append(recipe(image.settings));
    return shown.length > 1 ? [figure] : [figure, recipe(image.settings)];
  }));
  for (const picture of body.querySelectorAll("img")) picture.style.height = "auto";
  const [image] = shown;
  const actions = shown.length > 1 ? [] : [
    ["remove", () => remove(image)],
    ["download", () => Object.assign(document.createElement("a"), { href: image.address, download: `latentdiff-${image.settings.seed}.png` }).click(), true],
    ["asInput", () => use.input(image.blob)],
    ["again", () => use.again(image.settings)],
  ];
  const buttons = [...actions, ["close", () => {}]].map(([key, act, stay]) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: text(key) });
    button.onclick = () => { if (!stay) viewer.close(); act(); };
    return button;
  });
  buttons.at(-1).classList.add("primary");
  row.replaceChildren(...buttons);
  viewer.showModal();
}

async function remove(image) {
  await removeImage(image.id);
  image.item.remove();
  images.delete(image.id);
  picked.delete(image.id);
  compare.hidden = picked.size !== 2;
  URL.revokeObjectURL(image.address);
  empty.hidden = images.size > 0;
}
