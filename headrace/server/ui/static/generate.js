// One answer of the model: a streamed chat completion, written into a message as it comes.

import { call, events, ServerError } from "./api.js";
import { asFields } from "./settings.js";

/** The conversation as the API's messages, with its system prompt; answers that failed at once are left out. */
export function asMessages({ settings, messages }) {
  const said = messages.filter(({ content }) => content).map(({ role, content }) => ({ role, content }));
  const system = settings.system?.trim();
  return system ? [{ role: "system", content: system }, ...said] : said;
}

/** Write the next answer into `answer`, calling `changed` at each piece; never throws, but says in `answer` what went wrong. */
export async function generate(model, conversation, answer, signal, changed) {
  const begun = performance.now();
  let first = begun;
  const body = {
    model,
    messages: asMessages(conversation),
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
    ...asFields(conversation.settings),
  };
  try {
    for await (const chunk of events(await call("v1/chat/completions", { body, signal }))) {
      const now = performance.now();
      if (answer.ttft === undefined) {
        first = now;
        answer.ttft = (now - begun) / 1000;
      }
      answer.usage = chunk.usage ?? answer.usage;
      for (const choice of chunk.choices) {
        answer.seconds = (now - first) / 1000;
        take(answer, choice);
      }
      changed();
    }
    if (!answer.content && !answer.error) answer.note ??= "The model answered nothing.";
  } catch (error) {
    if (signal.aborted) answer.note = "Stopped.";
    else if (error instanceof ServerError) answer.error = error.message;
    else throw error;
  }
}

function take(answer, { delta, finish_reason: reason }) {
  answer.content += delta.content ?? "";
  answer.reasoning += delta.reasoning ?? delta.reasoning_content ?? "";
  if (reason === "length") answer.note = "Cut off: the limit of tokens was reached.";
}
