// The operating point: head over flow at the present frequency, the recommended flows, and the newest reading.

import { get } from "../api.js";
import { h, replace, s } from "../dom.js";
import { moment, number, zoneName } from "../format.js";
import { prefs } from "../prefs.js";

const WIDTH = 340;
const HEIGHT = 230;
const LEFT = 58;
const BOTTOM = 40;
const TOP = 12;
const RIGHT = 12;

/** The panel. It is filled by load(). */
export function pumpPanel(wellId) {
  const place = h("div", { class: "pump" });
  const text = h("p", { class: "muted" });
  const element = h("section", { class: "panel" }, h("h2", null, "Operating point"), place, text);

  async function load() {
    try {
      const found = await get(`wells/${encodeURIComponent(wellId)}/pump`, { units: prefs.units });
      const words = said(found);
      replace(place, picture(found, words));
      replace(text, `${words} Reading of ${moment(found.timestamp)} ${zoneName()}.`);
    } catch (error) {
      if (error.status !== 0) replace(text, error.message);
    }
  }

  return { element, load };
}

/** Where the point lies, in sentences, also for screen readers. */
function said({ curve_hz: hz, vsd_frequency: frequency, curve_head: expected, flow_rate: flow, head, recommended, units }) {
  const parts = [];
  const amount = (value, unit) => `${number(value, unit)} ${unit}`;
  if (flow === null) parts.push("Flow rate is not measured.");
  if (head === null) parts.push("There is no head without both intake and discharge pressure.");
  if (flow !== null && head !== null) {
    const share = expected > 0 ? `, ${Math.round((head / expected) * 100)} % of what the curve gives there` : "";
    parts.push(`${amount(flow, units.flow_rate)} at ${amount(head, units.head)}${share}.`);
  }
  if (flow !== null && recommended) {
    const [low, high] = recommended;
    const where = flow < low ? "below" : flow > high ? "above" : "within";
    parts.push(`Flow is ${where} the recommended ${number(low, units.flow_rate)} – ${amount(high, units.flow_rate)}.`);
  }
  if (frequency === null) parts.push(`Frequency is not measured: the curve is that of ${number(hz, "Hz")} Hz.`);
  else if (frequency !== hz) parts.push(`The pump stands still: the curve is that of ${number(hz, "Hz")} Hz.`);
  else parts.push(`Curve at ${number(hz, "Hz")} Hz.`);
  return parts.join(" ");
}

function picture({ curve, recommended, flow_rate: flow, head, units }, words) {
  const mostFlow = roundedUp(Math.max(...curve.map((each) => each[0]), flow ?? 0));
  const mostHead = roundedUp(Math.max(...curve.map((each) => each[1]), head ?? 0));
  const x = (value) => LEFT + ((WIDTH - LEFT - RIGHT) * Math.max(value, 0)) / mostFlow;
  const y = (value) => HEIGHT - BOTTOM - ((HEIGHT - BOTTOM - TOP) * Math.max(value, 0)) / mostHead;
  const svg = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": words });
  if (recommended) {
    svg.append(s("rect", { class: "usual", x: x(recommended[0]), y: TOP, width: x(recommended[1]) - x(recommended[0]), height: HEIGHT - BOTTOM - TOP }));
  }
  for (let step = 0; step <= 4; step += 1) {
    const [atFlow, atHead] = [(mostFlow * step) / 4, (mostHead * step) / 4];
    svg.append(
      s("path", { class: "ring", d: `M${x(atFlow)} ${TOP}V${HEIGHT - BOTTOM}M${LEFT} ${y(atHead)}H${WIDTH - RIGHT}` }),
      s("text", { x: x(atFlow), y: HEIGHT - BOTTOM + 15, "text-anchor": step === 4 ? "end" : "middle" }, tick(atFlow)),
      s("text", { x: LEFT - 5, y: y(atHead) + 4, "text-anchor": "end" }, tick(atHead)));
  }
  svg.append(
    s("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, `Flow, ${units.flow_rate}`),
    s("text", { x: 12, y: (HEIGHT - BOTTOM) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(HEIGHT - BOTTOM) / 2})` }, `Head, ${units.head}`),
    s("path", { class: "trace", d: curve.map(([flowOf, headOf], index) => `${index ? "L" : "M"}${x(flowOf).toFixed(1)} ${y(headOf).toFixed(1)}`).join("") }));
  const isOutside = recommended && flow !== null && (flow < recommended[0] || flow > recommended[1]);
  if (flow !== null && head !== null) svg.append(s("circle", { class: `point${isOutside ? " outside-band" : ""}`, cx: x(flow), cy: y(head), r: 6 }));
  else if (flow !== null) svg.append(s("path", { class: "hand", d: `M${x(flow)} ${TOP}V${HEIGHT - BOTTOM}` }));
  else if (head !== null) svg.append(s("path", { class: "hand", d: `M${LEFT} ${y(head)}H${WIDTH - RIGHT}` }));
  return svg;
}

const tick = (value) => value.toLocaleString("en-GB", { maximumSignificantDigits: 3 });

/** The end of an axis: a value whose quarters are short numbers. */
function roundedUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.2, 1.6, 2, 2.4, 2.8, 3.2, 4, 5, 6, 8, 10].map((each) => each * power).find((each) => each >= value * 1.02) ?? 12 * power;
}
