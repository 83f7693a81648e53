// Requests to the server: JSON, images, and server-sent events read through fetch, which can send the key.

import { text } from "./texts.js";

let key = localStorage.getItem("key") || "";

export class ApiError extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

export async function call(path, options = {}) {
  const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) {
    const entered = prompt(text("needKey"));
    if (!entered) throw new ApiError(text("needKey"), 401);
    localStorage.setItem("key", key = entered);
    return call(path, options);
  }
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    throw new ApiError(problem.error?.message || `${answer.status} ${answer.statusText}`, answer.status);
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
