// Calls of the server, and its errors in words that a person can act on.

import { $ } from "./dom.js";

/** An error that the server told: HTTP status, code of the API, message. */
export class ServerError extends Error {
  constructor(status, code, message) {
    super(message);
    Object.assign(this, { status, code });
  }
}

/** An answer to a request of JSON. Asks for a key where one is wanted; any other refusal is a `ServerError`. */
export async function call(path, options = {}) {
  const key = sessionStorage.getItem("bidpo.key");
  const headers = { ...(options.body ? { "Content-Type": "application/json" } : {}), ...(key ? { Authorization: "Bearer " + key } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) {
    await askForKey(key !== null);
    return call(path, options);
  }
  if (!response.ok) {
    const error = (await response.json().catch(() => null))?.error;
    throw new ServerError(response.status, error?.code ?? null, error?.message ?? `the server answered with status ${response.status}`);
  }
  return response;
}

export const get = async (path) => (await call(path)).json();
export const post = async (path, body, signal) => (await call(path, { method: "POST", body: JSON.stringify(body), signal })).json();

let asking = null;
/** One question for all requests that lack the key. */
function askForKey(wasWrong) {
  asking ??= new Promise((done) => {
    $("key-text").textContent = wasWrong ? "The server does not know that key." : "This server asks for a key.";
    $("key-box").showModal();
    $("key-box").addEventListener("close", () => {
      sessionStorage.setItem("bidpo.key", $("key").value);
      asking = null;
      done();
    }, { once: true });
  });
  return asking;
}

/** The data of each server-sent event, up to `[DONE]`. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new TypeError("the stream ended before the answer did");
    text += value;
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const data = text.slice(0, end).split("\n").filter((l) => l.startsWith("data:")).map((l) => l.slice(5).trimStart()).join("\n");
      text = text.slice(end + 2);
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

const ADVICE = {
  context_length_exceeded: "Edit the message to be shorter, delete earlier turns, or start a new chat; a server started with a larger value of the flag in brackets takes more.",
  request_too_large: "Edit the message to be shorter, or delete earlier turns.",
  queue_full: "Others are using the server: press Retry in a while.",
  shutting_down: "Start the server again, then press Retry.",
  model_not_found: "Load this page again, so that it asks for what the server has now.",
};

/** An error as sentences: what happened, and what to do. */
export function explain(error) {
  if (!(error instanceof ServerError)) {
    if (error instanceof TypeError) {
      return `The server at ${location.host} does not answer. See whether \`bidpo serve\` still runs there, then press Retry.`;
    }
    return sentence(error.message);
  }
  let advice = ADVICE[error.code];
  if (!advice && error.status >= 500) advice = "Press Retry; if it fails again, move the dials towards 0 or look at what the server printed.";
  return sentence(error.message) + (advice ? " " + advice : "");
}

function sentence(text) {
  const first = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(first) ? first : first + ".";
}
