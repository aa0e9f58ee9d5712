// The page: which conversation is shown, what happens when a button or key is pressed, how an answer grows.

import * as api from "/web/api.js";
import { render } from "/web/markdown.js";
import * as store from "/web/store.js";

const $ = (id) => document.getElementById(id);
const BEST_FIRST = ["rl", "sft", "midtrain", "pretrain"];
const THEMES = ["", "light", "dark"];
const THEME_NAMES = { "": "as the system", light: "light", dark: "dark" };

let settings = store.settings();
let conversations = store.conversations();
let current = null; // the conversation shown; null: a new one that nothing was said in
let models = [];
let running = null; // the AbortController of the answers under way
let drafts = new Map(); // answer object → its element, while it grows

// models and settings ------------------------------------------------------------------------------------------------

async function loadModels() {
  for (;;) {
    try {
      models = await api.models();
      break;
    } catch (error) {
      if (error.status !== 401) return say(error.message);
      await askToken();
    }
  }
  if (!models.length) return say("The server has no models.");
  const ranked = [...models].sort((a, b) => BEST_FIRST.indexOf(a.stage) - BEST_FIRST.indexOf(b.stage));
  const known = (id) => models.some((model) => model.id === id);
  if (!known(settings.model)) settings.model = ranked[0].id;
  if (!known(settings.second)) settings.second = (ranked.findLast((model) => model.base) ?? ranked.at(-1)).id;
  for (const id of ["model", "second"]) {
    $(id).replaceChildren(...models.map((model) => new Option(model.base ? `${model.id} (continues text)` : model.id, model.id)));
    $(id).value = settings[id];
  }
  show();
}

function askToken() {
  $("token").value = "";
  $("ask-token").showModal();
  return new Promise((resolve) => {
    $("ask-token").addEventListener("close", () => resolve(api.useToken($("token").value.trim())), { once: true });
  });
}

function keepSettings() {
  try {
    store.saveSettings(settings);
  } catch (error) {
    say(`Settings could not be kept: ${error.message}`);
  }
}

function showSettings() {
  for (const input of document.querySelectorAll("[data-setting]")) input.value = settings[input.dataset.setting];
  document.documentElement.toggleAttribute("data-theme", settings.theme !== "");
  if (settings.theme) document.documentElement.dataset.theme = settings.theme;
  $("theme").title = `Theme: ${THEME_NAMES[settings.theme]}`;
  $("theme").setAttribute("aria-label", $("theme").title);
  $("compare").setAttribute("aria-pressed", String(settings.compare));
  $("second-field").hidden = !settings.compare;
  document.body.classList.toggle("comparing", settings.compare);
}

function takeSetting(input) {
  const name = input.dataset.setting;
  if (!input.checkValidity()) return;
  settings[name] = input.type === "number" && input.value !== "" ? Number(input.value) : input.value;
  keepSettings();
}

// Of a turn's first answer with the seed that was set; each further one is another.
function seedFor(attempt) {
  if (settings.seed !== "") return (Number(settings.seed) + attempt) % 2 ** 31;
  return crypto.getRandomValues(new Uint32Array(1))[0] % 2 ** 31;
}

// asking -------------------------------------------------------------------------------------------------------------

function chosenModels() {
  const ids = settings.compare ? [settings.model, settings.second] : [settings.model];
  return ids.map((id) => models.find((model) => model.id === id));
}

async function send(text) {
  if (running || !models.length) return;
  if (!current) {
    current = { id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, title: "", turns: [] };
    conversations.unshift(current);
  }
  current.title ||= text.trim().split("\n")[0].slice(0, 60);
  current.turns.push({ user: text, answers: [] });
  await answerLast(0);
}

async function regenerate() {
  const turn = current?.turns.at(-1);
  if (running || !turn) return;
  turn.attempt = (turn.attempt ?? 0) + 1;
  await answerLast(turn.attempt);
}

async function answerLast(attempt) {
  const conversation = current;
  const turn = conversation.turns.at(-1);
  const seed = seedFor(attempt);
  running = new AbortController();
  turn.answers = chosenModels().map((model) => ({ model: model.id, text: "" }));
  showTurns();
  scrollDown();
  const asked = chosenModels().map((model, k) => grow(conversation, turn.answers[k], model, history(conversation, k), seed));
  await Promise.all(asked);
  running = null;
  drafts = new Map();
  keepConversations();
  showTurns();
  $("prompt").focus({ preventScroll: true });
}

