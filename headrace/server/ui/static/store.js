// The conversations, kept in this browser: one entry of localStorage each, so that two tabs don't overwrite each other.
//
// A conversation is {id, title, updated, settings, messages}; a message {role, content} and, in an answer, what is known
// about it: {reasoning, usage, ttft, seconds, note, error}.

const PREFIX = "headrace.chat.";

/** All conversations, the latest first. */
export function load() {
  const found = [];
  for (const key of Object.keys(localStorage)) {
    if (!key.startsWith(PREFIX)) continue;
    try {
      found.push(JSON.parse(localStorage.getItem(key)));
    } catch {
      localStorage.removeItem(key); // cut off by a browser that ran out of space
    }
  }
  return found.sort((a, b) => b.updated - a.updated);
}

/** A new conversation, which is not kept until it is saved. */
export function create(settings) {
  // crypto.randomUUID exists on https and localhost only
  const id = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 10)}`;
  return { id, title: "New chat", updated: Date.now(), settings: { ...settings }, messages: [] };
}

/** Keep `conversation`; false if the browser has no room left. */
export function save(conversation) {
  conversation.updated = Date.now();
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
    return true;
  } catch {
    return false;
  }
}

export function remove(conversation) {
  localStorage.removeItem(PREFIX + conversation.id);
}

/** Call `listener` when another tab changes a conversation. */
export function onChange(listener) {
  addEventListener("storage", (event) => {
    if (event.key === null || event.key.startsWith(PREFIX)) listener();
  });
}
