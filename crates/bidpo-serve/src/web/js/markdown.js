// Markdown as elements. markdown-it parses; each of its tokens becomes an element made here, so that no text is ever read as HTML.

import MarkdownIt from "../vendor/markdown-it.mjs";
import { button, copyText, el } from "./dom.js";

// HTML in the text stays text; single line feeds are kept, as models mean them.
const parser = new MarkdownIt({ html: false, linkify: false, breaks: true });

/** Elements that tokens may open; any other token leaves its contents where they are. */
const ALLOWED = new Set(["p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "strong", "em", "s", "table", "thead", "tbody", "tr", "th", "td"]);

/** The elements of a text. */
export function markdown(text) {
  const root = document.createDocumentFragment();
  let at = root;
  const stack = [];
  const open = (node) => { at.append(node); stack.push(at); at = node; };
  const close = () => { at = stack.pop(); };
  const walk = (tokens) => {
    for (const token of tokens) {
      if (token.type === "inline") walk(token.children);
      else if (token.type === "link_open") open(link(token.attrGet("href")));
      else if (token.nesting === 1) open(element(token));
      else if (token.nesting === -1) close();
      else at.append(leaf(token));
    }
  };
  walk(parser.parse(text, {}));
  root.querySelectorAll("table").forEach(scrollable);
  return root;
}

function element(token) {
  // Paragraphs of tight lists have no element of their own.
  if (token.hidden || !ALLOWED.has(token.tag)) return el("span");
  // The page's own headings come first: h1 in an answer is the third level of the page.
  const level = /^h([1-6])$/.exec(token.tag)?.[1];
  const node = el(level ? "h" + Math.min(6, Number(level) + 2) : token.tag);
  if (token.tag === "ol" && token.attrGet("start")) node.start = Number(token.attrGet("start"));
  const align = /text-align:(left|center|right)/.exec(token.attrGet("style") ?? "")?.[1];
  if (align) node.classList.add("to-" + align);
  return node;
}

/** A link out of the page; markdown-it lets no scripts through, and this no address but of the web and of mail. */
function link(href) {
  if (!/^(https?:|mailto:)/i.test(href ?? "")) return el("span");
  return el("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" });
}

function leaf(token) {
  switch (token.type) {
    case "code_inline": return el("code", {}, token.content);
    case "fence": return codeBlock(token.content, token.info.trim().split(/\s+/)[0]);
    case "code_block": return codeBlock(token.content, "");
    case "softbreak":
    case "hardbreak": return el("br");
    case "hr": return el("hr");
    // Pictures would be loaded from elsewhere: their text and address instead.
    case "image": return document.createTextNode(`[${token.content || "picture"}: ${token.attrGet("src")}]`);
    default: return document.createTextNode(token.content);
  }
}

function codeBlock(text, language) {
  const pre = el("pre", { tabIndex: 0 }, el("code", {}, text));
  pre.setAttribute("aria-label", language ? "Code in " + language : "Code");
  pre.setAttribute("role", "region");
  const head = el("div", { className: "code-head" }, el("span", {}, language), button("Copy", "Copy this code", () => copyText(text)));
  return el("div", { className: "code" }, head, pre);
}

function scrollable(table) {
  const box = el("div", { className: "wide", tabIndex: 0 });
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", "Table");
  table.replaceWith(box);
  box.append(table);
}
