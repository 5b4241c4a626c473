// The page of `bidpo serve`: one question, two answers side by side, without and with steering.

import { canScore, score, write } from "./answers.js";
import { COLUMNS, chatsFromFile, chatsToFile, emptyAnswer, gateNames, messages, newChat, newId, newTurn, outdate, readChat, specOf, titleOf } from "./chat.js";
import { allChats, putChat, removeChat } from "./database.js";
import { buildDials, steering, sumUp } from "./dials.js";
import { $, button, el, throttle, toast, toEnd } from "./dom.js";
import { showGauge } from "./gauge.js";
import { download, fileName, listChats } from "./library.js";
import { explain, get, post } from "./server.js";
import { kept, tab } from "./settings.js";
import { emptyPanel, offerColours } from "./tokens.js";
import { turnView } from "./turns.js";

const state = {
  chats: [], // the latest first
  chat: newChat(),
  views: new Map(), // of the turns on the screen
  abort: null, // of the answers that are being written
  queue: [], // messages that wait for them
  tokens: false, // the token view is on
  colour: "", // the gate that tokens are coloured by; empty: by probability
  meta: {}, // of the model
};

const setting = (id) => $(id).value;

// ---- Answers ----

/** Writes answers of a turn anew, or goes on with them, then sends what waits. */
async function run(turn, columns, { goOn = false } = {}) {
  const chat = state.chat;
  const abort = (state.abort = new AbortController());
  busy(true);
  // New values in both cases: an answer that was stopped a moment ago may still change its own.
  for (const column of columns) turn[column] = goOn ? structuredClone(turn[column]) : emptyAnswer();
  outdate(chat, chat.turns.indexOf(turn) + 1, columns);
  show();
  const seed = setting("seed") === "" ? Math.floor(Math.random() * 2 ** 31) : Number(setting("seed"));
  const saveSoon = (state.saveSoon = throttle(() => keep(chat), 300));
  await Promise.all(columns.map((column) => {
    const view = state.views.get(turn)[column];
    const draw = throttle(view.show, 80);
    const request = {
      messages: messages(chat, turn, column),
      ...specOf(turn, column),
      temperature: Number(setting("temperature")) || 0,
      repeat_penalty: Number(setting("penalty")) || 1,
      max_completion_tokens: Math.max(1, Math.floor(Number(setting("max"))) || 256),
      seed,
    };
    return write(turn[column], request, abort.signal, () => { draw(); saveSoon(); }).then(() => { draw(); draw.now(); });
  }));
  saveSoon();
  saveSoon.now();
  if (state.abort !== abort) return;
  state.abort = null;
  busy(false);
  measure();
  if (columns.every((column) => turn[column].error)) takeBack();
  else if (state.queue.length) return ask(nextInQueue());
  if (state.tokens) scoreAll();
}

/** Ends the answers. What waits goes back into the message field. */
function stop() {
  state.abort?.abort();
  state.abort = null;
  busy(false);
  takeBack();
  measure();
}

function busy(on) { $("stop").hidden = !on; }

/** True while answers are written; says so. */
function isBusy() {
  if (state.abort) toast("Answers are being written: stop them first (Esc).");
  return state.abort !== null;
}

/** Scores what is on the screen, the latest first. */
async function scoreAll() {
  const chat = state.chat;
  for (const turn of [...chat.turns].reverse()) {
    for (const column of COLUMNS) {
      if (!state.tokens || state.abort || state.chat !== chat) return;
      if (turn[column].scores || !canScore(turn[column])) continue;
      try {
        await score(chat, turn, column);
      } catch (error) {
        return toast("Tokens: " + explain(error));
      }
      keep(chat);
      colours();
      state.views.get(turn)?.[column].show();
    }
  }
}

// ---- Turns ----

/** Sends a message, or lets it wait for the answers that are being written. */
function ask(question) {
  const text = question.trim();
  if (!text) return;
  if (state.abort) {
    state.queue.push(text);
    return showQueue();
  }
  if (!state.chat.turns.length) $("log").replaceChildren();
  const turn = newTurn(text, setting("system").trim(), steering());
  state.chat.turns.push(turn);
  showTurn(turn);
  toEnd();
  run(turn, COLUMNS);
}

