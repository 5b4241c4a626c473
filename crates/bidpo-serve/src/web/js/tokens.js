// The token view: an answer's tokens, coloured by how far steering moved each one's probability or by a gate, and one token's
// figures.

import { gatesAt } from "./chat.js";
import { $, el, plus } from "./dom.js";

const share = (logprob) => {
  const p = Math.exp(logprob) * 100;
  return p >= 99.95 ? "100 %" : p >= 10 ? p.toFixed(1) + " %" : p >= 0.095 ? p.toFixed(2) + " %" : p.toPrecision(1) + " %";
};

/** A token's text with white space made visible. */
const visible = (text) => text.replaceAll("\n", "↵").replaceAll(" ", "·") || "(part of a character)";

const PROBABILITY = "probability";

/** What colours can stand for: `names` are the vectors with gates. Returns what they stand for, `wanted` where it can be had. */
export function offerColours(names, wanted) {
  const select = $("colour");
  const values = ["", ...names];
  if ([...select.options].map((o) => o.value).join("\n") !== values.join("\n")) {
    select.replaceChildren(...values.map((v) => el("option", { value: v }, v ? "gate " + v : PROBABILITY)));
  }
  const colour = values.includes(wanted) ? wanted : "";
  select.value = colour;
  $("colour-box").hidden = !names.length;
  $("panel").classList.toggle("with-gates", names.length > 0);
  $("legend").className = colour ? "legend of-gate" : "legend";
  const ends = colour ? ["gate shut", "gate open"] : ["less likely steered", "more likely steered"];
  $("legend").replaceChildren(ends[0], el("i"), ends[1]);
  return colour;
}

/** What the panel says before a token is chosen. */
export function emptyPanel() {
  $("panel").classList.remove("chosen");
  $("figures").replaceChildren("Choose a token: point at it, tap it, or go through them with ← and →.");
}

/** How far a gate is open, in words. */
const openWords = ([name, open]) => `gate ${name} ` + (open === null ? "not in its scope" : `${plus(open, 2).replace("+", "")} open`);

/** Colours a token by one gate: the further open, the deeper, with a thicker line below it. */
function showGate(span, open) {
  span.classList.add("gate");
  span.classList.toggle("reverse", open < 0);
  span.style.setProperty("--far", Math.min(1, Math.abs(open ?? 0)).toFixed(3));
}

let chosen = null; // {span, clear}

/** Fills `text` with the tokens of an answer that has scores. `colour`: the gate that they are coloured by; empty: none. */
export function showTokens(text, answer, column, colour) {
  const sides = (i) => (column === "steered" ? [answer.scores[i], answer.tokens[i].logprob] : [answer.tokens[i].logprob, answer.scores[i]]);
  const spans = answer.tokens.map((t, i) => {
    const [without, withIt] = sides(i);
    const moved = withIt - without;
    const span = el("span", { className: "tok" }, t.text);
    const gates = gatesAt(answer, i);
    if (colour) {
      showGate(span, gates.find(([name]) => name === colour)?.[1] ?? null);
    } else {
      span.classList.add(moved > 0 ? "up" : "down");
      // Full colour where the odds moved by a factor of about 20.
      span.style.setProperty("--far", Math.min(1, Math.abs(moved) / 3).toFixed(3));
    }
    span.title = [`${visible(t.text)}  ${share(without)} → ${share(withIt)}`, ...gates.map(openWords)].join(", ");
    span.setAttribute("role", "option");
    return span;
  });
  let at = -1;
  const choose = (i) => {
    chosen?.removeAttribute("aria-selected");
    at = Math.max(0, Math.min(spans.length - 1, i));
    chosen = spans[at];
    chosen.id = "token-chosen";
    document.querySelectorAll("#token-chosen").forEach((s) => { if (s !== chosen) s.removeAttribute("id"); });
    chosen.setAttribute("aria-selected", "true");
    text.setAttribute("aria-activedescendant", "token-chosen");
    chosen.scrollIntoView({ block: "nearest" });
    figures(answer.tokens[at], ...sides(at), gatesAt(answer, at));
  };
  text.setAttribute("role", "listbox");
  text.setAttribute("aria-label", `Tokens of the ${column === "steered" ? "steered" : "unsteered"} answer`);
  text.tabIndex = 0;
  text.onkeydown = (e) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -1e9, End: 1e9 }[e.key];
    if (!step) return;
    choose(at < 0 ? 0 : at + step);
    e.preventDefault();
  };
  spans.forEach((span, i) => {
    span.addEventListener("click", () => choose(i));
    span.addEventListener("pointerenter", (e) => { if (e.pointerType === "mouse") choose(i); });
  });
  text.replaceChildren(...spans);
}

/** Makes `text` a place for text again. */
export function hideTokens(text) {
  for (const name of ["role", "tabindex", "aria-label", "aria-activedescendant"]) text.removeAttribute(name);
  text.onkeydown = null;
}

function figures(token, without, withIt, gates) {
  const bar = (logprob, side) => {
    const fill = el("span");
    fill.style.width = Math.max(0.5, Math.exp(logprob) * 100) + "%";
    return el("div", { className: "track " + side }, fill);
  };
  $("panel").classList.add("chosen");
  $("figures").replaceChildren(
    el("div", {}, el("span", { className: "piece" }, visible(token.text)),
      [` moved by ${plus(withIt - without, 2)} nats`, ...gates.map(openWords)].join(" · ")),
    el("div", { className: "bars" },
      el("span", {}, "unsteered"), bar(without, ""), el("span", {}, share(without)),
      el("span", {}, "steered"), bar(withIt, "s"), el("span", {}, share(withIt))),
    el("div", { className: "alts" }, "most likely here: ", token.top.map(([t, l]) => `${visible(t)} ${share(l)}`).join(", ")));
}
