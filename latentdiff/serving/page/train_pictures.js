// The pictures of a fine-tune: thumbnails, captions that are saved as they are typed, uploads, and what the check found.

import { call, send } from "./api.js";
import { byId, EMPTY, make, showImage } from "./dom.js";
import { text } from "./texts.js";

const list = byId("pictures");
const problem = byId("pictures-problem");
const items = new Map(); // file name -> its elements
const SIDECAR = /\.(txt|caption)$/i;
let base = "";
let fixed = false;
let changed = () => {};
let waiting = new Map(); // captions not yet saved
let timer = 0;

export const pictureCount = () => items.size;

export async function showPictures(name, isFixed, onChange) {
  await saveCaptions();
  [base, fixed, changed] = [`/finetunes/${encodeURIComponent(name)}`, isFixed, onChange];
  const pictures = await (await call(`${base}/pictures`)).json();
  items.clear();
  list.replaceChildren();
  problem.textContent = "";
  byId("drop").hidden = fixed;
  for (const picture of pictures) show(picture);
  count();
}

function count() {
  byId("picture-count").textContent = items.size ? text("pictureCount", items.size) : "";
}

function show({ file, captions, readable }) {
  const image = make("img", { alt: "", src: EMPTY });
  const frame = make("div", { className: "frame" }, readable ? image : text("unreadable"));
  if (readable) whenVisible(frame, () => showImage(image, call, `${base}/thumbnails/${encodeURIComponent(file)}`));
  const caption = make("textarea", { value: captions.join("\n"), rows: 2, placeholder: text("captionHint"),
    ariaLabel: text("captionOf", file), disabled: fixed, maxLength: 2000 });
  caption.oninput = () => later(file, caption.value);
  const note = make("p", { className: "problem" });
  const remove = make("button", { type: "button", className: "drop-one", textContent: "×", ariaLabel: text("removePicture", file), hidden: fixed });
  remove.onclick = () => guarded(async () => {
    await call(`${base}/pictures/${encodeURIComponent(file)}`, { method: "DELETE" });
    items.get(file)?.item.remove();
    items.delete(file);
    waiting.delete(file);
    count();
    changed();
    (list.querySelector(".drop-one") ?? byId("files")).focus();
  });
  const item = make("li", {}, frame, remove, make("p", { className: "file", textContent: file, title: file }), caption, note);
  items.get(file)?.item.remove();
  items.set(file, { item, caption, note });
  list.append(item);
}

const observer = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    observer.unobserve(target);
    target.load().catch(() => { target.textContent = text("unreadable"); });
  }
}, { rootMargin: "300px" });

function whenVisible(element, load) {
  element.load = load;
  observer.observe(element);
}

function later(file, value) {
  waiting.set(file, value.split("\n"));
  byId("saved").textContent = "";
  changed();
  clearTimeout(timer);
  timer = setTimeout(saveCaptions, 600);
}

// Sends edited captions; those that the server did not accept are sent again with the next change.
export async function saveCaptions() {
  clearTimeout(timer);
  if (!waiting.size) return;
  const sent = waiting;
  waiting = new Map();
  const saved = await guarded(() => send("PATCH", `${base}/captions`, Object.fromEntries(sent)));
  if (saved) byId("saved").textContent = text("captionsSaved");
  else waiting = new Map([...sent, ...waiting]);
}

// When the page is closed, the last captions are sent without waiting for the response.
addEventListener("pagehide", () => {
  if (waiting.size) send("PATCH", `${base}/captions`, Object.fromEntries(waiting), true).catch(() => {});
});

async function guarded(act) {
  problem.textContent = "";
  try {
    await act();
    return true;
  } catch (error) {
    problem.textContent = error.message;
    return false;
  }
}

// Uploads pictures one after another; text files are the captions of the pictures of the same name.
export async function addFiles(files, limit) {
  problem.textContent = "";
  const texts = new Map();
  const problems = [];
  for (const file of files) if (SIDECAR.test(file.name)) texts.set(file.name.replace(SIDECAR, ""), (await file.text()).trim());
  const pictures = [...files].filter(file => !SIDECAR.test(file.name));
  for (const [k, file] of pictures.entries()) {
    byId("saved").textContent = text("uploading", k + 1, pictures.length);
    if (file.size > limit) { problems.push(text("tooLarge", file.name, Math.floor(limit / 2 ** 20))); continue; }
    try {
      show(await (await call(`${base}/pictures/${encodeURIComponent(file.name)}`, { method: "PUT", body: file })).json());
    } catch (error) {
      problems.push(error.message);
    }
    count();
  }
  byId("saved").textContent = "";
  for (const [file, { caption }] of items) {
    const found = texts.get(file) ?? texts.get(file.replace(/\.[^.]*$/, ""));
    if (found === undefined) continue;
    caption.value = found;
    later(file, found);
  }
  await saveCaptions();
  if (problems.length) problem.textContent = problems.slice(0, 5).join(" ") + (problems.length > 5 ? ` ${text("andMore", problems.length - 5)}` : "");
  changed();
}

// Shows each finding of a check under its picture.
export function showFindings(findings) {
  for (const { note } of items.values()) note.textContent = "";
  for (const { name, kind, detail } of findings) {
    const note = items.get(name)?.note;
    if (note) note.textContent += `${note.textContent && " "}${text("finding", kind, detail)}`;
  }
}
