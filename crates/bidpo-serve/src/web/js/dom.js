// Elements, short messages, the clipboard.

export const $ = (id) => document.getElementById(id);

/** Makes an element; `props` are properties, `children` elements or texts. */
export function el(tag, props = {}, ...children) {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children);
  return node;
}

/** A button with a text (or a sign and a name for screen readers), and what it does. */
export function button(text, title, act, className = "") {
  const node = el("button", { type: "button", title, className }, text);
  if (text.length < 2) node.setAttribute("aria-label", title);
  node.addEventListener("click", act);
  return node;
}

let timer;
/** A message at the bottom for some seconds, with a button where `action` is given: `[text, act]`. */
export function toast(text, action) {
  const box = $("toast");
  box.replaceChildren(text);
  if (action) {
    const [name, act] = action;
    box.append(button(name, name, () => { box.classList.remove("show"); act(); }));
  }
  box.classList.add("show");
  clearTimeout(timer);
  timer = setTimeout(() => box.classList.remove("show"), action ? 10000 : text.length > 60 ? 6000 : 2500);
}

export async function copyText(text) {
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

/** Changes the log, and stays at its end if it was there. */
export function keepDown(change) {
  const log = $("log");
  const down = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  change();
  if (down) toEnd();
}

export function toEnd() { $("log").scrollTo({ top: $("log").scrollHeight, behavior: "instant" }); }

/** Calls `act` once, `ms` after the first of many calls. `now()` calls it at once if it is due. */
export function throttle(act, ms) {
  let due = null;
  const run = () => { clearTimeout(due); due = null; act(); };
  const later = () => { due ??= setTimeout(run, ms); };
  later.now = () => { if (due !== null) run(); };
  return later;
}

/** A number with its sign. */
export const plus = (x, digits) => (x > 0 ? "+" : x < 0 ? "−" : "") + Math.abs(x).toFixed(digits);