const actions = {
  look: () => ({ tokens: state.tokens, colour: state.colour, rendered: setting("render") === "markdown" }),
  retry(turn, columns) {
    if (!turn || isBusy()) return false;
    const system = setting("system").trim();
    const others = COLUMNS.filter((c) => !columns.includes(c));
    // The other column was written under the old system message.
    if (system !== turn.system) for (const c of others) Object.assign(turn[c], { stale: Boolean(turn[c].text), scores: null });
    turn.system = system;
    if (columns.includes("steered")) {
      turn.spec = steering();
      turn.plain.scores = null; // they were of the old steering
    }
    run(turn, columns);
    return true;
  },
  edit(turn, question) {
    if (!question || isBusy()) return false;
    turn.question = question;
    return actions.retry(turn, COLUMNS);
  },
  resume(turn, column) {
    if (!isBusy()) run(turn, [column], { goOn: true });
  },
  remove(turn) {
    if (isBusy()) return;
    const { chat } = state;
    const at = chat.turns.indexOf(turn);
    const before = structuredClone(chat.turns.slice(at + 1));
    chat.turns.splice(at, 1);
    outdate(chat, at, COLUMNS);
    keep(chat);
    showChat();
    toast("Deleted", ["Undo", () => {
      if (isBusy()) return;
      chat.turns.splice(at, Infinity, turn, ...before);
      keep(chat);
      if (state.chat === chat) showChat();
    }]);
  },
};

// ---- The queue ----

function nextInQueue() {
  const text = state.queue.shift();
  showQueue();
  return text;
}

function takeBack() {
  if (!state.queue.length) return;
  $("input").value = [...state.queue, $("input").value].filter(Boolean).join("\n\n");
  state.queue = [];
  showQueue();
  grow();
}

function showQueue() {
  tab.set("queue", state.queue);
  $("queue").hidden = !state.queue.length;
  $("queue").replaceChildren(...state.queue.map((text, i) => el("li", {}, el("span", {}, text),
    button("✕", "Take this message back", () => {
      $("input").value = [text, $("input").value].filter(Boolean).join("\n\n");
      state.queue.splice(i, 1);
      showQueue();
      grow();
      $("input").focus();
    }))));
}

// ---- The screen ----

function showTurn(turn) {
  const view = turnView(turn, actions);
  state.views.set(turn, view);
  $("log").append(view.node);
}

function show() { for (const view of state.views.values()) view.show(); }

function showChat() {
  state.views.clear();
  $("log").replaceChildren();
  if (!state.chat.turns.length) {
    const tries = ["How do I make a cup of tea?", "Describe an old wooden bridge.", "What happens if you swallow gum?"]
      .map((q) => button(q, "Ask this", () => ask(q)));
    $("log").append(el("div", { className: "welcome" }, el("h2", {}, "One question, two answers"),
      "The same model without steering, and with the vectors on the dials. Turn a dial, ask, and compare.", el("div", { className: "tries" }, ...tries)));
  }
  state.chat.turns.forEach(showTurn);
  colours();
  show();
  toEnd();
  list();
  measure();
}

const measure = throttle(async () => {
  const { chat } = state;
  const draft = $("input").value.trim();
  const turn = newTurn(draft, setting("system").trim(), steering());
  const count = async (column) => {
    const all = messages(chat, turn, column);
    if (!draft) all.pop();
    return all.length ? (await post("tokenize", { messages: all })).count : 0;
  };
  const counts = await Promise.all(COLUMNS.map(count)).catch(() => null);
  if (chat !== state.chat || draft !== $("input").value.trim()) return;
  showGauge(counts && Math.max(...counts), state.meta.context, state.meta.max_prompt_tokens);
}, 250);

function grow() {
  const input = $("input");
  input.style.height = "auto";
  input.style.height = input.scrollHeight + "px";
  tab.set("draft", input.value);
  measure();
}

