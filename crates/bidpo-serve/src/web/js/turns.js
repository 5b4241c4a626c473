// Turns on the screen: a question with its buttons, and two answers.

import { COLUMNS } from "./chat.js";
import { button, copyText, el, keepDown } from "./dom.js";
import { markdown } from "./markdown.js";
import { hideTokens, showTokens } from "./tokens.js";

/** A turn's place on the screen. `actions`: edit(turn, question), retry(turn, columns), resume(turn, column), remove(turn), and
 * look(), which tells {tokens: the token view is on, colour: the gate that tokens are coloured by, rendered: Markdown is rendered}. */
export function turnView(turn, actions) {
  const views = Object.fromEntries(COLUMNS.map((c) => [c, answerView(turn, c, actions)]));
  const ask = el("div", { className: "ask" }, turn.question);
  const tools = el("div", { className: "ask-tools" },
    button("Edit", "Change this message and ask again", () => edit()),
    button("Retry", "Write both answers again, with the dials as they stand", () => actions.retry(turn, COLUMNS)),
    button("Delete", "Delete this message and its answers", () => actions.remove(turn)));
  const top = el("div", { className: "top" }, ask, tools);
  const node = el("section", { className: "turn" }, top, el("div", { className: "pair" }, views.plain.node, views.steered.node));
  node.setAttribute("aria-label", "Turn");

  /** The question as a field that can be changed. */
  function edit() {
    if (top.querySelector("form")) return;
    const field = el("textarea", { value: turn.question, rows: Math.min(12, turn.question.split("\n").length + 1) });
    field.setAttribute("aria-label", "Message");
    const close = () => { form.replaceWith(ask); tools.hidden = false; };
    const form = el("form", { className: "edit" }, field,
      el("div", {}, el("button", { type: "submit", className: "tool" }, "Ask again"), button("Cancel", "Leave it as it was", close, "tool")));
    const send = (e) => { e.preventDefault(); if (actions.edit(turn, field.value.trim())) { ask.textContent = turn.question; close(); } };
    form.addEventListener("submit", send);
    field.addEventListener("keydown", (e) => {
      if (e.key === "Enter" && !e.shiftKey && !e.isComposing) send(e);
      else if (e.key === "Escape") { e.stopPropagation(); close(); }
    });
    ask.replaceWith(form);
    tools.hidden = true;
    field.focus();
  }

  return { node, edit, ...views, show() { COLUMNS.forEach((c) => views[c].show()); } };
}

/** One answer's place on the screen. */
function answerView(turn, column, actions) {
  const steered = column === "steered";
  const name = steered ? "steered answer" : "unsteered answer";
  const how = el("span", { className: "how" });
  const text = el("div", { className: "text prose" });
  const thoughts = thoughtView();
  const note = el("div", { className: "answer-note", hidden: true });
  const wrong = el("div", { className: "wrong", hidden: true });
  wrong.setAttribute("role", "alert");
  const figures = el("span", { className: "figures" });
  const more = button("Continue", `Write on where the ${name} ends`, () => actions.resume(turn, column), "more");
  const node = el("article", { className: "answer " + column },
    el("div", { className: "who" }, el("b", {}, steered ? "Steered" : "Unsteered"), how), thoughts.node, text, note, wrong,
    el("div", { className: "foot" },
      button("Copy", `Copy the ${name}`, () => copyText(turn[column].text)),
      button("Retry", `Write the ${name} again, with the dials as they stand`, () => actions.retry(turn, [column]), "again"), more, figures));
  node.setAttribute("aria-label", name);

  function show() {
    const a = turn[column];
    const look = actions.look();
    const busy = !a.finish && !a.error;
    const tokens = look.tokens && a.scores && !busy;
    keepDown(() => {
      how.textContent = steered ? turn.spec.words : "";
      node.setAttribute("aria-busy", String(busy));
      wrong.hidden = !a.error;
      wrong.textContent = a.error ?? "";
      note.textContent = noteOf(a, look);
      note.hidden = !note.textContent;
      // The tokens are those of the thought too.
      thoughts.show(tokens ? "" : a.reasoning, look, busy && !a.text);
      text.classList.toggle("plain-text", Boolean(tokens) || !look.rendered);
      if (tokens) showTokens(text, a, column, look.colour);
      else {
        hideTokens(text);
        text.replaceChildren(look.rendered ? markdown(a.text) : a.text);
      }
      figures.textContent = figuresOf(a);
      more.hidden = busy || !(a.text || a.reasoning) || !(a.error || ["length", "stopped", "interrupted"].includes(a.finish));
    });
  }
  return { node, show };
}

/** What was thought before an answer, folded until someone opens it. */
function thoughtView() {
  const summary = el("summary");
  const text = el("div", { className: "thought-text prose" });
  const node = el("details", { className: "thought", hidden: true }, summary, text);
  function show(reasoning, look, going) {
    node.hidden = !reasoning;
    summary.textContent = going ? "Thinking…" : "Thoughts";
    text.classList.toggle("plain-text", !look.rendered);
    text.replaceChildren(look.rendered ? markdown(reasoning) : reasoning);
  }
  return { node, show };
}

function noteOf(a, look) {
  if (a.waiting) return "All of the server's places are taken: waiting for one.";
  if (a.finish === "length" && a.reasoning && !a.text) return "The token limit ended the thoughts: press Continue, or allow more tokens and press Retry.";
  if (a.stale) return "Written before a turn above was changed." + (look.tokens ? " Retry it to see its tokens." : "");
  return "";
}

const ENDS = { length: " · cut", stopped: " · stopped", interrupted: " · interrupted" };

function figuresOf(a) {
  const n = a.tokens.length;
  const speed = n > 1 && a.seconds > 0 ? ` · ${((n - 1) / a.seconds).toFixed(0)}/s` : "";
  const end = ENDS[a.finish] ?? "";
  return n ? `${n} token${n === 1 ? "" : "s"}${speed}${end}` : end.slice(3);
}
