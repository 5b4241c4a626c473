// The dials: a slider for each vector, and the steering that they say.

import { $, el, plus } from "./dom.js";
import { kept } from "./settings.js";

const scales = new Map(); // vector's name -> scale
let vectors = [];

/** A round number near x: 1, 2 or 5 times a power of ten. */
function round(x) {
  const power = 10 ** Math.floor(Math.log10(x));
  return [1, 2, 5, 10].map((m) => m * power).find((n) => n >= x * 0.999) ?? x;
}

/** Makes a dial for each vector of `/v1/vectors`. */
export function buildDials(list) {
  vectors = list;
  const saved = kept.get("dials", {});
  scales.clear();
  $("dials").replaceChildren();
  if (!vectors.length) {
    $("dials").append(el("p", { className: "note" }, "No vectors: start the server with --vectors DIR. Both columns answer alike."));
  }
  vectors.forEach((vector, i) => dial(vector, i, saved[vector.id]));
  sumUp();
}

function dial(vector, i, saved) {
  const [low, high] = vector.safe_scale ?? [-2, 2];
  const safe = Math.max(-low, high) || 2;
  const step = round(safe / 50);
  const end = Number((Math.floor(safe / step + 1e-9) * step).toFixed(10));
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const first = Number((Math.floor(Math.min(1, high) / step + 1e-9) * step).toFixed(digits));
  const id = "dial-" + i;
  const range = el("input", { id, type: "range", min: -end, max: end, step });
  range.setAttribute("aria-describedby", id + "-percent");
  const number = el("input", { type: "number", step });
  number.setAttribute("aria-label", vector.id + ", scale");
  const percent = el("span", { className: "percent", id: id + "-percent" });
  const beyond = el("div", { className: "beyond", hidden: true }, "beyond the safe range: text may fall apart");
  const off = el("button", { className: "off", type: "button", title: "Take it off (scale 0)" }, "off");
  off.setAttribute("aria-label", `${vector.id} off`);
  const layers = (vector.kind && vector.kind !== "add" ? vector.kind + ", " : "") + (vector.layers.length > 1 ? `layers ${vector.layers[0]}–${vector.layers.at(-1)}` : `layer ${vector.layers[0]}`);
  const box = el("div", { className: "dial" },
    el("div", { className: "head" }, el("label", { className: "name", htmlFor: id }, vector.id), el("span", { className: "where" }, layers), off),
    range,
    el("div", { className: "ends" }, el("span", {}, plus(-end, digits)), el("span", {}, "0"), el("span", {}, plus(end, digits))),
    el("div", { className: "value" }, number, percent), beyond);
  for (const warning of vector.warnings ?? []) box.append(el("div", { className: "beyond" }, warning));

  const show = (scale, from) => {
    scales.set(vector.id, scale);
    if (from !== range) range.value = scale;
    if (from !== number) number.value = Number(scale.toFixed(6));
    percent.textContent = vector.percent_at_scale_1 === null ? "" : `${plus(scale * vector.percent_at_scale_1, 1)} % of residual`;
    // The bar is filled from the middle to the knob.
    const at = 50 + 50 * Math.max(-1, Math.min(1, scale / end));
    range.style.setProperty("--low", Math.min(50, at) + "%");
    range.style.setProperty("--high", Math.max(50, at) + "%");
    range.setAttribute("aria-valuetext", `${plus(scale, digits)}, ${percent.textContent}`);
    beyond.hidden = low * 1.0001 <= scale && scale <= high * 1.0001;
    box.classList.toggle("on", scale !== 0);
    kept.set("dials", { ...kept.get("dials", {}), [vector.id]: scale });
    sumUp();
  };
  range.addEventListener("input", () => show(Number(range.value), range));
  range.addEventListener("keydown", (e) => { if (e.key === "0" && !e.altKey) { show(0); e.preventDefault(); } });
  range.addEventListener("dblclick", () => show(0));
  number.addEventListener("input", () => { if (number.value !== "" && Number.isFinite(number.valueAsNumber)) show(number.valueAsNumber, number); });
  number.addEventListener("change", () => show(scales.get(vector.id)));
  off.addEventListener("click", () => show(0));
  $("dials").append(box);
  show(Number.isFinite(saved) ? saved : i === 0 ? first : 0);
}

/** What the dials say now: for a request, and in words. */
export function steering() {
  const on = [...scales].filter(([, scale]) => scale !== 0);
  const scope = $("scope").value;
  const words = on.map(([name, scale]) => {
    const percent = vectors.find((v) => v.id === name)?.percent_at_scale_1;
    return `${name} ${plus(scale, 2)}` + (percent ? ` (${plus(scale * percent, 1)} %)` : "");
  });
  return {
    steering: on.map(([vector, scale]) => ({ vector, scale })),
    scope,
    words: (words.join(", ") || "all dials at 0") + (on.length && scope !== "all" ? `, ${$("scope").selectedOptions[0].textContent}` : ""),
  };
}

export function sumUp() { $("dials-sum").textContent = steering().words; }
