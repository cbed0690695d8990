// How well the alarm system does: the figures of ISA-18.2, and how often each rule was right.

import { get, persistent } from "../api.js";
import { choice, h, replace } from "../dom.js";
import { SEVERITIES, count, number, ruleName, severityMark, span, timeElement } from "../format.js";

const RANGES = [["24h", "24 h"], ["7d", "7 days"], ["30d", "30 days"], ["90d", "90 days"]];

export function open(root, context) {
  let { query } = context;
  const range = choice("Range", RANGES, "7d", (value) => context.setQuery({ range: value }));
  const place = h("div", { "aria-busy": "true" });
  replace(root, h("div", { class: "head" }, h("h1", null, "Alarm performance"), range), place);
  let asked = null;

  const load = persistent("The figures", async () => {
    asked?.abort();
    asked = new AbortController();
    const from = query.get("range") ?? "7d";
    range.show(from);
    const [kpis, precision] = await Promise.all([get("alarms/kpis", { from }, asked.signal), get("alarms/precision", { from }, asked.signal)]);
    replace(place, figures(kpis), h("div", { class: "columns" }, loudest(kpis), rules(precision.items), chattering(kpis), stale(kpis)));
    place.removeAttribute("aria-busy");
  }, (text) => replace(place, h("p", { class: "error", role: "alert" }, text)));

  load();
  return { query(now) { query = now; load(); }, close() { asked.abort(); load.cancel(); } };
}

// A figure beside what ISA-18.2 (table 6) calls acceptable; outside of it, it is marked.
function figure(name, value, band, isOutside) {
  return h("div", { class: isOutside ? "outside" : null }, h("dt", null, name), h("dd", null, value), h("dd", { class: "muted" }, isOutside ? `too high; ${band}` : band));
}

function figures(kpis) {
  return h("dl", { class: "figures panel" },
    figure("Alarms", count(kpis.alarms), `at ${count(kpis.wells)} wells`, false),
    figure("Alarms per hour", number(kpis.alarms_per_hour), "target: at most 6, maximum: 12", kpis.alarms_per_hour > 12),
    figure("Alarms per 10 minutes", number(kpis.alarms_per_10_minutes), "target: at most 1, maximum: 2", kpis.alarms_per_10_minutes > 2),
    figure("Most alarms in 10 minutes", count(kpis.peak_10_minutes), "target: at most 10", kpis.peak_10_minutes > 10),
    figure("Time in flood", `${number(kpis.flood_share * 100)} %`, "target: below 1 %", kpis.flood_share >= 0.01),
    figure("Share of the top 10", `${number(kpis.loudest_share * 100)} %`, "target: below 5 %, in a large fleet", false),
    figure("Acknowledged", count(kpis.acknowledged), "", false),
    figure("Median time to acknowledge", kpis.median_seconds_to_acknowledge === null ? "–" : span(kpis.median_seconds_to_acknowledge), "", false),
    SEVERITIES.slice(0, 4).map((each) => h("div", null, h("dt", null, severityMark(each, true, true)), h("dd", null, count(kpis.by_severity[each])))));
}

function table(title, hint, columns, rows, empty) {
  return h("section", { class: "panel" }, h("h2", null, title), hint && h("p", { class: "muted" }, hint),
    rows.length === 0 ? h("p", { class: "muted" }, empty)
      : h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, h("table", null,
        h("thead", null, h("tr", null, columns.map(([text, isNumber]) => h("th", { scope: "col", class: isNumber ? "number" : null }, text)))),
        h("tbody", null, rows.map((row) => h("tr", null, row.map((cell, at) => h("td", { class: columns[at][1] ? "number" : null }, cell))))))));
}

const link = (well) => h("a", { href: `#/well/${encodeURIComponent(well)}` }, well);
const rule = (each) => h("a", { href: `#/alarms?rule=${encodeURIComponent(each.diagnosis)}&state=any` }, ruleName(each.diagnosis));

const loudest = (kpis) => table("Most frequent alarms", "The bad actors of ISA-18.2. Times raised counts returns within the off-delay too.", [["Well"], ["Alarm"], ["Alarms", true], ["Times raised", true]],
  kpis.loudest.map((each) => [link(each.well_id), rule(each), count(each.alarms), count(each.occurrences)]), "No alarm in this range.");

const rules = (items) => table("Precision of each rule", "Of the alarms that somebody gave a verdict on; unclear ones count for neither side.",
  [["Rule"], ["True", true], ["False", true], ["Unclear", true], ["Precision", true]],
  items.map((each) => [rule(each), count(each.true_alarms), count(each.false_alarms), count(each.unclear), each.precision === null ? "–" : `${Math.round(each.precision * 100)} %`]),
  "No verdict in this range. Give one on the alarms page.");

const chattering = (kpis) => table("Chattering", "They come and go several times a minute.", [["Well"], ["Alarm"], ["A minute", true]],
  kpis.chattering.map((each) => [link(each.well_id), rule(each), number(each.per_minute)]), "None.");

const stale = (kpis) => table("Stale", "Open for more than a day.", [["Well"], ["Alarm"], ["Severity"], ["Raised"]],
  kpis.stale.map((each) => [link(each.well_id), rule(each), severityMark(each.severity, true, true), timeElement(each.timestamp)]), "None.");
