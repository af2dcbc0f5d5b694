// What a model wrote, as elements that can do no harm. Parsing is marked's job, safety DOMPurify's.

import { h, icon } from "./dom.js";
import DOMPurify from "./vendor/dompurify/purify.es.mjs";
import { marked } from "./vendor/marked/marked.esm.js";

marked.use({ gfm: true, breaks: true, renderer: { checkbox: ({ checked }) => (checked ? "☑ " : "☐ ") } });

const SANITIZE = {
  USE_PROFILES: { html: true },
  FORBID_TAGS: ["style", "form", "input", "button", "select", "textarea", "dialog"],
  FORBID_ATTR: ["style", "id", "name"],
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

// A model must not dress its text as a part of the page: the only class it may set is that of a code block's language.
DOMPurify.addHook("uponSanitizeAttribute", (_, attribute) => {
  if (attribute.attrName === "class") attribute.keepAttr = /^language-[\w.+#-]+$/.test(attribute.attrValue);
});

/** Show `text` in `element`. */
export function render(element, text) {
  const fragment = DOMPurify.sanitize(marked.parse(text), SANITIZE);
  for (const image of fragment.querySelectorAll("img")) {
    // Loading it would tell another host who reads what; a link leaves that to the reader.
    image.replaceWith(h("a", { href: image.src }, image.alt || image.src));
  }
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const table of fragment.querySelectorAll("table")) {
    const scroller = h("div", { className: "table" });
    table.replaceWith(scroller);
    scroller.append(table);
  }
  fragment.querySelectorAll("pre").forEach(frame);
  element.replaceChildren(fragment);
}

/** Put a head with the language and a copy button on a code block. */
function frame(block) {
  const code = block.querySelector("code");
  const language = /^language-(.*)$/.exec(code?.className ?? "")?.[1] ?? "text";
  const button = h("button", { type: "button", className: "plain copy-code" }, icon("copy"), "Copy");
  button.onclick = () => copy(block.textContent, button);
  block.tabIndex = 0; // so that a long line can be scrolled with the keyboard
  const framed = h("div", { className: "code" }, h("header", {}, h("span", {}, language), button));
  block.replaceWith(framed);
  framed.append(block);
}

/** Put `text` on the clipboard and say so on `button` for a moment. */
export async function copy(text, button) {
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else copyOldWay(text);
  const before = [...button.childNodes];
  button.replaceChildren(icon("check"), ...(button.classList.contains("icon") ? [] : ["Copied"]));
  setTimeout(() => button.replaceChildren(...before), 1500);
}

/** Browsers offer the clipboard to https and localhost only; a server in one's own network is often neither. */
function copyOldWay(text) {
  const area = h("textarea", { value: text, className: "visually-hidden" });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
