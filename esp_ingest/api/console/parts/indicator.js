// A moving analogue indicator: a value as a pointer beside the band in which it usually is.

import { s } from "../dom.js";
import { bandEnds } from "../format.js";

const WIDTH = 160;
const HEIGHT = 20;

/** The picture, or a note without a band. Outside of it the pointer is solid. */
export function indicator(value, band, unit) {
  if (!band || value === null || value === undefined) return null;
  const [low, high] = band;
  const wide = Math.max(high - low, Math.abs(high) * 0.02, 1e-6);
  const bottom = (low + high) / 2 - 1.5 * wide;
  const x = (each) => 4 + (WIDTH - 8) * Math.min(Math.max((each - bottom) / (3 * wide), 0), 1);
  const isOutside = value < low - wide * 0.1 || value > high + wide * 0.1;
  const at = x(value).toFixed(1);
  const words = isOutside ? (value < low ? "below" : "above") : "within";
  return [
    s("svg", { class: `indicator${isOutside ? " outside-band" : ""}`, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${words} the usual ${bandEnds(low, high, unit).join(" to ")} ${unit}` },
      s("rect", { class: "scale", x: 4, y: 8, width: WIDTH - 8, height: 8 }),
      s("rect", { class: "usual", x: x(low), y: 8, width: Math.max(x(high) - x(low), 2), height: 8 }),
      s("path", { class: "pointer", d: `M${at} 17l-5 -11h10z` })),
    usualText(low, high, unit, isOutside ? words : ""),
  ];
}

function usualText(low, high, unit, words) {
  const element = document.createElement("small");
  element.textContent = `${words ? `${words} ` : ""}usual ${bandEnds(low, high, unit).join(" – ")}`;
  return element;
}
