// Numbers, times and names as people read them.

import { h, s } from "./dom.js";
import { prefs } from "./prefs.js";

/** Signals in the order of the page, with their short names. */
export const SIGNALS = {
  motor_current: "Motor current",
  vsd_frequency: "Frequency",
  pip: "Intake pressure",
  discharge_pressure: "Discharge pressure",
  motor_temp: "Motor temperature",
  intake_temp: "Intake temperature",
  vibration: "Vibration",
  leakage_current: "Leakage current",
  drive_voltage: "Drive voltage",
  flow_rate: "Flow rate",
  gor: "Gas-oil ratio",
  wellhead_pressure: "Wellhead pressure",
  casing_pressure: "Casing pressure",
};

export const SEVERITIES = ["critical", "high", "medium", "low", "info"];
export const STATES = ["running", "stopped", "unknown", "silent"];
/** States of an alarm that ask for somebody. */
export const WAITING = new Set(["unacknowledged", "latched", "returned-unacknowledged"]);
/** States of an alarm that is held back. */
export const HELD_BACK = new Set(["suppressed", "shelved", "out_of_service"]);

const DECIMALS = {
  "bbl/d": 0, psi: 0, A: 1, "°F": 0, "in/s": 2, Hz: 1, "scf/bbl": 0, mA: 2, V: 0,
  "m³/d": 1, ft: 0, m: 0, bar: 1, "°C": 0, "mm/s": 1, "m³/m³": 1,
};
const STORED_UNITS = {
  flow_rate: "bbl/d", pip: "psi", motor_current: "A", motor_temp: "°F", vibration: "in/s", vsd_frequency: "Hz", gor: "scf/bbl",
  discharge_pressure: "psi", wellhead_pressure: "psi", casing_pressure: "psi", intake_temp: "°F", leakage_current: "mA", drive_voltage: "V",
};
// As esp_ingest/api/wire/units.py converts, for the live stream and the figures of alarms.
const METRIC = {
  "bbl/d": ["m³/d", (x) => x * 0.158987294928], psi: ["bar", (x) => x * 0.0689475729316836], "°F": ["°C", (x) => ((x - 32) * 5) / 9],
  "in/s": ["mm/s", (x) => x * 25.4], "scf/bbl": ["m³/m³", (x) => (x * 0.028316846592) / 0.158987294928],
};

/** The name of a signal. */
export const signalName = (signal) => SIGNALS[signal] ?? signal.replaceAll("_", " ");

/** The name of a rule: gas_lock → Gas lock. */
export function ruleName(diagnosis) {
  const text = diagnosis.replaceAll("_", " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

const withDecimals = (value, decimals) => value.toLocaleString("en-GB", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });

/** A value in the decimals of its unit; an en dash if there is none. */
export function number(value, unit) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const decimals = DECIMALS[unit] ?? (Math.abs(value) >= 100 ? 0 : 2);
  return withDecimals(value, decimals);
}

/** The two ends of a band, with one more decimal if they would read the same. */
export function bandEnds(low, high, unit) {
  const ends = [number(low, unit), number(high, unit)];
  if (ends[0] !== ends[1] || low === high) return ends;
  const decimals = (ends[0].split(".")[1] ?? "").length + 1;
  return [low, high].map((end) => withDecimals(end, decimals));
}

/** A count: 12 345. */
export const count = (value) => (Number.isFinite(value) ? Math.round(value).toLocaleString("en-GB") : "–");

/** Bytes in the greatest unit that fits. */
export function bytes(value) {
  if (!Number.isFinite(value)) return "–";
  const power = Math.min(4, Math.floor(Math.log10(Math.max(value, 1)) / 3));
  return `${(value / 1000 ** power).toFixed(power && value / 1000 ** power < 100 ? 1 : 0)} ${["B", "kB", "MB", "GB", "TB"][power]}`;
}

const metricOf = (signal) => (prefs.units === "metric" ? METRIC[STORED_UNITS[signal]] : undefined);

/** The unit of a signal in the chosen system. */
export const unitOf = (signal) => metricOf(signal)?.[0] ?? STORED_UNITS[signal] ?? "";

/** A stored value of a signal in the chosen system; null stays null. */
export const fromStored = (signal, value) => (Number.isFinite(value) ? (metricOf(signal)?.[1](value) ?? value) : null);

/** A reading out of a row of the live stream, in the chosen system. */
export const readingOf = (columns, row) => Object.fromEntries(columns.map((name, at) => [name, name in STORED_UNITS ? fromStored(name, row[at]) : row[at]]));

const two = (value) => String(value).padStart(2, "0");
const MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(" ");

function parts(date, zone) {
  if (zone === "utc") {
    return [date.getUTCFullYear(), date.getUTCMonth(), date.getUTCDate(), date.getUTCHours(), date.getUTCMinutes(), date.getUTCSeconds()];
  }
  return [date.getFullYear(), date.getMonth(), date.getDate(), date.getHours(), date.getMinutes(), date.getSeconds()];
}

