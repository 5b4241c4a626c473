// Chats as values: turns, answers, the messages of a request, and reading them from files.

export const COLUMNS = ["plain", "steered"];

/** Answer of one column. `reasoning` is what the model thought before it. `finish` is null while it is written; `tokens` are `{id, text, logprob, top: [[text, logprob]]}`, with
 * `gates: [[vector, opening]]` where gates steered it. Of an unsteered answer `gates` has the openings that came with its scores. */
export const emptyAnswer = () => ({ text: "", reasoning: "", tokens: [], finish: null, seconds: 0, error: null, scores: null, gates: null, stale: false });

export const newChat = () => ({ id: newId(), title: "", named: false, changed: Date.now(), turns: [] });

export function newTurn(question, system, spec) {
  return { question, system, spec, plain: emptyAnswer(), steered: emptyAnswer() };
}

let last = 0;
/** A number that this browser has not given yet. */
export function newId() {
  last = Math.max(last + 1, Date.now());
  return String(last);
}

export const titleOf = (chat) => chat.title || chat.turns[0]?.question.slice(0, 60) || "New chat";

/** An answer as a message. Its thought is told apart: the template decides whether the model sees it again. */
export const assistant = ({ text, reasoning }) => ({ role: "assistant", content: text, ...(reasoning ? { reasoning_content: reasoning } : {}) });

/** The messages up to a turn's question in one column: each column has a conversation of its own. Turns that got no answer (one
 * whose message was too long, say) are no part of it. */
export function messages(chat, turn, column) {
  const out = turn.system ? [{ role: "system", content: turn.system }] : [];
  for (const t of chat.turns) {
    if (t === turn) break;
    if (t[column].text || t[column].reasoning) out.push({ role: "user", content: t.question }, assistant(t[column]));
  }
  out.push({ role: "user", content: turn.question });
  return out;
}

/** The steering of one column of a turn. */
export const specOf = (turn, column) => (column === "plain" ? { steering: [] } : { steering: turn.spec.steering, scope: turn.spec.scope });

/** Marks the answers behind a turn as written before it was changed: their log-probabilities belong to the old text. */
export function outdate(chat, from, columns) {
  for (const turn of chat.turns.slice(from)) {
    for (const column of columns) Object.assign(turn[column], { stale: Boolean(turn[column].text), scores: null });
  }
}

/** The openings of the gates at token `i` of an answer. */
export const gatesAt = (answer, i) => answer.tokens[i].gates ?? answer.gates?.[i] ?? [];

/** The vectors with gates whose openings a chat's answers hold. */
export function gateNames(chat) {
  const answers = chat.turns.flatMap((t) => COLUMNS.map((c) => t[c])).filter((a) => a.tokens.length);
  return [...new Set(answers.flatMap((a) => gatesAt(a, 0).map(([name]) => name)))].sort();
}

/** True where a chat's title or text holds all words. */
export function matches(chat, search) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return true;
  const text = [titleOf(chat), ...chat.turns.flatMap((t) => [t.question, ...COLUMNS.flatMap((c) => [t[c].text, t[c].reasoning])])].join("\n").toLowerCase();
  return words.every((w) => text.includes(w));
}

// ---- Files ----

const FORMAT = "bidpo-chats";

/** The text of a file of chats. */
export const chatsToFile = (chats) => JSON.stringify({ format: FORMAT, version: 1, chats }, null, 1) + "\n";

/** The chats of such a file. Throws an Error that names what is wrong. */
export function chatsFromFile(text) {
  let file;
  try { file = JSON.parse(text); } catch (error) { throw new Error("it is not JSON: " + error.message); }
  if (file?.format !== FORMAT) throw new Error(`it is no file of chats from this page (its "format" must be "${FORMAT}")`);
  if (file.version !== 1) throw new Error(`it has version ${JSON.stringify(file.version)}, this page reads 1`);
  return list(file.chats, "chats", readChat);
}

/** A chat with the fields that it must have, and no others. Answers that were being written are interrupted ones. */
export function readChat(value, at = "chat") {
  object(value, at);
  return {
    id: text(value.id, at + ".id"),
    title: text(value.title ?? "", at + ".title"),
    named: value.named === true,
    changed: Number.isFinite(value.changed) ? value.changed : Number(value.id) || 0,
    turns: list(value.turns, at + ".turns", readTurn),
  };
}

function readTurn(value, at) {
  object(value, at);
  const spec = object(value.spec, at + ".spec");
  return {
    question: text(value.question, at + ".question"),
    system: text(value.system ?? "", at + ".system"),
    spec: {
      steering: list(spec.steering, at + ".spec.steering", (s, where) => ({ vector: text(object(s, where).vector, where + ".vector"), scale: number(s.scale, where + ".scale") })),
      scope: ["all", "answer", "prompt"].includes(spec.scope) ? spec.scope : "all",
      words: text(spec.words ?? "", at + ".spec.words"),
    },
    plain: readAnswer(value.plain, at + ".plain"),
    steered: readAnswer(value.steered, at + ".steered"),
  };
}

function readAnswer(value, at) {
  object(value, at);
  const error = value.error === null || value.error === undefined ? null : text(value.error, at + ".error");
  const tokens = list(value.tokens ?? [], at + ".tokens", (t, where) => ({
    id: number(object(t, where).id, where + ".id"),
    text: text(t.text, where + ".text"),
    logprob: number(t.logprob, where + ".logprob"),
    top: list(t.top ?? [], where + ".top", (o, w) => [text(o?.[0], w), number(o?.[1], w)]),
    ...(t.gates ? { gates: readGates(t.gates, where + ".gates") } : {}),
  }));
  const scores = value.scores ? list(value.scores, at + ".scores", number) : null;
  const gates = value.gates ? list(value.gates, at + ".gates", readGates) : null;
  return {
    text: text(value.text, at + ".text"),
    reasoning: text(value.reasoning ?? "", at + ".reasoning"),
    tokens,
    finish: value.finish ? text(value.finish, at + ".finish") : error ? null : "interrupted",
    seconds: Number.isFinite(value.seconds) ? value.seconds : 0,
    error,
    scores: scores?.length === tokens.length ? scores : null,
    gates: gates?.length === tokens.length ? gates : null,
    stale: value.stale === true,
  };
}

const readGates = (value, at) => list(value, at, (g, where) => [text(g?.[0], where), g?.[1] === null ? null : number(g?.[1], where)]);

function object(value, at) {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new Error(`${at} must be an object`);
  return value;
}

function text(value, at) {
  if (typeof value !== "string") throw new Error(`${at} must be a text`);
  return value;
}

function number(value, at) {
  if (!Number.isFinite(value)) throw new Error(`${at} must be a number`);
  return value;
}

function list(value, at, read) {
  if (!Array.isArray(value)) throw new Error(`${at} must be a list`);
  return value.map((v, i) => read(v, `${at}[${i}]`));
}
