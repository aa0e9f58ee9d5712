// What this browser keeps: conversations and settings, in localStorage. Nothing else has them.
//
// A conversation: {id, title, turns: [{user, answers: [{model, text, finish, figures, usage, error}]}]}. A turn has one
// answer, or two where models are compared.

export const CONVERSATIONS = "picollm.conversations";
const SETTINGS = "picollm.settings";
const MOST = 100; // conversations kept; the oldest go first

export const SAMPLING = {
  system: "", temperature: 0.7, max_tokens: 256, top_k: 50, top_p: 1, min_p: 0, repetition_penalty: 1, seed: "",
};

const DEFAULTS = { ...SAMPLING, model: "", second: "", compare: false, theme: "" };

function read(key, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? otherwise;
  } catch {
    return otherwise; // not ours, or torn: start afresh
  }
}

export function settings() {
  const found = read(SETTINGS, {});
  const known = Object.entries(DEFAULTS).map(([name, value]) =>
    [name, name === "seed" || typeof found[name] === typeof value ? (found[name] ?? value) : value]);
  return Object.fromEntries(known);
}

export function saveSettings(values) {
  localStorage.setItem(SETTINGS, JSON.stringify(values));
}

export function conversations() {
  const found = read(CONVERSATIONS, []);
  const sound = (turn) => typeof turn?.user === "string" && Array.isArray(turn.answers);
  return Array.isArray(found) ? found.filter((one) => one?.id && Array.isArray(one.turns) && one.turns.every(sound)) : [];
}

// Saves them, newest first. Where the browser's room is used up, the oldest are dropped until the rest fits.
// Returns how many were dropped.
export function saveConversations(list) {
  const before = list.length;
  list.length = Math.min(before, MOST);
  for (;;) {
    try {
      localStorage.setItem(CONVERSATIONS, JSON.stringify(list));
      return before - list.length;
    } catch (error) {
      if (error.name !== "QuotaExceededError" || list.length < 2) throw error;
      list.pop();
    }
  }
}
