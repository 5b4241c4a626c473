// Answers from the server: written as a stream, and scored under other steering.

import { assistant, messages, specOf } from "./chat.js";
import { call, events, explain, post, ServerError } from "./server.js";

const LIKELY = 3; // of the most likely tokens at each place, how many are shown
const PATIENCE = 120; // seconds that a request waits for a place in the server's queue

/** Writes an answer, or the rest of one that has a text already. `result` changes as it comes, and `changed` is called after
 * each change. Ends with `result.finish` or `result.error`, and does not reject. */
export async function write(result, request, signal, changed) {
  const body = {
    ...request,
    stream: true,
    logprobs: true,
    top_logprobs: LIKELY,
  };
  if (result.text || result.reasoning) {
    body.messages = [...request.messages, assistant(result)];
    body.continue_final_message = true;
  }
  Object.assign(result, { finish: null, error: null, scores: null, stale: false });
  changed();
  const decoder = new TextDecoder();
  const before = result.seconds;
  let first = null;
  try {
    const response = await place(body, signal, (waiting) => { result.waiting = waiting; changed(); });
    let finish = null;
    for await (const part of events(response)) {
      if (part.error) throw new ServerError(500, part.error.code ?? null, part.error.message);
      const choice = part.choices[0];
      if (!choice) continue;
      finish = choice.finish_reason ?? finish;
      for (const t of choice.logprobs?.content ?? []) {
        first ??= performance.now();
        // A token may end inside a character: its text is then empty, and the next one brings the character.
        const text = decoder.decode(Uint8Array.from(t.bytes), { stream: true });
        const token = { id: t.id, text, logprob: t.logprob, top: t.top_logprobs.map((o) => [o.token, o.logprob]) };
        if (t.gates) token.gates = gates(t);
        result.tokens.push(token);
      }
      result.text += choice.delta?.content ?? "";
      result.reasoning += choice.delta?.reasoning_content ?? "";
      if (first !== null) result.seconds = before + (performance.now() - first) / 1000;
      changed();
    }
    result.finish = finish ?? "stop";
  } catch (error) {
    if (error.name === "AbortError") result.finish = "stopped";
    else result.error = explain(error);
  }
  delete result.waiting;
  changed();
}

/** The response to a request. Where the queue is full, it is asked again each second. */
async function place(body, signal, waiting) {
  for (let tries = 0; ; tries++) {
    try {
      const response = await call("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
      if (tries) waiting(false);
      return response;
    } catch (error) {
      if (!(error instanceof ServerError) || error.code !== "queue_full" || tries >= PATIENCE) throw error;
    }
    if (!tries) waiting(true);
    await new Promise((done, fail) => {
      const timer = setTimeout(done, 1000);
      signal.addEventListener("abort", () => { clearTimeout(timer); fail(new DOMException("stopped", "AbortError")); }, { once: true });
    });
  }
}

/** Openings of the gates at a token, as `[vector, opening]`; null where the gate changes nothing. */
const gates = (token) => (token.gates ?? []).map((g) => [g.vector, g.open]);

/** True where a score can be compared with the answer's own log-probabilities. */
export const canScore = (answer) => Boolean(answer.tokens.length && !answer.stale && (answer.finish || answer.error));

/** How likely the answer's tokens are in the other column: without steering for a steered answer, with it for the other. */
export async function score(chat, turn, column) {
  const answer = turn[column];
  const other = column === "plain" ? "steered" : "plain";
  const body = { messages: messages(chat, turn, column), tokens: answer.tokens.map((t) => t.id), ...specOf(turn, other) };
  const { tokens } = await post("v1/score", body);
  answer.scores = tokens.map((t) => t.logprob);
  // How far the gates would have been open.
  if (other === "steered") answer.gates = tokens.map(gates);
}