// ---- Chats ----

function openChat(chat) {
  stop();
  state.chat = chat;
  tab.set("open", chat.id);
  showChat();
  if (state.tokens) scoreAll();
}

function startChat() {
  openChat(newChat());
  $("input").focus();
}

let warned = false;
/** Keeps a chat in the browser. */
function keep(chat) {
  if (!chat.turns.length && !state.chats.includes(chat)) return;
  chat.changed = Date.now();
  if (state.chats[0] !== chat) state.chats = [chat, ...state.chats.filter((c) => c !== chat)];
  putChat(chat).catch((error) => {
    if (!warned) toast(`This browser cannot keep the chat (${error.message}): export what you want to have later.`);
    warned = true;
  });
  list();
}

const list = () => listChats(state.chats, state.chat, library);

const library = {
  open: openChat,
  rename(chat, name) {
    Object.assign(chat, { title: name, named: true });
    keep(chat);
  },
  save(chat) { download(`bidpo-${fileName(titleOf(chat))}.json`, chatsToFile([chat])); },
  remove(chat) {
    if (chat === state.chat) stop();
    state.chats = state.chats.filter((c) => c !== chat);
    removeChat(chat.id).catch(() => {}); // where nothing is kept, nothing is to be removed
    if (chat === state.chat) startChat(); else list();
    toast("Chat deleted", ["Undo", () => { keep(chat); openChat(chat); }]);
  },
};

async function importFiles(files) {
  let read = 0;
  for (const file of files) {
    try {
      for (const chat of chatsFromFile(await file.text())) {
        const same = state.chats.find((c) => c.id === chat.id);
        if (same && JSON.stringify(same.turns) === JSON.stringify(chat.turns)) continue;
        if (same) chat.id = newId();
        state.chats.push(chat);
        await putChat(chat);
        read++;
      }
    } catch (error) {
      list();
      return toast(`${file.name} cannot be read: ${error.message}`);
    }
  }
  state.chats.sort((a, b) => b.changed - a.changed);
  list();
  toast(read ? `${read} chat${read === 1 ? "" : "s"} imported` : "These chats are here already");
}

/** The chats that this browser has, those of older versions of the page among them. */
async function loadChats() {
  let unread = 0;
  const read = (values) => values.flatMap((value) => {
    try { return [readChat(value)]; } catch { unread++; return []; }
  });
  const older = kept.get("chats", []);
  const unfinished = tab.get("unfinished", null);
  tab.remove("unfinished");
  try {
    for (const chat of read(older)) await putChat(chat);
    kept.remove("chats");
    // Later than the database's.
    for (const chat of read(unfinished ? [unfinished] : [])) await putChat(chat);
    state.chats = read(await allChats());
  } catch (error) {
    state.chats = read([...older, ...(unfinished ? [unfinished] : [])]);
    toast(`This browser keeps no chats (${error.message}): export what you want to have later.`);
    warned = true;
  }
  state.chats.sort((a, b) => b.changed - a.changed);
  if (unread) toast(`${unread} kept chat${unread === 1 ? "" : "s"} cannot be read and ${unread === 1 ? "is" : "are"} left out.`);
}

// ---- Keys and buttons ----

