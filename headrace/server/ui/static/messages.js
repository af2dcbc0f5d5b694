// One message on the page: what it says, what is known about it, and what can be done with it.

import { count, duration, h, iconButton, rate } from "./dom.js";
import { copy, render } from "./markdown.js";

/**
 * The view of `message`: {element, update}; `update` draws the message as it is now. `actions` are called with the
 * message: edit(message, text), regenerate(message), remove(message).
 */
export function view(message, modelName, actions) {
  const mine = message.role === "user";
  const reasoning = h("div", { className: "markdown" });
  const thoughts = h("details", { className: "reasoning" }, h("summary", {}, "Reasoning"), reasoning);
  const content = h("div", { className: mine ? "content" : "content markdown" });
  const note = h("p", { className: "note hint" });
  const error = h("p", { className: "error" });
  const stats = h("span", { className: "stats hint" });
  const copyButton = iconButton("copy", "Copy", () => copy(message.content, copyButton));
  const buttons = h("span", { className: "actions" }, copyButton);
  buttons.append(iconButton("edit", "Edit", () => editor(element, message, actions)));
  if (!mine) buttons.append(iconButton("again", "Regenerate", () => actions.regenerate(message)));
  const element = h(
    "article",
    { className: `message ${message.role}`, ariaLabel: mine ? "You" : modelName },
    thoughts,
    content,
    error,
    note,
    h("footer", {}, stats, buttons),
  );

  function update({ writing = false } = {}) {
    if (mine) content.textContent = message.content;
    else render(content, message.content);
    thoughts.hidden = !message.reasoning;
    if (message.reasoning) render(reasoning, message.reasoning);
    thoughts.firstChild.textContent = writing && !message.content ? "Reasoning …" : "Reasoning";
    set(note, message.note);
    set(error, message.error);
    if (message.error) error.role = "alert";
    stats.textContent = readOut(message);
    element.classList.toggle("writing", writing);
    element.ariaBusy = String(writing);
    buttons.hidden = writing;
  }

  update();
  return { element, update };
}

function set(element, text) {
  element.textContent = text ?? "";
  element.hidden = !text;
}

/** "48 tokens · 31.2 tok/s · first after 120 ms · prompt 35". */
function readOut({ usage, ttft, seconds }) {
  if (!usage) return "";
  const written = usage.completion_tokens;
  const parts = [`${count(written)} ${written === 1 ? "token" : "tokens"}`];
  if (written > 1 && seconds > 0) parts.push(`${rate((written - 1) / seconds)} tok/s`);
  if (ttft !== undefined) parts.push(`first after ${duration(ttft)}`);
  parts.push(`prompt ${count(usage.prompt_tokens)}`);
  return parts.join(" · ");
}

function editor(element, message, actions) {
  const mine = message.role === "user";
  const area = h("textarea", { value: message.content, ariaLabel: "Edit the message", rows: 3 });
  const form = h(
    "form",
    { className: "editor" },
    area,
    h("footer", {},
      h("button", { type: "button", className: "plain", onclick: close }, "Cancel"),
      h("button", { className: "primary" }, mine ? "Send again" : "Save")),
  );
  function close() {
    form.replaceWith(element);
    element.querySelector("button[title=Edit]").focus();
  }
  form.onsubmit = (event) => {
    event.preventDefault();
    close();
    actions.edit(message, area.value);
  };
  form.onkeydown = (event) => {
    if (event.key === "Escape") close();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  };
  element.replaceWith(form);
  area.focus();
}
