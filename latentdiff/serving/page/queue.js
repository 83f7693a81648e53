// Jobs in progress. Their ids and settings are kept in the browser, so that a reload or another tab shows them too.

import { ApiError, call, capitalised, events } from "./api.js";
import { EMPTY, make } from "./dom.js";
import { addImage } from "./gallery.js";
import { text } from "./texts.js";

const list = document.getElementById("queue");
const section = document.getElementById("queue-section");
const shown = new Map();

const known = () => JSON.parse(localStorage.getItem("requests") || "{}"); // the settings of each job, by its id
const keep = requests => localStorage.setItem("requests", JSON.stringify(requests));
const remember = job => keep({ ...known(), [job.id]: job.request });
const forget = id => { const { [id]: _, ...others } = known(); keep(others); };
let again = () => {};

export function onAgain(use) { again = use; }

export function showKnownJobs() {
  for (const [id, request] of Object.entries(known())) if (!shown.has(id)) watch(id, request);
}

export function addJob(job) {
  remember(job);
  watch(job.id, job.request);
  if (matchMedia("(max-width: 800px)").matches) section.scrollIntoView({ behavior: "smooth" });
}

async function watch(id, request) {
  const previews = make("div", { className: "previews" });
  const what = make("p", { className: "what", textContent: request.prompt });
  const how = make("p", { className: "how" });
  const bar = make("progress", { max: 1, value: 0, ariaLabel: text("queue") });
  const button = make("button", { type: "button", textContent: text("cancel") });
  const item = make("li", {}, previews, make("div", {}, what, how, bar), make("div", { className: "row" }, button));
  shown.set(id, item);
  list.prepend(item);
  section.hidden = false;
  const close = () => { item.remove(); shown.delete(id); forget(id); section.hidden = !shown.size; };
  const fail = message => {
    how.textContent = message; how.classList.add("problem"); bar.hidden = true;
    button.textContent = text("dismiss"); button.onclick = close;
    const retry = make("button", { type: "button", textContent: text("again"), onclick: () => { close(); again(request); } });
    button.before(retry);
  };
  button.onclick = () => call(`/jobs/${id}`, { method: "DELETE" }).catch(() => {});
  for (;;) {
    try {
      for await (const [kind, data] of events(`/jobs/${id}/events`)) {
        how.classList.remove("problem");
        if (kind === "preview") previews.children[data.image].src = `data:image/png;base64,${data.png}`;
        if (kind === "progress") {
          showImages(previews, data.done.length);
          bar.value = data.progress;
          how.textContent = data.position ? text("waiting", data.position) : describe(data);
        }
        if (kind === "result") { await collect(data); return close(); }
        if (kind === "error") return data.status === "cancelled" ? close() : fail(capitalised(data.error.message));
      }
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) return fail(text("gone"));
      how.textContent = text("lost");
      how.classList.add("problem");
    }
    await new Promise(resolve => setTimeout(resolve, 1000));
  }
}

// A square with a slot for the preview of each image.
function showImages(previews, count) {
  if (previews.children.length === count) return;
  previews.style.setProperty("--columns", Math.ceil(Math.sqrt(count)));
  previews.replaceChildren(...Array.from({ length: count }, () => make("img", { className: "preview", alt: text("preview"), src: EMPTY })));
}

const describe = data =>
  text("step", Math.max(...data.done), data.total) + (data.eta === null ? "" : ` · ${text("remaining", Math.ceil(data.eta))}`);

async function collect(job) {
  for (const [index, image] of job.images.entries()) {
    const { url, stopped, ...seeds } = image;
    const blob = await (await call(url)).blob();
    const settings = { ...job.request, ...seeds, images: 1 };
    await addImage({ id: `${job.id}-${index}`, blob, created: Date.now(), settings });
  }
}
