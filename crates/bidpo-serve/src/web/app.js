// The page of `bidpo serve`: one question, two answers side by side, without and with steering.
// Text from the model and from people is only ever set as text, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const LIKELY = 3; // of the most likely tokens at each place, how many are shown
const KEPT_CHATS = 20;
const COLUMNS = ["plain", "steered"];

/** Makes an element; `props` are properties, `children` elements or texts. */
function el(tag, props = {}, ...children) {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children);
  return node;
}

const store = {
  get(key, otherwise) {
    try { return JSON.parse(localStorage.getItem("bidpo." + key)) ?? otherwise; } catch { return otherwise; }
  },
  set(key, value) {
    try { localStorage.setItem("bidpo." + key, JSON.stringify(value)); } catch { /* full, or not allowed: it is lost with the page */ }
  },
};

const state = {
  vectors: [],
  dials: new Map(), // name -> scale
  chats: store.get("chats", []),
  chat: null,
  turns: [], // what is on the screen: {turn, node, plain: view, steered: view}
  abort: null,
  tokenView: false,
};

// ---- The server ----

async function call(path, options = {}) {
  const key = sessionStorage.getItem("bidpo.key");
  const headers = { ...(options.body ? { "Content-Type": "application/json" } : {}), ...(key ? { Authorization: "Bearer " + key } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) {
    await askForKey(key !== null);
    return call(path, options);
  }
  if (!response.ok) {
    const body = await response.json().catch(() => null);
    throw new Error(body?.error?.message ?? `the server answered ${response.status}`);
  }
  return response;
}

let asking = null;
/** One question for all requests that lack the key. */
function askForKey(wasWrong) {
  asking ??= new Promise((done) => {
    $("key-text").textContent = wasWrong ? "The server does not know that key." : "This server asks for a key.";
    $("key-box").showModal();
    $("key-box").addEventListener("close", () => {
      sessionStorage.setItem("bidpo.key", $("key").value);
      asking = null;
      done();
    }, { once: true });
  });
  return asking;
}

/** The data of each server-sent event. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const data = text.slice(0, end).split("\n").filter((l) => l.startsWith("data:")).map((l) => l.slice(5).trimStart()).join("\n");
      text = text.slice(end + 2);
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

// ---- Dials ----

/** A round number near x: 1, 2 or 5 times a power of ten. */
function round(x) {
  const power = 10 ** Math.floor(Math.log10(x));
  return [1, 2, 5, 10].map((m) => m * power).find((n) => n >= x * 0.999) ?? x;
}

const plus = (x, digits) => (x > 0 ? "+" : x < 0 ? "−" : "") + Math.abs(x).toFixed(digits);

function buildDials() {
  const saved = store.get("dials", {});
  $("dials").replaceChildren();
  if (!state.vectors.length) {
    $("dials").append(el("p", { className: "note" }, "No vectors: start the server with --vectors DIR. Both columns answer alike."));
  }
  state.vectors.forEach((vector, i) => {
    const safe = vector.safe_scale?.[1] ?? 2;
    const step = round(safe / 50);
    const end = Number((Math.floor(safe / step + 1e-9) * step).toFixed(10));
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const first = Number(Math.min(1, end).toFixed(digits));
    const id = "dial-" + i;
    const range = el("input", { id, type: "range", min: -end, max: end, step });
    range.setAttribute("aria-describedby", id + "-percent");
    const number = el("input", { type: "number", step });
    number.setAttribute("aria-label", vector.id + ", scale");
    const percent = el("span", { className: "percent", id: id + "-percent" });
    const beyond = el("div", { className: "beyond", hidden: true }, "beyond the safe range: text may fall apart");
    const off = el("button", { className: "off", type: "button", title: "Take it off (scale 0)" }, "off");
    const layers = vector.layers.length > 1 ? `layers ${vector.layers[0]}–${vector.layers.at(-1)}` : `layer ${vector.layers[0]}`;
    const box = el("div", { className: "dial" },
      el("div", { className: "head" }, el("label", { className: "name", htmlFor: id }, vector.id), el("span", { className: "where" }, layers), off),
      range,
      el("div", { className: "ends" }, el("span", {}, plus(-end, digits)), el("span", {}, "0"), el("span", {}, plus(end, digits))),
      el("div", { className: "value" }, number, percent), beyond);
    for (const warning of vector.warnings ?? []) box.append(el("div", { className: "beyond" }, warning));

    const show = (scale, from) => {
      state.dials.set(vector.id, scale);
      if (from !== range) range.value = scale;
      if (from !== number) number.value = Number(scale.toFixed(6));
      percent.textContent = vector.percent_at_scale_1 === null ? "" : `${plus(scale * vector.percent_at_scale_1, 1)} % of residual`;
      // The bar is filled from the middle to the knob.
      const at = 50 + 50 * Math.max(-1, Math.min(1, scale / end));
      range.style.setProperty("--low", Math.min(50, at) + "%");
      range.style.setProperty("--high", Math.max(50, at) + "%");
      range.setAttribute("aria-valuetext", `${plus(scale, digits)}, ${percent.textContent}`);
      beyond.hidden = Math.abs(scale) <= safe * 1.0001;
      box.classList.toggle("on", scale !== 0);
      store.set("dials", Object.fromEntries(state.dials));
      sumUp();
    };
    range.addEventListener("input", () => show(Number(range.value), range));
    range.addEventListener("keydown", (e) => { if (e.key === "0" && !e.altKey) { show(0); e.preventDefault(); } });
    range.addEventListener("dblclick", () => show(0));
    number.addEventListener("input", () => { if (number.value !== "" && Number.isFinite(number.valueAsNumber)) show(number.valueAsNumber, number); });
    number.addEventListener("change", () => show(state.dials.get(vector.id)));
    off.addEventListener("click", () => show(0));
    $("dials").append(box);
    show(saved[vector.id] ?? (i === 0 ? first : 0));
  });
  sumUp();
}

/** What the dials say now: for a request, and in words. */
function steering() {
  const on = [...state.dials].filter(([, scale]) => scale !== 0);
  const scope = $("scope").value;
  const words = on.map(([name, scale]) => {
    const percent = state.vectors.find((v) => v.id === name)?.percent_at_scale_1;
    return `${name} ${plus(scale, 2)}` + (percent ? ` (${plus(scale * percent, 1)} %)` : "");
  });
  return {
    steering: on.map(([vector, scale]) => ({ vector, scale })),
    scope,
    words: (words.join(", ") || "all dials at 0") + (on.length && scope !== "all" ? `, ${$("scope").selectedOptions[0].textContent}` : ""),
  };
}

function sumUp() { $("dials-sum").textContent = steering().words; }

// ---- Answers ----

/** The messages that lead to a turn's answer in one column: each column has a conversation of its own. */
function messages(turn, column) {
  const out = turn.system ? [{ role: "system", content: turn.system }] : [];
  for (const t of state.chat.turns) {
    out.push({ role: "user", content: t.question });
    if (t === turn) break;
    out.push({ role: "assistant", content: t[column].text });
  }
  return out;
}

/** The steering of one column of a turn. */
const specOf = (turn, column) => (column === "plain" ? { steering: [] } : { steering: turn.spec.steering, scope: turn.spec.scope });

const emptyAnswer = () => ({ text: "", tokens: [], finish: null, seconds: 0, error: null, scores: null });

/** Asks the server for one column's answer, and shows it as it comes. */
async function answer(turn, column, view, seed, signal) {
  const result = (turn[column] = emptyAnswer());
  view.show();
  const decoder = new TextDecoder();
  const started = performance.now();
  const body = {
    messages: messages(turn, column),
    ...specOf(turn, column),
    stream: true,
    logprobs: true,
    top_logprobs: LIKELY,
    reasoning_format: "none",
    temperature: Number($("temperature").value) || 0,
    repeat_penalty: Number($("penalty").value) || 1,
    max_completion_tokens: Math.max(1, Math.floor(Number($("max").value)) || 256),
    seed,
  };
  try {
    const response = await call("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
    let first = null;
    for await (const part of events(response)) {
      if (part.error) throw new Error(part.error.message);
      const choice = part.choices[0];
      if (!choice) continue;
      if (choice.finish_reason) result.finish = choice.finish_reason;
      for (const t of choice.logprobs?.content ?? []) {
        first ??= performance.now();
        // A token may end inside a character: its text is then empty, and the next one brings the character.
        const text = decoder.decode(Uint8Array.from(t.bytes), { stream: true });
        result.tokens.push({ id: t.id, text, logprob: t.logprob, top: t.top_logprobs.map((o) => [o.token, o.logprob]) });
      }
      if (choice.delta?.content) {
        result.text += choice.delta.content;
        view.append(choice.delta.content);
      }
      result.seconds = (performance.now() - (first ?? started)) / 1000;
    }
  } catch (error) {
    if (error.name === "AbortError") result.finish = "stopped";
    else result.error = error.message;
  }
  view.show(true);
}

/** How likely the answer's tokens are in the other column: without steering for a steered answer, with it for the other. */
async function score(turn, column, view) {
  const result = turn[column];
  if (result.scores || result.scoring || !result.tokens.length) return;
  result.scoring = true;
  try {
    const other = column === "plain" ? "steered" : "plain";
    const body = { messages: messages(turn, column), tokens: result.tokens.map((t) => t.id), ...specOf(turn, other) };
    const scored = await (await call("v1/score", { method: "POST", body: JSON.stringify(body) })).json();
    result.scores = scored.tokens.map((t) => t.logprob);
    save();
  } catch (error) {
    toast("Tokens: " + error.message);
  }
  delete result.scoring;
  view.show(true);
}

async function run(turn, columns) {
  stop();
  const abort = (state.abort = new AbortController());
  busy(true);
  const shown = state.turns.find((t) => t.turn === turn);
  const given = $("seed").value;
  const seed = given === "" ? Math.floor(Math.random() * 2 ** 31) : Number(given);
  await Promise.all(columns.map((column) => answer(turn, column, shown[column], seed, abort.signal)));
  if (state.abort === abort) {
    state.abort = null;
    busy(false);
  }
  save();
  if (state.tokenView) scoreAll();
}

/** Scores what is on the screen, the latest first. */
async function scoreAll() {
  for (const shown of [...state.turns].reverse()) {
    for (const column of COLUMNS) {
      if (!state.tokenView || state.abort) return;
      await score(shown.turn, column, shown[column]);
    }
  }
}

function stop() { state.abort?.abort(); }

function busy(on) {
  $("send").hidden = on;
  $("stop").hidden = !on;
}

// ---- The screen ----

/** One answer's place on the screen. */
function answerView(turn, column) {
  const steered = column === "steered";
  const how = el("span", { className: "how" });
  const text = el("div", { className: "text" });
  const wrong = el("div", { className: "wrong", hidden: true });
  const extra = el("div");
  const figures = el("span", { className: "figures" });
  const name = steered ? "steered answer" : "unsteered answer";
  const copy = el("button", { type: "button", title: `Copy the ${name}` }, "Copy");
  const again = el("button", { type: "button", className: "again", title: `Write the ${name} again, with the dials as they stand` }, "Retry");
  copy.addEventListener("click", () => copyText(turn[column].text));
  again.addEventListener("click", () => retry(turn, [column]));
  const node = el("article", { className: "answer " + column },
    el("div", { className: "who" }, el("b", {}, steered ? "Steered" : "Unsteered"), how), text, wrong, extra,
    el("div", { className: "foot" }, copy, again, figures));
  node.setAttribute("aria-label", name);

  const view = {
    node,
    append(piece) { keepDown(() => text.append(piece)); },
    show(done = false) {
      const a = turn[column];
      keepDown(() => {
        how.textContent = steered ? turn.spec.words : "";
        node.setAttribute("aria-busy", String(!done && !a.finish && !a.error));
        wrong.hidden = !a.error;
        wrong.textContent = a.error ?? "";
        extra.replaceChildren();
        if (state.tokenView && a.scores) showTokens(text, extra, a, column);
        else {
          text.removeAttribute("role");
          text.removeAttribute("tabindex");
          text.removeAttribute("aria-label");
          text.replaceChildren(a.text);
        }
        const n = a.tokens.length;
        const speed = n > 1 && a.seconds > 0 ? ` · ${((n - 1) / a.seconds).toFixed(0)}/s` : "";
        const why = a.finish === "length" ? " · cut" : a.finish === "stopped" ? " · stopped" : "";
        figures.textContent = n ? `${n} token${n === 1 ? "" : "s"}${speed}${why}` : "";
        again.hidden = turn !== state.chat.turns.at(-1);
      });
    },
  };
  return view;
}

const share = (logprob) => {
  const p = Math.exp(logprob) * 100;
  return p >= 99.95 ? "100 %" : p >= 10 ? p.toFixed(1) + " %" : p >= 0.095 ? p.toFixed(2) + " %" : p.toPrecision(1) + " %";
};

/** A token's text with white space made visible. */
const visible = (text) => text.replaceAll("\n", "↵").replaceAll(" ", "·") || "(part of a character)";

/** The answer's tokens, coloured by how far steering moved each one's probability. */
function showTokens(text, extra, a, column) {
  const steeredIs = (i) => (column === "steered" ? [a.scores[i], a.tokens[i].logprob] : [a.tokens[i].logprob, a.scores[i]]);
  const spans = a.tokens.map((t, i) => {
    const [without, withIt] = steeredIs(i);
    const moved = withIt - without;
    const span = el("span", { className: "tok " + (moved > 0 ? "up" : "down") }, t.text);
    // Full colour where the odds moved by a factor of about 20.
    span.style.setProperty("--far", Math.min(1, Math.abs(moved) / 3).toFixed(3));
    span.title = `${visible(t.text)}  ${share(without)} → ${share(withIt)}`;
    span.setAttribute("role", "option");
    return span;
  });
  const detail = el("div", { className: "detail" }, "Choose a token: point at it, tap it, or go through them with ← and →.");
  detail.setAttribute("aria-live", "polite");
  let at = -1;
  const choose = (i) => {
    spans[at]?.removeAttribute("aria-selected");
    at = Math.max(0, Math.min(spans.length - 1, i));
    spans[at].setAttribute("aria-selected", "true");
    const [without, withIt] = steeredIs(at);
    const bar = (logprob, cls) => {
      const fill = el("span");
      fill.style.width = Math.max(0.5, Math.exp(logprob) * 100) + "%";
      return el("div", { className: "track " + cls }, fill);
    };
    detail.replaceChildren(
      el("span", { className: "piece" }, visible(a.tokens[at].text)),
      ` moved by ${plus(withIt - without, 2)} nats`,
      el("div", { className: "bars" },
        el("span", {}, "unsteered"), bar(without, ""), el("span", {}, share(without)),
        el("span", {}, "steered"), bar(withIt, "s"), el("span", {}, share(withIt))),
      el("div", { className: "alts" }, "most likely here: ", a.tokens[at].top.map(([t, l]) => `${visible(t)} ${share(l)}`).join(", ")));
  };
  text.setAttribute("role", "listbox");
  text.setAttribute("aria-label", "Tokens");
  text.tabIndex = 0;
  text.onkeydown = (e) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -1e9, End: 1e9 }[e.key];
    if (!step || !state.tokenView) return;
    choose(at < 0 ? 0 : at + step);
    e.preventDefault();
  };
  spans.forEach((span, i) => {
    span.addEventListener("click", () => choose(i));
    span.addEventListener("pointerenter", (e) => { if (e.pointerType === "mouse") choose(i); });
  });
  text.replaceChildren(...spans);
  extra.append(el("div", { className: "legend" }, "less likely steered", el("i"), "more likely steered"), detail);
}

