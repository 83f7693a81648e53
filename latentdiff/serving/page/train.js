// Fine-tuning: the list, a new one, its settings and check, and following the one that is shown. What happens is on the
// server, so the page can be closed at any time.

import { ApiError, call, get, post } from "./api.js";
import { byId, make } from "./dom.js";
import { switchLanguage, showTexts, text } from "./texts.js";
import "./theme.js";
import { addFiles, pictureCount, saveCaptions, showFindings, showPictures } from "./train_pictures.js";
import { showCurve, showSamples } from "./train_progress.js";

const NUMBERS = ["steps", "learning_rate", "rank", "resolution"];
const SWITCHES = ["train_text", "skip_bad"];
const WORDS = ["trigger", "model", "method"];
const POLL = 1500;
let limits = null;
let state = null;
let checked = null; // the data check that is shown
let opening = Promise.resolve(); // the one that the address names is being loaded

const chosen = () => decodeURIComponent(location.hash.slice(1));
const base = () => `/finetunes/${encodeURIComponent(state.name)}`;
const draft = () => `train-${state.name}`;
const sentence = error => (error.status === 0 ? text("lost") : error.message); // of a request that is repeated

async function connect() {
  for (;;) {
    try {
      const found = await get("/v1/capabilities");
      limits = found.limits;
      byId("model").replaceChildren(...found.models.map(({ id }) => new Option(id, id)));
      byId("status").textContent = "";
      return found.finetuning;
    } catch (error) { byId("status").textContent = sentence(error); }
    await new Promise(resolve => setTimeout(resolve, 1000));
  }
}

async function refreshList() {
  const { finetunes, folders } = await get("/finetunes");
  byId("list").replaceChildren(...finetunes.map(({ name, status }) => {
    const link = make("a", { href: `#${encodeURIComponent(name)}` }, name, make("span", { className: `badge ${status}`, textContent: text(`is_${status}`) }));
    if (name === chosen()) link.setAttribute("aria-current", "page");
    return make("li", {}, link);
  }));
  byId("none").hidden = finetunes.length > 0;
  const before = byId("folder").value;
  byId("folder").replaceChildren(new Option(text("uploadOwn"), ""), ...folders.map(path => new Option(path, path)));
  if (folders.includes(before)) byId("folder").value = before;
}

async function create(event) {
  event.preventDefault();
  const problem = byId("new-problem");
  problem.textContent = "";
  const name = byId("name").value.trim();
  if (!name) { problem.textContent = text("nameFirst"); return byId("name").focus(); }
  try {
    await post("/finetunes", { name, folder: byId("folder").value || null });
    byId("name").value = "";
    location.hash = encodeURIComponent(name);
  } catch (error) { problem.textContent = error.message; }
}

// Loads one after another, so that the last address wins; buttons wait for it (`act`).
const open = () => (opening = opening.catch(() => {}).then(load));

async function load() {
  const name = chosen();
  byId("welcome").hidden = Boolean(name);
  byId("one").hidden = !name;
  byId("new-box").open = !name || innerWidth > 800;
  state = null;
  await refreshList();
  if (!name) return;
  try {
    state = await get(`/finetunes/${encodeURIComponent(name)}`);
  } catch (error) {
    byId("new-problem").textContent = error.message;
    if (error.status === 404) location.hash = "";
    return;
  }
  byId("setup-problem").textContent = "";
  fillSettings(state.settings || JSON.parse(localStorage.getItem(draft()) || "{}"));
  show();
  await showPictures(name, isFixed(), outdated);
  showReport(state.check);
}

const isFixed = () => state.saved > 0 || ["running", "stopping"].includes(state.status);

