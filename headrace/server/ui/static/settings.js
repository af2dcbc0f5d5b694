// The settings of a conversation: a form drawn from one table. An empty field is not sent: the model's default counts.

import { $, h } from "./dom.js";

const FIELDS = [
  { name: "system", label: "System prompt", kind: "text", rows: 4, hint: "Told to the model before everything else." },
  { name: "temperature", label: "Temperature", min: 0, max: 5, step: 0.1, neutral: 1, hint: "0 always takes the likeliest token." },
  { name: "top_p", label: "Top-p", min: 0.01, max: 1, step: 0.01, neutral: 1, hint: "Only the likeliest tokens that make up this share." },
  { name: "top_k", label: "Top-k", min: 0, step: 1, neutral: 0, hint: "Only this many tokens; 0 for all." },
  { name: "min_p", label: "Min-p", min: 0, max: 1, step: 0.01, neutral: 0, hint: "No token below this part of the likeliest one." },
  { name: "max_tokens", label: "Max tokens", min: 1, step: 1, neutral: "what fits", hint: "The answer's length at most." },
  { name: "seed", label: "Seed", step: 1, neutral: "random", hint: "The same seed gives the same answer." },
  { name: "repetition_penalty", label: "Repetition penalty", min: 0.05, step: 0.05, neutral: 1 },
  { name: "presence_penalty", label: "Presence penalty", min: -2, max: 2, step: 0.1, neutral: 0 },
  { name: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2, step: 0.1, neutral: 0 },
  { name: "stop", label: "Stop strings", kind: "text", rows: 2, hint: "One a line." },
];

/** Draw the form; `changed(name, text)` hears of edits. */
export function build(changed) {
  for (const field of FIELDS) {
    const hint = field.hint && h("small", { id: `hint-${field.name}` }, field.hint);
    const common = { id: `set-${field.name}`, placeholder: String(field.neutral ?? "") };
    const input =
      field.kind === "text"
        ? h("textarea", { ...common, rows: field.rows })
        : h("input", { ...common, type: "number", inputMode: "decimal", min: field.min, max: field.max, step: field.step });
    if (hint) input.setAttribute("aria-describedby", hint.id);
    input.oninput = () => {
      const { badInput, rangeUnderflow, rangeOverflow, stepMismatch } = input.validity;
      const wrong = badInput || rangeUnderflow || rangeOverflow || (stepMismatch && field.step === 1);
      input.setAttribute("aria-invalid", String(wrong));
      if (!wrong) changed(field.name, input.value);
    };
    $("fields").append(h("div", { className: field.kind ?? "number" }, h("label", { htmlFor: input.id }, field.label), input, hint));
  }
}

/** Show the model's own `defaults` where a field is empty. */
export function showDefaults(defaults) {
  for (const { name } of FIELDS) {
    if (defaults[name] !== undefined) $(`set-${name}`).placeholder = String(defaults[name]);
  }
}

/** Show `settings` in the form. */
export function show(settings) {
  for (const { name } of FIELDS) {
    $(`set-${name}`).value = settings[name] ?? "";
    $(`set-${name}`).removeAttribute("aria-invalid");
  }
}

/** The settings as fields of a request; the system prompt is a message and not among them. */
export function asFields({ system: _, stop, ...numbers }) {
  const fields = Object.fromEntries(
    Object.entries(numbers).filter(([, text]) => text !== "").map(([name, text]) => [name, Number(text)]),
  );
  const stops = (stop ?? "").split("\n").filter(Boolean);
  return stops.length ? { ...fields, stop: stops } : fields;
}