/** Changes the log, and stays at its end if it was there. */
function keepDown(change) {
  const log = $("log");
  const down = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  change();
  if (down) log.scrollTo({ top: log.scrollHeight, behavior: "instant" });
}

function showTurn(turn) {
  const views = Object.fromEntries(COLUMNS.map((c) => [c, answerView(turn, c)]));
  const node = el("section", { className: "turn" },
    el("div", { className: "ask" }, turn.question),
    el("div", { className: "pair" }, views.plain.node, views.steered.node));
  state.turns.push({ turn, node, ...views });
  $("log").append(node);
}

function showChat() {
  state.turns = [];
  $("log").replaceChildren();
  if (!state.chat.turns.length) {
    const tries = ["How do I make a cup of tea?", "Describe an old wooden bridge.", "What happens if you swallow gum?"].map((q) => {
      const button = el("button", { type: "button" }, q);
      button.addEventListener("click", () => ask(q));
      return button;
    });
    $("log").append(el("div", { className: "welcome" }, el("h2", {}, "One question, two answers"),
      "The same model without steering, and with the vectors on the dials. Turn a dial, ask, and compare.", el("div", { className: "tries" }, ...tries)));
  }
  state.chat.turns.forEach(showTurn);
  state.turns.forEach((t) => COLUMNS.forEach((c) => t[c].show(true)));
  $("log").scrollTo({ top: $("log").scrollHeight, behavior: "instant" });
  listChats();
}

