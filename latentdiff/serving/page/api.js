// Requests to the server: JSON, images, and server-sent events read through fetch, which can send the key.

import { make } from "./dom.js";
import { text } from "./texts.js";

let key = localStorage.getItem("key") || "";

// status: of the answer, 0 if there was none.
export class ApiError extends Error {
  constructor(message, status, field) { super(message); this.status = status; this.field = field; }
}

let entering = null; // the key dialog, shared by all requests that need a key

function enterKey() {
  return entering ??= new Promise(resolve => {
    const input = make("input", { type: "password", id: "key", autocomplete: "current-password" });
    const form = make("form", { method: "dialog", className: "plain" },
      make("label", { htmlFor: "key", textContent: text("needKey") }), input,
      make("div", { className: "row end" }, make("button", { className: "primary", textContent: text("enter") })));
    const dialog = make("dialog", { ariaLabel: text("needKey") }, form);
    dialog.onclose = () => { entering = null; dialog.remove(); resolve(input.value.trim()); };
    document.body.append(dialog);
    dialog.showModal();
  });
}

// Capitalises a message of the server, unless it begins with the name of a field.
export const capitalised = sentence => sentence.replace(/^[a-z](?=[a-z]*[ :])/, letter => letter.toUpperCase());

export async function call(path, options = {}) {
  const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
  const answer = await fetch(path, { ...options, headers }).catch(error => {
    throw error instanceof TypeError ? new ApiError(text("noAnswer"), 0) : error;
  });
  if (answer.status === 401) {
    const entered = await enterKey();
    if (!entered) throw new ApiError(text("needKey"), 401);
    localStorage.setItem("key", key = entered);
    return call(path, options);
  }
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    const { message = `${answer.status} ${answer.statusText}`, param, code } = problem.error || {};
    const sentence = code === "queue_full" ? text("queueFull", answer.headers.get("retry-after")) : capitalised(message);
    throw new ApiError(sentence, answer.status, param || message.match(/^(\w+)=/)?.[1]);
  }
  return answer;
}

export const get = async path => (await call(path)).json();

export const send = (method, path, body, keepalive = false) =>
  call(path, { method, keepalive, headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

export const post = async (path, body) => (await send("POST", path, body)).json();

// Yields [kind, data] of every event until the stream ends.
export async function* events(path, signal) {
  const answer = await call(path, { signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    const parts = buffer.split("\n\n");
    buffer = parts.pop();
    for (const part of parts) {
      const kind = part.match(/^event: (.*)$/m)?.[1];
      if (kind) yield [kind, JSON.parse(part.match(/^data: (.*)$/m)[1])];
    }
  }
}