/** A moment as "25 Nov 19:03:07", with the year if it is not this one. */
export function moment(time, zone = prefs.zone) {
  const date = new Date(time);
  const [year, month, day, hour, minute, second] = parts(date, zone);
  const thisYear = parts(new Date(), zone)[0];
  return `${day} ${MONTHS[month]}${year === thisYear ? "" : ` ${year}`} ${two(hour)}:${two(minute)}:${two(second)}`;
}

export const zoneName = () => (prefs.zone === "utc" ? "UTC" : "local");

/** A time element; the other zone shows on hover. */
export function timeElement(time) {
  const date = new Date(time);
  const other = prefs.zone === "utc" ? "local" : "utc";
  return h("time", { datetime: date.toISOString(), title: `${moment(date, other)} ${other === "utc" ? "UTC" : "local time"}` }, moment(date));
}

/** Under the axis of times: the date where a day begins, else the time. `step` in seconds. */
export function axisTimes(times, step, zone) {
  let before = "";
  return times.map((time) => {
    const date = new Date(time * 1000);
    const [year, month, day, hour, minute, second] = parts(date, zone);
    const today = `${day} ${MONTHS[month]}`;
    const isNewDay = today !== before;
    before = today;
    if (step >= 86_400) return step >= 2_500_000 ? `${MONTHS[month]} ${year}` : today;
    const clock = `${two(hour)}:${two(minute)}`;
    if (step < 1) return `${clock}:${two(second)}.${String(date.getMilliseconds()).padStart(3, "0")}`;
    if (step < 60) return `${clock}:${two(second)}`;
    return isNewDay && hour === 0 && minute === 0 ? today : clock;
  });
}

/** Beside the axis of values: all of them with as many decimals as `step`, the distance between two, needs. */
export function axisNumbers(values, step) {
  let decimals = 0;
  while (decimals < 6 && Math.abs(step * 10 ** decimals - Math.round(step * 10 ** decimals)) > 1e-6) decimals += 1;
  return values.map((value) => withDecimals(value, decimals));
}

/** A span of seconds: "12 s", "5 min", "3.4 h", "12 d". */
export function span(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const value = Math.max(0, seconds);
  if (value < 120) return `${Math.round(value)} s`;
  if (value < 7_200) return `${Math.round(value / 60)} min`;
  if (value < 172_800) return `${(value / 3600).toFixed(value < 36_000 ? 1 : 0)} h`;
  return `${Math.round(value / 86_400)} d`;
}

/** How long ago it was. */
export const age = (time) => `${span((Date.now() - new Date(time).getTime()) / 1000)} ago`;

// Each severity has a shape and a figure of its own, so that colour is never the only sign.
const SHAPES = {
  critical: ["M2 2h16v16H2z", "1"],
  high: ["M10 1l9.5 17.5H.5z", "2"],
  medium: ["M10 .5L19.5 10 10 19.5.5 10z", "3"],
  low: ["M10 1a9 9 0 100 18 9 9 0 000-18z", "4"],
  info: ["M5 5h10v10H5z", "i"],
};

/** The mark of a severity: filled if somebody has to look at it, else outlined. */
export function severityMark(severity, isWaiting = true, hasText = false) {
  const [path, figure] = SHAPES[severity] ?? SHAPES.info;
  const mark = s("svg", { class: `mark ${severity}${isWaiting ? "" : " quiet"}`, viewBox: "0 0 20 20", role: "img", "aria-label": severity },
    s("path", { d: path }),
    s("text", { x: 10, y: severity === "high" ? 16 : 14.5, "text-anchor": "middle" }, figure));
  return hasText ? h("span", { class: "marked" }, mark, h("span", { class: "word" }, severity)) : mark;
}

const STATE_SHAPES = { running: "M6 3v14l11-7z", stopped: "M4 4h12v12H4z", silent: "M4 4l12 12M16 4L4 16", unknown: "M4 10h12" };

/** The state of a well: quiet if it runs, dark if it does not. */
export function stateMark(state) {
  return h("span", { class: `state ${state}` }, s("svg", { viewBox: "0 0 20 20", "aria-hidden": "true" }, s("path", { d: STATE_SHAPES[state] ?? STATE_SHAPES.unknown })), state);
}

/** Percentile of sorted numbers. */
export function percentile(sorted, share) {
  if (!sorted.length) return null;
  const at = (sorted.length - 1) * share;
  const low = Math.floor(at);
  return sorted[low] + (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]) * (at - low);
}

/** The band in which most values lie, [low, high], less `share` at either end; null for fewer than 10 values. */
export function usualBand(values, share = 0.05) {
  const sorted = values.filter((value) => value !== null && Number.isFinite(value)).sort((a, b) => a - b);
  return sorted.length < 10 ? null : [percentile(sorted, share), percentile(sorted, 1 - share)];
}
