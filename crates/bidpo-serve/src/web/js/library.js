// The list of chats: search, rename, export, delete.

import { matches, titleOf } from "./chat.js";
import { $, button, el } from "./dom.js";

let menu = null; // id of the chat whose buttons are shown
let renaming = null; // id of the chat whose name is a field

/** Shows the chats that match the search. `actions`: open(chat), rename(chat, name), save(chat), remove(chat). */
export function listChats(chats, current, actions) {
  const search = $("search").value;
  const again = () => listChats(chats, current, actions);
  $("search").oninput = again;
  const found = chats.filter((c) => matches(c, search));
  const items = found.map((chat) => item(chat, current, actions, again));
  const none = chats.length ? "No chat holds these words." : "Kept in this browser, none yet.";
  const focused = document.activeElement?.closest?.("#chats")?.contains(document.activeElement) && document.activeElement.id;
  $("chats").replaceChildren(...(items.length ? items : [el("li", { className: "note" }, none)]));
  if (focused) $(focused)?.focus();
  const field = $("chats").querySelector("input");
  if (field) field.focus();
  $("chats-count").textContent = search.trim() ? `${found.length} of ${chats.length}` : chats.length ? String(chats.length) : "";
}

function item(chat, current, actions, again) {
  const title = titleOf(chat);
  if (renaming === chat.id) return el("li", {}, nameField(chat, title, actions, again));
  const open = button(title, title, () => actions.open(chat), "open");
  if (chat.id === current.id) open.setAttribute("aria-current", "true");
  const shown = menu === chat.id;
  const toggle = button("⋯", "More for " + title, () => { menu = shown ? null : chat.id; again(); }, "dots");
  toggle.id = "dots-" + chat.id;
  toggle.setAttribute("aria-expanded", String(shown));
  const node = el("li", {}, open, toggle);
  if (shown) {
    node.append(el("div", { className: "menu" },
      button("Rename", "Rename this chat", () => { renaming = chat.id; menu = null; again(); }),
      button("Export", "Write this chat to a file", () => actions.save(chat)),
      button("Delete", "Delete this chat", () => { menu = null; actions.remove(chat); }, "drop")));
  }
  return node;
}

function nameField(chat, title, actions, again) {
  const field = el("input", { type: "text", value: title, maxLength: 200 });
  field.setAttribute("aria-label", "Name of the chat");
  const end = (keep) => {
    if (renaming !== chat.id) return;
    renaming = null;
    if (keep && field.value.trim()) actions.rename(chat, field.value.trim());
    again();
  };
  field.addEventListener("keydown", (e) => {
    if (e.key === "Enter" && !e.isComposing) { e.preventDefault(); end(true); }
    else if (e.key === "Escape") { e.stopPropagation(); end(false); }
  });
  field.addEventListener("blur", () => end(true));
  return field;
}

/** Offers a text as a file. */
export function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = el("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** A chat's title as a part of a file's name. */
export const fileName = (title) => title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 40) || "chat";