function theme(next) {
  const order = ["auto", "light", "dark"];
  let now = kept.get("theme", "auto");
  if (next) now = order[(order.indexOf(now) + 1) % order.length];
  kept.set("theme", now);
  if (now === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = now;
  $("theme-sign").textContent = { auto: "◐", light: "☀", dark: "☾" }[now];
  $("theme").title = { auto: "Colours: as the system has them", light: "Colours: light", dark: "Colours: dark" }[now];
}

/** Offers what the chat's tokens can be coloured by. */
function colours() { state.colour = offerColours(gateNames(state.chat), kept.get("colour", "")); }

function tokenView() {
  state.tokens = !state.tokens;
  $("tokens").setAttribute("aria-pressed", String(state.tokens));
  $("panel").hidden = !state.tokens;
  colours();
  emptyPanel();
  show();
  if (state.tokens) scoreAll();
}

/** On a narrow screen the settings are closed, so that the conversation has it. */
function closeOnPhone() {
  if (matchMedia("(max-width: 820px)").matches) document.querySelectorAll(".box").forEach((box) => { box.open = false; });
}

function send() {
  const text = $("input").value;
  if (!text.trim()) return;
  closeOnPhone();
  $("input").value = "";
  grow();
  ask(text);
}

function listen() {
  $("form").addEventListener("submit", (e) => { e.preventDefault(); send(); });
  $("input").addEventListener("input", grow);
  $("input").addEventListener("keydown", (e) => {
    if (e.key === "Enter" && !e.shiftKey && !e.isComposing) send();
    else if (e.key === "ArrowUp" && !e.target.value && state.chat.turns.length) state.views.get(state.chat.turns.at(-1)).edit();
    else return;
    e.preventDefault();
  });
  $("stop").addEventListener("click", stop);
  $("new").addEventListener("click", startChat);
  $("theme").addEventListener("click", () => theme(true));
  $("tokens").addEventListener("click", tokenView);
  $("help").addEventListener("click", () => $("keys").showModal());
  $("export").addEventListener("click", () => {
    if (!state.chats.length) return toast("There are no chats to export.");
    download(`bidpo-chats-${new Date().toISOString().slice(0, 10)}.json`, chatsToFile(state.chats));
  });
  $("import").addEventListener("click", () => $("import-files").click());
  $("import-files").addEventListener("change", async (e) => {
    await importFiles([...e.target.files]);
    e.target.value = "";
  });
  for (const id of ["system", "temperature", "penalty", "max", "seed", "scope", "render"]) {
    $(id).value = kept.get("option." + id, $(id).value);
    $(id).addEventListener("change", () => kept.set("option." + id, $(id).value));
  }
  $("scope").addEventListener("change", sumUp);
  $("render").addEventListener("change", show);
  $("colour").addEventListener("change", () => { kept.set("colour", $("colour").value); colours(); emptyPanel(); show(); });
  $("system").addEventListener("input", measure);
  document.addEventListener("keydown", (e) => {
    const typing = e.target.matches("input:not([type=range]), textarea, select");
    if (e.key === "Escape" && state.abort && !document.querySelector("dialog[open]")) stop();
    else if (e.altKey && /^Digit[1-9]$/.test(e.code)) $("dial-" + (Number(e.code.slice(5)) - 1))?.focus();
    else if (e.altKey && e.code === "KeyR") actions.retry(state.chat.turns.at(-1), COLUMNS);
    else if (e.altKey && e.code === "KeyT") tokenView();
    else if (e.altKey && e.code === "KeyN") startChat();
    else if (!typing && e.key === "/") $("input").focus();
    else if (!typing && e.key === "?") $("keys").showModal();
    else return;
    e.preventDefault();
  });
  // The page may go at any time: what is written so far is kept. (A database may not finish while a page goes.)
  addEventListener("pagehide", () => { if (state.abort) tab.set("unfinished", state.chat); });
  document.addEventListener("visibilitychange", () => { if (document.hidden) state.saveSoon?.now(); });
}

async function start() {
  theme(false);
  closeOnPhone();
  listen();
  // What this tab showed before it was loaded again. Messages that waited are back in the field.
  $("input").value = [...tab.get("queue", []), tab.get("draft", "")].filter(Boolean).join("\n\n");
  showQueue();
  const open = tab.get("open", null);
  await loadChats();
  openChat(state.chats.find((c) => c.id === open) ?? state.chat);
  grow();
  $("input").focus();
  try {
    const [models, vectors] = await Promise.all([get("v1/models"), get("v1/vectors")]);
    const model = models.data[0];
    state.meta = model.meta;
    $("model").textContent = model.id;
    $("model").title = `${model.meta.description}, ${model.meta.context} tokens of context`;
    document.title = `${model.id} · bidpo`;
    $("max").max = model.meta.max_output_tokens;
    buildDials(vectors.data);
    measure();
  } catch (error) {
    toast(explain(error));
  }
}

start();