function show() {
  const { name, status, step, total, eta, error, saved, loras } = state;
  const running = status === "running";
  byId("title").textContent = name;
  Object.assign(byId("badge"), { className: `badge ${status}`, textContent: text(`is_${status}`) });
  byId("progress").hidden = status === "new";
  byId("bar").value = total ? step / total : 0;
  byId("reached").textContent = status === "stopping" ? text("saving") : running && !step ? text("preparing")
    : !total ? "" : text("step", step, total) + (eta === null ? "" : ` · ${text("remainingTime", eta)}`);
  byId("failure").textContent = error || "";
  byId("stop").hidden = !running;
  byId("resume").hidden = !(saved && ["stopped", "failed"].includes(status));
  byId("use").hidden = !saved;
  byId("use").classList.toggle("primary", status === "finished");
  byId("more").hidden = status !== "finished";
  if (status === "finished" && document.activeElement !== byId("more-steps")) byId("more-steps").value = total * 2;
  byId("downloads").replaceChildren(...loras.map(lora => {
    const link = make("a", { href: "#", textContent: text("downloadLora", lora) });
    link.onclick = event => { event.preventDefault(); download(lora); };
    return link;
  }));
  byId("setup").hidden = byId("to-settings").hidden = isFixed();
  byId("one").classList.toggle("fixed", isFixed());
  byId("fixed").hidden = !isFixed();
  byId("delete").disabled = running || status === "stopping";
  showCurve(state);
  showSamples(state);
}

function fillSettings(values) {
  for (const id of [...WORDS, ...NUMBERS]) byId(id).value = values[id] ?? (byId(id).options?.[0].value ?? "");
  for (const id of SWITCHES) byId(id).checked = values[id] ?? false;
}

function settings() {
  const values = { trigger: byId("trigger").value, model: byId("model").value, method: byId("method").value };
  for (const id of NUMBERS) values[id] = byId(id).value === "" ? null : Number(byId(id).value);
  for (const id of SWITCHES) values[id] = byId(id).checked;
  return values;
}

// Pictures, captions or settings have changed: the data check that is shown may be out of date.
function outdated() {
  if (checked) showReport(null);
  if (state) localStorage.setItem(draft(), JSON.stringify(settings()));
}

function showReport(report) {
  checked = report;
  showFindings(report?.findings ?? []);
  if (!report) return byId("report").replaceChildren();
  const { pictures, unusable, buckets, enlarged, warnings, findings } = report;
  const head = unusable ? make("p", { className: "problem", textContent: text("checkErrors", unusable, pictures) })
    : make("p", { className: "good", textContent: text("checkGood", pictures) });
  const sizes = make("p", { textContent: text("trainedAt", buckets.slice(0, 4).map(([size, n]) => `${size} (${n})`).join(", ")) });
  const parts = [head, sizes];
  if (enlarged) parts.push(make("p", { textContent: text("enlarged", enlarged) }));
  if (warnings) parts.push(make("p", { textContent: text("checkWarnings", warnings) }));
  const others = findings.filter(({ name }) => !name).map(({ kind, detail }) => make("li", { textContent: text("finding", kind, detail) }));
  byId("report").replaceChildren(...parts, make("ul", {}, ...others));
}

// Keeps the keyboard focus on the button that was pressed, or on its replacement.
function refocus(button) {
  if (document.activeElement !== document.body) return;
  [button, byId("stop"), byId("resume"), byId("use")].find(one => one.checkVisibility())?.focus();
}

async function act(button, problem, work) {
  const focused = document.activeElement === button;
  problem.textContent = "";
  button.disabled = true;
  button.setAttribute("aria-busy", "true");
  try { await opening; await work(); } catch (error) { problem.textContent = error.message; }
  button.disabled = false;
  button.removeAttribute("aria-busy");
  if (focused) refocus(button);
}

const check = () => act(byId("check"), byId("setup-problem"), async () => {
  if (!pictureCount()) throw new ApiError(text("picturesFirst"));
  await saveCaptions();
  byId("report").replaceChildren(make("p", { textContent: text("checking") }));
  try { showReport(await post(`${base()}/check`, settings())); } catch (error) { showReport(null); throw error; }
});

