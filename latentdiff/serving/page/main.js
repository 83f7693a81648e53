// The form: settings kept in the browser, the input image, recipes of dropped files, and starting jobs.

import { get, post } from "./api.js";
import { byId, make } from "./dom.js";
import { extension, resetExtension } from "./extend.js";
import { onUse, showGallery } from "./gallery.js";
import { clearMask, hasMask, maskAsBase64, maskBlur, openPainter } from "./mask.js";
import { addJob, onAgain, showKnownJobs } from "./queue.js";
import { showTexts, switchLanguage, text } from "./texts.js";
import "./theme.js";
import { changeWeight } from "./weight.js";

const form = byId("form");
const problem = byId("problem");
const FIELD_OF = { negative_prompt: "negative", guidance_scale: "guidance", image: "drop", mask: "drop", extend: "drop" }; // names in requests
const CARRIED = ["spacing", "eta", "guidance_interval", "prompt_2", "negative_prompt_2", "prompt_syntax", "clip_skip", "tile", "seamless", "hires",
  "hires_strength", "hires_steps", "upscaler", "variation_seed", "variation_strength"];
const DEFAULTS = { guidance_interval: "0,1", prompt_syntax: "a1111" };
const FIELDS = ["prompt", "negative", "width", "height", "steps", "guidance", "images", "sampler", "seed", "model"];
let server = null;
let input = null; // the input image as a data URL
let carried = {};

function save() {
  const values = Object.fromEntries(FIELDS.map(id => [id, byId(id).value]));
  const loras = Object.fromEntries([...document.querySelectorAll("#loras input")].map(one => [one.name, one.value]));
  localStorage.setItem("settings", JSON.stringify({ ...values, loras, carried, keep: byId("keep").checked }));
}

function fill(values) {
  for (const id of FIELDS) if (values[id] !== undefined && values[id] !== null) byId(id).value = values[id];
  byId("keep").checked = values.keep ?? byId("keep").checked;
  if (values.loras) for (const one of document.querySelectorAll("#loras input")) one.value = values.loras[one.name] ?? 0;
  if (values.carried) carry(values.carried);
  save();
}

function useSettings(settings, dropped = []) {
  carry(settings);
  const known = server.models.some(model => model.id === settings.model);
  fill({ ...settings, negative: settings.negative_prompt ?? "", guidance: settings.guidance_scale, keep: true, images: 1,
    model: known ? settings.model : undefined, loras: Object.fromEntries(
      Object.entries(settings.loras || {}).map(([name, weight]) => [name, Array.isArray(weight) ? weight[0] : weight])) });
  const absent = known || !settings.model ? [] : [text("noModel", settings.model)];
  const unused = dropped.length ? [text("notUsed", dropped.join("; "))] : [];
  showProblem([...absent, ...unused].join(" "), absent.length ? "model" : "");
  scrollTo({ top: 0, behavior: "smooth" });
  byId("prompt").focus();
}

async function useInput(blob) {
  const address = await asDataUrl(blob);
  await Object.assign(new Image(), { src: address }).decode(); // raises for a damaged file
  input = byId("source").src = address;
  byId("chosen").hidden = false;
  byId("drop").hidden = true;
  clearMask();
  resetExtension(chosenModel().size_multiple);
}

// Settings of a recipe that have no field in the form are sent too, and are shown with a button to remove them.
function carry(settings) {
  carried = Object.fromEntries(CARRIED.map(name => [name, settings[name]]).filter(([name, value]) => value && String(value) !== DEFAULTS[name]));
  byId("carried").hidden = !Object.keys(carried).length;
  byId("carried-text").textContent = Object.entries(carried).map(([name, value]) => `${name} ${value}`).join(", ");
}

function removeInput() {
  input = null;
  byId("chosen").hidden = true;
  byId("drop").hidden = false;
  byId("file").value = "";
}

const asDataUrl = blob => new Promise(resolve => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.readAsDataURL(blob);
});

// Shows a message below the field that it concerns, or above the button; without a message, clears it.
function showProblem(sentence = "", name = "") {
  for (const one of document.querySelectorAll("[aria-invalid]")) one.removeAttribute("aria-invalid");
  const field = byId(FIELD_OF[name] ?? name);
  if (field?.closest("form") === form) {
    field.setAttribute("aria-invalid", "true");
    field.after(problem);
  } else byId("generate").before(problem);
  problem.textContent = sentence;
  if (sentence) problem.scrollIntoView({ block: "nearest" });
}

async function takeFile(file) {
  showProblem();
  const limit = server.limits.body;
  if (!file.type.startsWith("image/")) showProblem(text("notImage", file.name), "drop");
  else if (file.size * 4 / 3 > limit) showProblem(text("tooLarge", file.name, Math.floor(limit * 3 / 4 / 2 ** 20)), "drop");
  else {
    const address = await asDataUrl(file);
    const found = await post("/recipe", { image: address }).catch(() => null);
    if (found?.settings) useSettings(found.settings, found.dropped);
    else await useInput(file).catch(() => showProblem(text("unreadableImage", file.name), "drop"));
  }
}