// What the k-th model of the last turn has been told: its own answers where two were given, else the only one.
function history(conversation, k) {
  const messages = settings.system.trim() ? [{ role: "system", content: settings.system.trim() }] : [];
  for (const turn of conversation.turns.slice(0, -1)) {
    const answer = turn.answers[k] ?? turn.answers[0];
    if (!answer?.text) continue; // one that failed has said nothing to go on from
    messages.push({ role: "user", content: turn.user }, { role: "assistant", content: answer.text });
  }
  messages.push({ role: "user", content: conversation.turns.at(-1).user });
  return messages;
}

async function grow(conversation, answer, model, messages, seed) {
  const { temperature, max_tokens, top_k, top_p, min_p, repetition_penalty } = settings;
  const sampling = { temperature, max_tokens, top_k, top_p, min_p, repetition_penalty, seed };
  let due = false;
  const draw = () => {
    due = false;
    const element = drafts.get(answer);
    if (!element?.isConnected) return;
    const near = nearEnd();
    showText(element, answer);
    if (near) scrollDown();
  };
  try {
    for await (const piece of api.answer(model, messages, sampling, running.signal)) {
      if (piece.text) {
        answer.text += piece.text;
        if (!due) requestAnimationFrame(draw);
        due = true;
      } else Object.assign(answer, piece);
    }
  } catch (error) {
    if (error.name === "AbortError") answer.finish = "stopped";
    else {
      answer.error = error.message;
      if (error.status === 401) loadModels();
    }
  }
  drafts.get(answer)?.classList.remove("busy");
  draw();
}

// showing ------------------------------------------------------------------------------------------------------------

