// The chat page: which conversation is shown, and what its buttons do.

import { json, ServerError } from "./api.js";
import { $, count, duration, h, iconButton } from "./dom.js";
import { asMessages, generate } from "./generate.js";
import * as messages from "./messages.js";
import * as settings from "./settings.js";
import * as store from "./store.js";

const IDEAS = ["Explain how a water turbine works.", "Write a haiku about rivers.", "Show a Python function that reverses a list."];
const DRAW_EVERY = 100; // ms: pieces may come faster than anybody reads, and the processor may be the model's, too

let facts = null; // what the server told about itself
let conversations = store.load();
let current = store.create({});
let running = null; // {conversation, answer, abort} while an answer is being written
let views = new Map(); // message -> its view, of the current conversation
let following = true; // whether the page scrolls along with what is written

const actions = { edit, regenerate };
const model = () => $("model").value;
const touch = () => matchMedia("(pointer: coarse)").matches;

// -- the list of conversations ---------------------------------------------------------------------------------------

function showList() {
  $("conversations").replaceChildren(
    ...conversations.map((conversation) => {
      const open = h("button", { type: "button", className: "open", title: conversation.title, onclick: () => show(conversation) }, conversation.title);
      if (conversation === current) open.setAttribute("aria-current", "true");
      return h("li", {}, open, iconButton("trash", `Delete “${conversation.title}”`, () => remove(conversation)));
    }),
  );
  $("delete-all").hidden = !conversations.length;
}

function show(conversation) {
  current = conversation;
  views = new Map(conversation.messages.map((message) => [message, messages.view(message, model(), actions)]));
  $("log").replaceChildren(...[...views.values()].map(({ element }) => element));
  if (running?.conversation === conversation) views.get(running.answer).update({ writing: true });
  settings.show(conversation.settings);
  showList();
  showState();
  closeSidebar();
  follow(true);
  if (!touch()) $("draft").focus(); // there it would bring up the keyboard
}

function remove(conversation) {
  if (!confirm(`Delete “${conversation.title}”?`)) return;
  if (running?.conversation === conversation) running.abort.abort();
  store.remove(conversation);
  conversations = conversations.filter((other) => other !== conversation);
  if (conversation === current) startNew();
  else showList();
}

function removeAll() {
  if (!confirm(`Delete all ${conversations.length} chats? They can't be brought back.`)) return;
  running?.abort.abort();
  conversations.forEach(store.remove);
  conversations = [];
  startNew();
}

function startNew() {
  show(store.create(current.settings));
}

function keep(conversation) {
  if (conversation !== current && !conversations.includes(conversation)) return; // it was deleted meanwhile
  if (!store.save(conversation)) say("This browser has no room for more chats: delete some to keep this one.");
  conversations = [conversation, ...conversations.filter((other) => other !== conversation)];
  showList();
}

// -- messages --------------------------------------------------------------------------------------------------------

function append(message) {
  const view = messages.view(message, model(), actions);
  views.set(message, view);
  $("log").append(view.element);
}

/** Forget `message` and all after it. */
function cut(message) {
  const index = current.messages.indexOf(message);
  for (const gone of current.messages.splice(index)) {
    views.get(gone).element.remove();
    views.delete(gone);
  }
}

function send(text) {
  if (!current.messages.length) current.title = text.trim().split("\n")[0].slice(0, 80);
  const message = { role: "user", content: text };
  current.messages.push(message);
  append(message);
  answer();
}

function edit(message, text) {
  if (running || !text.trim()) return;
  if (message.role === "user") {
    cut(message);
    send(text);
    return;
  }
  message.content = text;
  views.get(message).update();
  keep(current);
}

function regenerate(message) {
  if (running) return;
  cut(message);
  answer();
}

async function answer() {
  const conversation = current;
  const message = { role: "assistant", content: "", reasoning: "" };
  const abort = new AbortController();
  running = { conversation, answer: message, abort };
  keep(conversation);
  const asked = { ...conversation, messages: [...conversation.messages] };
  conversation.messages.push(message);
  append(message);
  follow(true);
  showState();
  say("The answer is being written.");
  let drawn = true;
  const draw = () => {
    drawn = true;
    if (running?.answer !== message) return;
    views.get(message)?.update({ writing: true });
    follow(following);
  };
  draw();
  await generate(model(), asked, message, abort.signal, () => {
    if (drawn) setTimeout(draw, DRAW_EVERY);
    drawn = false;
  });
  running = null;
  views.get(message)?.update();
  keep(conversation);
  showState();
  follow(following);
  say(message.error ?? message.note ?? "The answer is complete.");
}

// -- the state of the page ---------------------------------------------------------------------------------------------