const start = event => {
  event.preventDefault();
  return act(byId("start"), byId("setup-problem"), async () => {
    if (!pictureCount()) throw new ApiError(text("picturesFirst"));
    await saveCaptions();
    state = await post(`${base()}/start`, settings());
    localStorage.removeItem(draft());
    await began();
  });
};

async function began() {
  show();
  await refreshList();
  await showPictures(state.name, isFixed(), outdated);
  scrollTo({ top: 0, behavior: "smooth" });
}

const change = (id, path, body = () => ({})) => {
  byId(id).onclick = () => act(byId(id), byId("failure"), async () => { state = await post(`${base()}/${path}`, body()); await began(); });
};

const use = () => act(byId("use"), byId("failure"), async () => {
  const { lora } = await post(`${base()}/use`, {});
  const { trigger, model } = state.settings;
  location.href = `/#${new URLSearchParams({ lora, trigger, model })}`;
});

async function download(lora) {
  const blob = await (await call(`${base()}/loras/${encodeURIComponent(lora)}`)).blob();
  make("a", { href: URL.createObjectURL(blob), download: `${lora}.safetensors` }).click();
}

const copy = () => act(byId("copy"), byId("failure"), async () => {
  const name = `${state.name.slice(0, 34)}-${Date.now().toString(36).slice(-5)}`;
  await post("/finetunes", { name, copy_of: state.name });
  localStorage.setItem(`train-${name}`, JSON.stringify(state.settings || settings()));
  location.hash = encodeURIComponent(name);
});

function remove() {
  byId("question").textContent = text("deleteQuestion", state.name);
  byId("confirm").showModal();
  byId("no").onclick = () => byId("confirm").close();
  byId("yes").onclick = () => {
    byId("confirm").close();
    act(byId("delete"), byId("failure"), async () => {
      await call(base(), { method: "DELETE" });
      location.hash = "";
      byId("new-box").open = true;
      byId("name").focus();
    });
  };
}

async function follow() {
  for (;;) {
    await new Promise(resolve => setTimeout(resolve, POLL));
    if (!state || document.hidden || !["running", "stopping"].includes(state.status)) continue;
    const name = state.name;
    try {
      const found = await get(`/finetunes/${encodeURIComponent(name)}`);
      byId("status").textContent = "";
      if (state?.name !== name) continue;
      const ended = found.status !== state.status;
      state = found;
      show();
      if (!ended) continue;
      refocus(byId("resume"));
      await refreshList();
      if (state?.name === name) await showPictures(name, isFixed(), outdated);
    } catch (error) { byId("status").textContent = sentence(error); }
  }
}

function dropped(event) {
  event.preventDefault();
  document.body.classList.remove("drag");
  const files = event.dataTransfer.files;
  if (!limits || !files.length) return;
  if (!state) { byId("new-problem").textContent = text("createFirst"); byId("name").focus(); }
  else if (isFixed()) byId("pictures-problem").textContent = text("fixedHint");
  else addFiles(files, limits.body);
}

byId("new").onsubmit = create;
byId("setup").onsubmit = start;
byId("setup").addEventListener("input", outdated);
byId("check").onclick = check;
byId("to-settings").onclick = () => { byId("setup").scrollIntoView(); byId("trigger").focus({ preventScroll: true }); };
change("stop", "stop");
change("resume", "resume");
change("continue", "resume", () => ({ steps: Number(byId("more-steps").value) || null }));
byId("use").onclick = use;
byId("copy").onclick = copy;
byId("delete").onclick = remove;
byId("files").onchange = async event => { await addFiles(event.target.files, limits.body); event.target.value = ""; };
byId("language").onclick = () => { switchLanguage(); open(); };
document.ondragover = event => { event.preventDefault(); document.body.classList.add("drag"); };
document.ondragleave = () => document.body.classList.remove("drag");
document.ondrop = dropped;
addEventListener("hashchange", open);

showTexts();
const on = await connect();
byId("off").hidden = on;
document.querySelector("aside").hidden = !on;
byId("welcome").hidden = !on;
if (on) { await open(); follow(); }