function body() {
  const numbers = ["width", "height", "steps", "images"];
  const values = { prompt: byId("prompt").value, negative_prompt: byId("negative").value || null, model: byId("model").value,
    sampler: byId("sampler").value, guidance_scale: Number(byId("guidance").value), ...carried };
  for (const id of numbers) values[id] = Number(byId(id).value) || null;
  if (byId("seed").value !== "") values.seed = Number(byId("seed").value);
  values.loras = Object.fromEntries([...document.querySelectorAll("#loras input")]
    .filter(one => Number(one.value)).map(one => [one.name, Number(one.value)]));
  if (!input) return values;
  const extend = extension();
  Object.assign(values, { image: input, strength: Number(byId("strength").value), extend });
  if (Object.keys(extend).length) { delete values.width; delete values.height; }
  if (hasMask()) Object.assign(values, { mask: maskAsBase64(), mask_blur: maskBlur() });
  return values;
}

async function generate(event) {
  event?.preventDefault();
  if (!server) return;
  showProblem();
  if (!byId("prompt").value.trim()) { showProblem(text("emptyPrompt"), "prompt"); return byId("prompt").focus(); }
  try {
    const job = await post("/jobs", body());
    byId("seed").value = byId("keep").checked ? job.request.seed : "";
    save();
    addJob(job);
  } catch (error) {
    showProblem(error.message, error.field);
  }
}

function choices(select, names) {
  select.replaceChildren(...names.map(name => new Option(name, name)));
}

const chosenModel = () => server.models.find(one => one.id === byId("model").value) || server.models[0];

function modelDefaults() {
  const model = chosenModel();
  fill({ width: model.size, height: model.size, steps: model.num_inference_steps, guidance: model.guidance_scale, sampler: model.sampler });
}

async function connect() {
  for (;;) {
    try {
      server = await get("/v1/capabilities");
      if (server.models.some(model => model.loaded)) break;
      server = null;
      byId("status").textContent = text("loading");
    } catch { byId("status").textContent = text("lost"); }
    await new Promise(resolve => setTimeout(resolve, 500));
  }
  byId("status").textContent = "";
  byId("generate").disabled = false;
  document.querySelector(".pages").hidden = !server.finetuning;
  choices(byId("model"), server.models.map(model => model.id));
  choices(byId("sampler"), server.samplers);
  byId("loras").hidden = !server.loras.length;
  for (const [k, name] of server.loras.entries()) {
    const label = make("label", { textContent: name, htmlFor: `lora-${k}` });
    const weight = make("input", { id: `lora-${k}`, name, type: "number", step: 0.1, value: 0 });
    byId("loras").append(make("div", { className: "lora" }, label, weight));
  }
  const kept = JSON.parse(localStorage.getItem("settings") || "null"); // before modelDefaults saves
  modelDefaults();
  if (kept && server.models.some(model => model.id === kept.model)) fill(kept);
  byId("images").value ||= 1;
  takeAddress();
}

// Reads the parameters that the fine-tuning page put into the URL: the LoRA to try, its model and its trigger.
function takeAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const lora = [...document.querySelectorAll("#loras input")].find(one => one.name === wanted.get("lora"));
  if (!lora) return;
  const [prompt, trigger] = [byId("prompt").value.trim(), wanted.get("trigger") || ""];
  if (wanted.get("model")) byId("model").value = wanted.get("model");
  byId("prompt").value = prompt.includes(trigger) ? prompt : `${trigger}, ${prompt}`; // as in training
  for (const one of document.querySelectorAll("#loras input")) one.value = one === lora ? 1 : 0;
  history.replaceState(null, "", location.pathname);
  save();
  byId("prompt").focus();
}

byId("language").onclick = switchLanguage;
byId("model").onchange = () => { modelDefaults(); };
byId("paint").onclick = () => openPainter(byId("source"));
byId("clear-input").onclick = removeInput;
byId("clear-carried").onclick = () => { carry({}); save(); };
byId("file").onchange = event => event.target.files[0] && takeFile(event.target.files[0]);
byId("strength").oninput = () => { byId("strength-value").textContent = byId("strength").value; };
byId("strength").oninput();
form.onsubmit = generate;
form.addEventListener("input", save);
for (const id of ["prompt", "negative"]) {
  byId(id).onkeydown = event => {
    if (!(event.ctrlKey || event.metaKey)) return;
    if (event.key === "Enter") generate(event);
    if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      event.preventDefault();
      changeWeight(event.target, event.key === "ArrowUp" ? 0.1 : -0.1);
    }
  };
}
document.ondragover = event => { event.preventDefault(); document.body.classList.add("drag"); };
document.ondragleave = () => document.body.classList.remove("drag");
document.ondrop = event => {
  event.preventDefault();
  document.body.classList.remove("drag");
  if (event.dataTransfer.files[0] && server) takeFile(event.dataTransfer.files[0]);
};
addEventListener("storage", event => { if (event.key === "requests") { showKnownJobs(); showGallery(); } });
onUse(useSettings, useInput);
onAgain(useSettings);
showTexts();
showGallery();
connect().then(showKnownJobs);