function showState() {
  $("empty").hidden = current.messages.length > 0;
  $("send").hidden = running !== null;
  $("stop").hidden = running === null;
  $("send").disabled = !$("draft").value.trim() || !facts;
  document.body.classList.toggle("busy", running !== null);
  const usage = current.messages.findLast(({ usage }) => usage)?.usage;
  $("context").textContent = facts && usage ? `${count(usage.total_tokens)} of ${count(facts.max_model_len)} tokens` : "";
}

/** Tell those who can't see the page. */
function say(text) {
  $("status").textContent = text;
}

function follow(wanted) {
  following = wanted;
  const scroller = $("scroller");
  if (wanted) scroller.scrollTop = scroller.scrollHeight;
  $("latest").hidden = wanted;
}

function closeSidebar() {
  document.body.classList.remove("sidebar");
  $("menu").ariaExpanded = "false";
}

function fitDraft() {
  const draft = $("draft");
  draft.style.height = "auto";
  draft.style.height = `${draft.scrollHeight}px`;
  showState();
}

async function showPrompt() {
  const draft = $("draft").value.trim();
  const said = asMessages(current).concat(draft ? [{ role: "user", content: draft }] : []);
  $("prompt-count").textContent = "";
  $("prompt-text").textContent = "";
  $("prompt").showModal();
  if (!said.length) {
    $("prompt-count").textContent = "Nothing yet: write a message first.";
    return;
  }
  try {
    const { tokens, count: number } = await json("tokenize", { body: { model: model(), messages: said, add_special_tokens: false } });
    const { prompt } = await json("detokenize", { body: { model: model(), tokens } });
    $("prompt-count").textContent = `${count(number)} tokens, as the model's chat template puts them. The answer follows the last one.`;
    $("prompt-text").textContent = prompt;
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    $("prompt-count").textContent = error.message;
  }
}

// -- start -------------------------------------------------------------------------------------------------------------

function listen() {
  settings.build((name, text) => {
    current.settings[name] = text;
    if (current.messages.length) keep(current);
  });
  $("composer").onsubmit = (event) => {
    event.preventDefault();
    const text = $("draft").value;
    if (running || !text.trim() || !facts) return;
    $("draft").value = "";
    fitDraft();
    send(text);
  };
  $("draft").oninput = fitDraft;
  $("draft").onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || touch()) return; // a finger taps the arrow
    event.preventDefault();
    $("composer").requestSubmit();
  };
  $("stop").onclick = () => {
    running?.abort.abort();
    if (!touch()) $("draft").focus(); // the button is about to go
  };
  $("new").onclick = startNew;
  $("delete-all").onclick = removeAll;
  $("show-settings").onclick = () => $("settings").showModal();
  $("show-prompt").onclick = showPrompt;
  $("reset").onclick = () => {
    current.settings = {};
    settings.show({});
    if (current.messages.length) keep(current);
  };
  $("latest").onclick = () => follow(true);
  $("scroller").onscroll = ({ target }) => {
    following = target.scrollHeight - target.scrollTop - target.clientHeight < 40;
    $("latest").hidden = following;
  };
  $("menu").onclick = () => {
    const open = document.body.classList.toggle("sidebar");
    $("menu").ariaExpanded = String(open);
    if (open) $("new").focus();
  };
  $("shade").onclick = closeSidebar;
  addEventListener("keydown", (event) => event.key === "Escape" && closeSidebar());
  addEventListener("pagehide", () => {
    if (!running) return;
    running.answer.note = "Stopped.";
    keep(running.conversation); // now: what follows an abort may come too late
    running.abort.abort();
  });
  store.onChange(() => {
    const others = store.load().filter(({ id }) => id !== current.id && id !== running?.conversation.id);
    const mine = conversations.filter((one) => one === current || one === running?.conversation);
    conversations = [...mine, ...others].sort((a, b) => b.updated - a.updated);
    showList();
  });
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.onclick = (event) => event.target === dialog && dialog.close(); // a click beside it
  }
}

async function start() {
  listen();
  $("ideas").append(...IDEAS.map((idea) => h("button", { type: "button", className: "idea", onclick: () => facts && !running && send(idea) }, idea)));
  showList();
  showState();
  try {
    facts = await json("dashboard/facts");
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    $("facts").textContent = error.message;
    $("facts").className = "error";
    return;
  }
  $("model").append(...facts.models.map((name) => h("option", { value: name }, name)));
  $("model").disabled = facts.models.length < 2;
  document.title = `${facts.models[0]} · Headrace`;
  $("facts").textContent = `${facts.architecture} on ${facts.device}, ${facts.dtype}, ${count(facts.max_model_len)} tokens of context, up for ${duration(facts.uptime)}`;
  settings.showDefaults(facts.default_sampling);
  show(conversations[0] ?? current);
}

start();
