// The context gauge: how many tokens the next request takes, of those that fit.

import { $ } from "./dom.js";

const number = (n) => n.toLocaleString("en-US");

/** Shows `used` tokens of the `room` that a sequence has, of which a prompt may have `most`; null hides the gauge. */
export function showGauge(used, room, most) {
  const box = $("gauge");
  box.hidden = used === null || !room;
  if (box.hidden) return;
  const limit = Math.min(most ?? room, room);
  const over = used > limit;
  const words = over ? `${number(used)} tokens, ${number(used - limit)} too many` : `${number(used)} of ${number(room)} tokens`;
  $("gauge-text").textContent = words;
  $("gauge-fill").style.width = Math.min(100, (100 * used) / room) + "%";
  box.classList.toggle("near", !over && used > 0.8 * limit);
  box.classList.toggle("over", over);
  box.setAttribute("aria-valuemax", room);
  box.setAttribute("aria-valuenow", Math.min(used, room));
  box.setAttribute("aria-valuetext", words);
}