function make(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function button(label, className, action, title = label) {
  const element = make("button", className, label);
  element.type = "button";
  element.title = title;
  element.setAttribute("aria-label", title);
  element.addEventListener("click", action);
  return element;
}

function show() {
  showSettings();
  showTurns();
  showList();
}

function showTurns() {
  const log = $("log");
  log.setAttribute("aria-busy", String(Boolean(running)));
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
  const at = log.scrollTop;
  if (!current) {
    const welcome = make("div", "welcome");
    welcome.append(make("h1", "", "Talk to what you made"), make("p", "", hint()));
    log.replaceChildren(welcome);
    return;
  }
  log.replaceChildren(...current.turns.map((turn, k) => turnElement(turn, k === current.turns.length - 1)));
  log.scrollTop = at;
}

function hint() {
  if (settings.compare) return "Both models get the same prompt and the same seed.";
  const base = models.find((model) => model.id === settings.model)?.base;
  return base ? "A base model continues your text; it does not answer." : "Small models make things up. That is part of the show.";
}

function turnElement(turn, last) {
  const element = make("section", turn.answers.length > 1 ? "turn two" : "turn");
  const answers = make("div", "answers");
  answers.append(...turn.answers.map((answer) => answerElement(answer, last)));
  element.append(make("div", "user", turn.user), answers);
  return element;
}

function answerElement(answer, last) {
  const busy = running && last && !answer.finish && !answer.error;
  const element = make("article", busy ? "answer busy" : "answer");
  const foot = make("div", "foot");
  element.append(make("div", "who", answer.model), make("div", "text"), foot);
  drafts.set(answer, element);
  showText(element, answer);
  if (running && last) return element;
  foot.append(make("span", "figures", figures(answer)));
  foot.append(button("Copy", "quiet", () => copy(answer.text)));
  if (last) foot.append(button("Regenerate", "quiet", regenerate, "Regenerate (Alt+R)"));
  return element;
}

function showText(element, answer) {
  const text = element.querySelector(".text");
  const raw = models.find((model) => model.id === answer.model)?.base;
  text.classList.toggle("raw", Boolean(raw));
  text.replaceChildren(raw ? answer.text : render(answer.text));
  if (answer.error) text.append(make("p", "failed", answer.error));
}

function figures(answer) {
  const parts = [];
  if (answer.usage) parts.push(`${answer.usage.completion_tokens} tokens`);
  if (answer.figures?.tok_s) parts.push(`${Math.round(answer.figures.tok_s)} tok/s`);
  if (answer.figures) parts.push(`seed ${answer.figures.seed}`);
  if (answer.finish === "length") parts.push("cut at the limit");
  if (answer.finish === "stopped") parts.push("stopped");
  if (answer.figures?.cut_tokens) parts.push(`${answer.figures.cut_tokens} tokens of the prompt did not fit`);
  return parts.join(" · ");
}

function showList() {
  const items = conversations.map((one) => {
    const item = make("li");
    if (one === current) item.setAttribute("aria-current", "true");
    item.append(button(one.title || "untitled", "open", () => open(one)), button("✕", "drop", () => drop(one), `Delete: ${one.title}`));
    return item;
  });
  $("conversations").replaceChildren(...items);
}

function nearEnd() {
  const log = $("log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < 60;
}

function scrollDown() {
  $("log").scrollTop = $("log").scrollHeight;
}

function say(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("");
  } catch {
    say("This browser does not let the page copy; select the text instead.");
  }
}

// conversations ------------------------------------------------------------------------------------------------------

function keepConversations() {
  try {
    const dropped = store.saveConversations(conversations);
    if (dropped) say(`The browser's room is used up: ${dropped} of the oldest conversations went.`);
  } catch (error) {
    say(`The conversation could not be kept: ${error.message}`);
  }
  showList();
}

function open(conversation) {
  running?.abort();
  current = conversation;
  say("");
  showTurns();
  showList();
  closeSidebar();
  scrollDown();
  $("prompt").focus();
}

function drop(conversation) {
  if (conversation === current) open(null);
  conversations = conversations.filter((one) => one !== conversation);
  keepConversations();
}

// Another tab has kept its list: what it knows is ours too, or we would write over it. While an answer grows here, the
// conversation it belongs to is newer than what the other tab has of it.
function takeOver() {
  conversations = store.conversations();
  const at = conversations.findIndex((one) => one.id === current?.id);
  if (!running) current = conversations[at] ?? null;
  else if (at >= 0) conversations[at] = current;
  else if (current) conversations.unshift(current);
  show();
}

function closeSidebar() {
  $("sidebar").classList.remove("open");
  $("shade").hidden = true;
}

// keys and buttons ---------------------------------------------------------------------------------------------------

function submit() {
  const text = $("prompt").value;
  if (!text.trim() || running) return;
  $("prompt").value = "";
  fit();
  say("");
  send(text);
}

function fit() {
  const box = $("prompt");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("prompt").addEventListener("input", fit);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  } else if (event.key === "ArrowUp" && !$("prompt").value && current?.turns.length) {
    event.preventDefault();
    $("prompt").value = current.turns.at(-1).user;
    fit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    running?.abort();
    closeSidebar();
  }
  if (!event.altKey || event.ctrlKey || event.metaKey) return;
  const action = { KeyN: () => open(null), KeyR: regenerate, KeyS: () => $("settings").showModal() }[event.code];
  if (action && !document.querySelector("dialog[open]")) {
    event.preventDefault();
    action();
  }
});
$("stop").addEventListener("click", () => running?.abort());
$("new-chat").addEventListener("click", () => open(null));
$("open-sidebar").addEventListener("click", () => {
  $("sidebar").classList.add("open");
  $("shade").hidden = false;
  $("close-sidebar").focus();
});
$("close-sidebar").addEventListener("click", closeSidebar);
$("shade").addEventListener("click", closeSidebar);
$("open-settings").addEventListener("click", () => $("settings").showModal());
$("settings").addEventListener("input", (event) => takeSetting(event.target));
$("settings").addEventListener("close", showSettings);
$("reset-settings").addEventListener("click", () => {
  Object.assign(settings, store.SAMPLING);
  keepSettings();
  showSettings();
});
for (const id of ["model", "second"]) {
  $(id).addEventListener("change", () => {
    settings[id] = $(id).value;
    keepSettings();
    if (!current) showTurns();
  });
}
$("compare").addEventListener("click", () => {
  settings.compare = !settings.compare;
  keepSettings();
  showSettings();
  if (!current) showTurns();
});
$("theme").addEventListener("click", () => {
  settings.theme = THEMES[(THEMES.indexOf(settings.theme) + 1) % THEMES.length];
  keepSettings();
  showSettings();
});

window.addEventListener("storage", (event) => {
  if (event.key === store.CONVERSATIONS) takeOver();
});

show();
loadModels();
