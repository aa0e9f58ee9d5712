// The OpenAI-compatible API of the server this page came from.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const TOKEN = "picollm.token";

// The address that was printed or opened may carry the token after the #, which a browser never sends. It is taken out of
// the address at once, and forgotten when the tab is closed.
if (location.hash.startsWith("#token=")) {
  sessionStorage.setItem(TOKEN, decodeURIComponent(location.hash.slice("#token=".length)));
  history.replaceState(null, "", location.pathname + location.search);
}

export function useToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

async function ask(path, options = {}) {
  const headers = { "content-type": "application/json" };
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server does not answer. Is it still running?");
  }
  if (!response.ok) throw new Refused(response.status, await reason(response));
  return response;
}

async function reason(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `HTTP ${response.status}: ${text.slice(0, 200)}`;
  }
}

// [{id, base}], as the server lists them; a base model continues text and does not answer.
export async function models() {
  const { data } = await (await ask("/v1/models")).json();
  return data.map((card) => ({ id: card.id, base: card.picollm?.stage === "pretrain", stage: card.picollm?.stage }));
}

// Yields {text}, and at the end {finish, figures, usage}. Throws Refused; AbortError when `signal` says so.
export async function* answer(model, messages, sampling, signal) {
  const body = { model: model.id, ...sampling, stream: true, stream_options: { include_usage: true } };
  if (model.base) body.prompt = messages.at(-1).content;
  else body.messages = messages;
  const path = model.base ? "/v1/completions" : "/v1/chat/completions";
  const response = await ask(path, { method: "POST", body: JSON.stringify(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const end = {};
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const events = (held + value).split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: ?/, "");
      if (data === "[DONE]") {
        yield end;
        return;
      }
      const piece = JSON.parse(data);
      if (piece.error) throw new Refused(500, piece.error.message);
      if (piece.usage) end.usage = piece.usage;
      if (piece.picollm) end.figures = piece.picollm;
      const choice = piece.choices[0];
      if (choice?.finish_reason) end.finish = choice.finish_reason;
      const text = choice?.delta?.content ?? choice?.text;
      if (text) yield { text };
    }
  }
  throw new Refused(0, "The answer was cut off: the server has ended.");
}
