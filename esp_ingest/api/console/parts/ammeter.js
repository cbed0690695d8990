// The current chart: motor current around a clock face, a turn in 24 hours or 7 days, as field people read it.

import { get } from "../api.js";
import { choice, h, replace, s } from "../dom.js";
import { moment, number, unitOf, zoneName } from "../format.js";
import { prefs } from "../prefs.js";

const TURNS = { "24h": 86_400, "7d": 604_800 };
const POINTS = 2_000;
const CENTRE = 170;
const INNER = 24;
const OUTER = 140;
const DAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const MONDAY = 4 * 86_400; // 1970-01-05

/** The panel. `newest()` is the time of the newest reading, in seconds. */
export function ammeter(wellId, newest) {
  let turn = "24h";
  const place = h("div", { class: "ammeter" });
  const text = h("p", { class: "muted" });
  const element = h("section", { class: "panel" }, h("div", { class: "head" }, h("h2", null, "Amp chart (motor current)"),
    choice("One turn of the chart", [["24h", "24 h"], ["7d", "7 d"]], turn, (value) => { turn = value; load(); })), place, text);

  async function load() {
    const seconds = TURNS[turn];
    const now = Date.now() / 1000;
    const last = newest();
    const end = last && now - last > seconds / 2 ? last : now;
    try {
      const iso = (time) => new Date(time * 1000).toISOString();
      const page = await get(`wells/${encodeURIComponent(wellId)}/telemetry`, { from: iso(end - seconds), to: iso(end + 1), signals: "motor_current", max_points: POINTS });
      const points = page.rows.map((row) => [Date.parse(row[0]) / 1000, row[1]]);
      replace(place, face(points, seconds, end, turn));
      const values = points.map((point) => point[1]).filter((value) => value !== null);
      text.textContent = values.length === 0 ? "No motor current was measured in this time."
        : `${number(Math.min(...values), "A")} to ${number(Math.max(...values), "A")} ${unitOf("motor_current")} in the ${turn === "7d" ? "7 days" : "24 hours"} up to ${moment(end * 1000)} ${zoneName()}.`;
    } catch (error) {
      if (error.status !== 0) text.textContent = error.message;
    }
  }

  const timer = setInterval(() => document.hidden || load(), 60_000);
  load();
  return { element, load, close: () => clearInterval(timer) };
}

function face(points, seconds, end, turn) {
  const zone = prefs.zone === "utc" ? 0 : -new Date(end * 1000).getTimezoneOffset() * 60;
  const angle = (time) => ((((time + zone - (turn === "7d" ? MONDAY : 0)) / seconds) % 1) + 1) % 1 * 2 * Math.PI - Math.PI / 2;
  const values = points.map((point) => point[1]).filter((value) => value !== null);
  const top = niceTop(Math.max(1, ...values));
  const radius = (value) => INNER + ((OUTER - INNER) * Math.min(Math.max(value, 0), top)) / top;
  const at = (turned, r) => `${(CENTRE + r * Math.cos(turned)).toFixed(1)} ${(CENTRE + r * Math.sin(turned)).toFixed(1)}`;
  const picture = s("svg", { viewBox: `0 0 ${2 * CENTRE} ${2 * CENTRE}`, role: "img", "aria-label": `Motor current over ${turn === "7d" ? "7 days" : "24 hours"} around a clock face` });

  for (let ring = 1; ring <= 5; ring += 1) {
    const value = (top * ring) / 5;
    picture.append(s("circle", { class: ring === 5 ? "rim" : "ring", cx: CENTRE, cy: CENTRE, r: radius(value) }));
  }
  const marks = turn === "7d" ? DAYS : Array.from({ length: 12 }, (_, index) => String(index * 2).padStart(2, "0"));
  marks.forEach((mark, index) => {
    const turned = (index / marks.length) * 2 * Math.PI - Math.PI / 2;
    const label = turned + (turn === "7d" ? Math.PI / 7 : 0);
    picture.append(s("path", { class: "ring", d: `M${at(turned, INNER)}L${at(turned, OUTER)}` }));
    const [x, y] = at(label, OUTER + 15).split(" ");
    picture.append(s("text", { x, y: Number(y) + 4, "text-anchor": "middle" }, mark));
  });
  let path = "";
  let before = -Infinity;
  const gap = seconds / 100;
  for (const [time, value] of points) {
    if (value === null) continue;
    path += `${time - before > gap ? "M" : "L"}${at(angle(time), radius(value))}`;
    before = time;
  }
  picture.append(s("path", { class: "trace", d: path }), s("path", { class: "hand", d: `M${at(angle(end), INNER)}L${at(angle(end), OUTER + 5)}` }));
  for (const ring of [1, 3, 5]) {
    const value = (top * ring) / 5;
    picture.append(s("text", { class: "amount", x: CENTRE + 3, y: CENTRE - radius(value) + 11 }, `${number(value, top < 10 ? "A" : "V")} A`));
  }
  return picture;
}

/** The end of the scale: 1, 2 or 5 times a power of ten, in fifths. */
function niceTop(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 2.5, 3, 4, 5, 7.5, 10].map((each) => each * power).find((each) => each >= value * 1.05) ?? 10 * power;
}