function toast(text) {
  $("toast").textContent = text;
  $("toast").classList.add("show");
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => $("toast").classList.remove("show"), 2200);
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Pages that are neither https nor of this machine have no clipboard: the old way.
    const area = el("textarea", { value: text, className: "hidden" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast("Copied");
}

// ---- Chats ----

function newChat() {
  stop();
  state.chat = { id: String(Date.now()), title: "", turns: [] };
  showChat();
  $("input").focus();
}

function save() {
  const chat = state.chat;
  if (!chat.turns.length) return;
  state.chats = [chat, ...state.chats.filter((c) => c.id !== chat.id)].slice(0, KEPT_CHATS);
  store.set("chats", state.chats);
  listChats();
}

function listChats() {
  const items = state.chats.map((chat) => {
    const open = el("button", { type: "button", className: "open" }, chat.title || "Chat");
    if (chat.id === state.chat.id) open.setAttribute("aria-current", "true");
    open.addEventListener("click", () => { stop(); state.chat = chat; showChat(); });
    const drop = el("button", { type: "button", className: "drop", title: "Forget this chat" }, "✕");
    drop.setAttribute("aria-label", "Forget " + (chat.title || "this chat"));
    drop.addEventListener("click", () => {
      state.chats = state.chats.filter((c) => c !== chat);
      store.set("chats", state.chats);
      if (chat.id === state.chat.id) newChat(); else listChats();
    });
    return el("li", {}, open, drop);
  });
  $("chats").replaceChildren(...(items.length ? items : [el("li", { className: "note" }, "Kept in this browser, none yet.")]));
}

function ask(question) {
  const text = question.trim();
  if (!text || state.abort) return;
  if (!state.chat.turns.length) {
    $("log").replaceChildren();
    state.chat.title = text.slice(0, 60);
  }
  const turn = { question: text, system: $("system").value.trim(), spec: steering(), plain: emptyAnswer(), steered: emptyAnswer() };
  state.chat.turns.push(turn);
  showTurn(turn);
  state.turns.slice(0, -1).forEach((t) => COLUMNS.forEach((c) => (t[c].node.querySelector(".again").hidden = true)));
  $("input").value = "";
  grow();
  $("log").scrollTo({ top: $("log").scrollHeight, behavior: "instant" });
  run(turn, COLUMNS);
}

function retry(turn, columns) {
  if (!turn || state.abort) return;
  turn.system = $("system").value.trim();
  if (columns.includes("steered")) {
    turn.spec = steering();
    turn.plain.scores = null; // they were of the old steering
  }
  run(turn, columns);
}

// ---- Keys and buttons ----

function grow() {
  const input = $("input");
  input.style.height = "auto";
  input.style.height = input.scrollHeight + "px";
}

function theme(next) {
  const order = ["auto", "light", "dark"];
  let now = store.get("theme", "auto");
  if (next) now = order[(order.indexOf(now) + 1) % order.length];
  store.set("theme", now);
  if (now === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = now;
  $("theme-sign").textContent = { auto: "◐", light: "☀", dark: "☾" }[now];
  $("theme").title = { auto: "Colours: as the system has them", light: "Colours: light", dark: "Colours: dark" }[now];
}

function tokenView() {
  state.tokenView = !state.tokenView;
  $("tokens").setAttribute("aria-pressed", String(state.tokenView));
  state.turns.forEach((t) => COLUMNS.forEach((c) => t[c].show(Boolean(t.turn[c].finish || t.turn[c].error))));
  if (state.tokenView) scoreAll();
}

function listen() {
  $("form").addEventListener("submit", (e) => { e.preventDefault(); ask($("input").value); });
  $("input").addEventListener("input", grow);
  $("input").addEventListener("keydown", (e) => {
    if (e.key === "Enter" && !e.shiftKey && !e.isComposing) { e.preventDefault(); ask($("input").value); }
  });
  $("stop").addEventListener("click", stop);
  $("new").addEventListener("click", newChat);
  $("theme").addEventListener("click", () => theme(true));
  $("tokens").addEventListener("click", tokenView);
  $("help").addEventListener("click", () => $("keys").showModal());
  $("scope").addEventListener("change", sumUp);
  $("key-form").addEventListener("submit", () => {});
  for (const id of ["system", "temperature", "penalty", "max", "seed", "scope"]) {
    $(id).value = store.get("option." + id, $(id).value);
    $(id).addEventListener("change", () => store.set("option." + id, $(id).value));
  }
  document.addEventListener("keydown", (e) => {
    const typing = e.target.matches("input:not([type=range]), textarea, select");
    if (e.key === "Escape" && state.abort && !document.querySelector("dialog[open]")) stop();
    else if (e.altKey && /^Digit[1-9]$/.test(e.code)) $("dial-" + (Number(e.code.slice(5)) - 1))?.focus();
    else if (e.altKey && e.code === "KeyR") retry(state.chat.turns.at(-1), COLUMNS);
    else if (e.altKey && e.code === "KeyT") tokenView();
    else if (e.altKey && e.code === "KeyN") newChat();
    else if (!typing && e.key === "/") $("input").focus();
    else if (!typing && e.key === "?") $("keys").showModal();
    else return;
    e.preventDefault();
  });
}

async function start() {
  theme(false);
  if (matchMedia("(max-width: 820px)").matches) $("dials-box").open = false;
  listen();
  newChat();
  try {
    const [models, vectors] = await Promise.all([call("v1/models"), call("v1/vectors")]).then((all) => Promise.all(all.map((r) => r.json())));
    const model = models.data[0];
    $("model").textContent = model.id;
    $("model").title = `${model.meta.description}, ${model.meta.context} tokens of context`;
    document.title = `${model.id} · bidpo`;
    $("max").max = model.meta.max_output_tokens;
    state.vectors = vectors.data;
    buildDials();
  } catch (error) {
    toast("The server cannot be reached: " + error.message);
  }
}

start();
