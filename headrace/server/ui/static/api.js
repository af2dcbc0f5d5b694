// The one way to the server: where it is, the API key, errors as sentences, and event streams.

import { h } from "./dom.js";

const base = new URL(".", document.baseURI); // also behind a proxy that serves us under a path
const KEY = "headrace.key"; // in sessionStorage: gone with the tab, and never part of an address

/** Something to tell the user in one sentence. */
export class ServerError extends Error {}

/** The answer of `path`; a `body` is POSTed as JSON. Asks for a key when the server wants one. */
export async function call(path, { body, signal } = {}) {
  for (;;) {
    const response = await attempt(path, body, signal);
    if (response.ok) return response;
    const message = await sentence(response);
    if (response.status !== 401 || !(await keyFromUser())) throw new ServerError(message);
  }
}

export async function json(path, options) {
  return (await call(path, options)).json();
}

async function attempt(path, body, signal) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const method = body === undefined ? "GET" : "POST";
  try {
    return await fetch(new URL(path, base), { method, headers, signal, body: JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server can't be reached. It may have been stopped.");
  }
}

async function sentence(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status} ${response.statusText}.`;
  }
}

/** The JSON events of a stream. An error in it, or an end before its time, is thrown as a ServerError. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        if (!block.startsWith("data: ")) continue; // a comment that keeps the connection alive
        const data = block.slice("data: ".length);
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new ServerError(event.error.message);
        yield event;
      }
    }
  } catch (error) {
    if (error instanceof TypeError) throw new ServerError("The connection broke before the answer was complete.");
    throw error;
  } finally {
    reader.cancel().catch(() => {});
  }
  throw new ServerError("The connection broke before the answer was complete.");
}

let asking = null; // so that several calls wait for one dialog

/** Ask for an API key; whether one was given. */
function keyFromUser() {
  asking ??= keyDialog().finally(() => {
    asking = null;
  });
  return asking;
}

function keyDialog() {
  const wrong = sessionStorage.getItem(KEY) !== null;
  const input = h("input", { type: "password", id: "api-key", required: true, autocomplete: "off", spellcheck: false });
  const cancel = h("button", { type: "button", className: "plain" }, "Cancel");
  const dialog = h(
    "dialog",
    { className: "sheet key", ariaLabel: "API key" },
    h(
      "form",
      { method: "dialog" },
      h("header", {}, h("h2", {}, "This server needs an API key")),
      h("p", { className: wrong ? "error" : "hint", role: wrong ? "alert" : null },
        wrong ? "The server did not accept this key." : "It is kept until you close this tab."),
      h("label", { htmlFor: "api-key" }, "API key"),
      input,
      h("footer", {}, cancel, h("button", { className: "primary" }, "Continue")),
    ),
  );
  return new Promise((resolve) => {
    cancel.onclick = () => dialog.close();
    dialog.querySelector("form").onsubmit = () => {
      sessionStorage.setItem(KEY, input.value.trim());
      resolve(true);
    };
    dialog.onclose = () => {
      dialog.remove();
      resolve(false); // has no effect after a submit
    };
    document.body.append(dialog);
    dialog.showModal();
    input.focus();
  });
}
