// One well: what is wrong with it, its signals with alarms and limits, its amp chart, its alarms.

import { ammeter } from "../parts/ammeter.js";
import { AlarmList } from "../parts/alarm-list.js";
import { get, isPassing, unread } from "../api.js";
import { h, replace, setText, throttled } from "../dom.js";
import { actionList, rulesSay } from "../parts/explain.js";
import { HELD_BACK, SIGNALS, WAITING, age, fromStored, number, readingOf, ruleName, severityMark, span, stateMark, timeElement, unitOf } from "../format.js";
import { live } from "../live.js";
import { prefs } from "../prefs.js";
import { Trends } from "../parts/trends.js";

const MOST_DRAWN = 300;

export function open(root, context) {
  const wellId = context.path[0] ?? "";
  let { query } = context;
  let well = null;
  let isClosed = false;
  const newest = () => (well ? Date.parse(well.last_seen) / 1000 : null);
  const encoded = encodeURIComponent(wellId);

  const state = h("span");
  const seen = h("span", { class: "seen" });
  const notes = h("ul", { class: "notes" });
  const trouble = h("p", { class: "error", role: "alert" });
  const trendPlace = h("div", { "aria-busy": "true" });
  const extra = h("div");
  const history = h("section", { class: "panel" }, h("h2", null, "What was done"));
  const meter = ammeter(wellId, newest);
  let trends = null;
  let hasBands = false;
  const pumpPlace = h("div");
  let pump = null;
  const loadPump = throttled(() => pump?.load(), 5_000);

  const list = new AlarmList(context, {
    isOfWell: true,
    parameters: () => ({ well_id: wellId, cursor: query.get("cursor") }),
    next: (cursor) => context.setQuery({ cursor }),
    isPaged: () => query.has("cursor"),
  });
  replace(root,
    h("div", { class: "head" }, h("h1", null, wellId), state, seen, h("a", { href: "#/fleet" }, "All wells")),
    trouble, notes, trendPlace,
    h("div", { class: "columns well-columns" }, h("section", { class: "panel" }, h("h2", null, "Alarms of this well"), list.element), h("div", null, pumpPlace, meter.element, history, extra)));

  async function loadWell() {
    try {
      well = await get(`wells/${encoded}`, { units: prefs.units });
    } catch (error) {
      if (isClosed) return;
      replace(trouble, error.status === 404 ? error.message : unread("The well", error));
      if (isPassing(error)) retry();
      else trendPlace.removeAttribute("aria-busy");
      return;
    }
    if (isClosed) return;
    replace(trouble);
    showWell();
    if (well.has_pump) showPump();
    if (!trends) {
      const signals = Object.keys(SIGNALS).filter((signal) => well.reading[signal] !== null || ["motor_current", "vsd_frequency", "pip"].includes(signal));
      trends = new Trends(trendPlace, { wellId, signals, newest, onView: (now) => context.setQuery(now, false) });
      trends.start(query).then(drawAlarms, (error) => replace(trouble, error.message)).finally(() => trendPlace.removeAttribute("aria-busy"));
    }
    trends.showReading(well.reading);
  }

  async function showPump() {
    const { pumpPanel } = await import("../parts/pump.js"); // most wells have none
    pump ??= pumpPanel(wellId);
    if (!pump.element.isConnected) replace(pumpPlace, pump.element);
    pump.load();
  }

  function showState() {
    replace(state, stateMark(well.state));
    trendPlace.classList.toggle("stale", well.state === "silent"); // its values are old
    showAge();
  }

  function showWell() {
    showState();
    const waiting = well.alarms.filter((alarm) => !HELD_BACK.has(alarm.state));
    replace(notes,
      waiting.map((alarm) => h("li", null, severityMark(alarm.severity, WAITING.has(alarm.state)), h("b", null, ruleName(alarm.diagnosis)), ` raised `, timeElement(alarm.timestamp))),
      well.shelved.map((each) => h("li", { class: "muted" }, `${ruleName(each.diagnosis)} is shelved until `, timeElement(each.shelved_to), ` by ${each.by_whom}: ${each.why}`)));
    const keys = [["Other values", well.extra], ["Values that could not be used", well.quality]].filter(([, data]) => data && Object.keys(data).length > 0);
    replace(extra,
      keys.map(([title, data]) => h("section", { class: "panel" }, h("h2", null, title), h("dl", { class: "why" }, Object.entries(data).map(([key, value]) => h("div", null, h("dt", null, key), h("dd", null, typeof value === "object" ? JSON.stringify(value) : String(value))))))),
      well.rules_off.length > 0 && h("details", { class: "panel" }, h("summary", null, rulesOffText(well.rules_off)),
        h("ul", null, well.rules_off.map((each) => h("li", null, h("b", null, ruleName(each.diagnosis)), `: ${each.reason}`)))));
  }

  const showAge = () => well && setText(seen, `last seen ${age(well.last_seen)}, silent after ${span(well.silent_after_seconds)}`);

  async function drawAlarms() {
    let page;
    let rules;
    try {
      [page, rules] = await Promise.all([get("alarms", { well_id: wellId, limit: MOST_DRAWN }), rulesSay()]);
    } catch {
      return; // charts without alarms until the next look
    }
    if (isClosed || !trends) return;
    const now = Date.now() / 1000;
    const drawn = page.items.filter((alarm) => alarm.severity !== "info" && alarm.state !== "suppressed").map((alarm) => ({
      from: Date.parse(alarm.timestamp) / 1000, to: alarm.cleared_at ? Date.parse(alarm.cleared_at) / 1000 : now,
      severity: alarm.severity, diagnosis: alarm.diagnosis, signals: rules.get(alarm.diagnosis)?.signals ?? null,
    }));
    drawn.sort((a, b) => severityRank(b) - severityRank(a));
    trends.mark(drawn, limitsOf(page.items, rules));
    if (!hasBands) trends.loadBands(); // after the alarms, because what was usual leaves them out
    hasBands = true;
  }

  const severityRank = ({ severity }) => ["critical", "high", "medium", "low"].indexOf(severity);

  /** Limits of the instruments, and of open alarms whose rule compares a signal as it is. */
  function limitsOf(alarms, rules) {
    const limits = {};
    for (const [signal, { low, high }] of Object.entries(well.limits)) {
      limits[signal] = [low, high].filter((value) => value !== 0).map((value) => ({ value, text: "limit of the instrument", isAlarm: false }));
    }
    for (const alarm of alarms) {
      const signal = rules.get(alarm.diagnosis)?.value_signal;
      if (alarm.cleared_at || alarm.threshold === null || !signal) continue;
      const value = fromStored(signal, alarm.threshold);
      (limits[signal] ??= []).push({ value, text: `${ruleName(alarm.diagnosis)} ${number(value, unitOf(signal))} ${unitOf(signal)}`, isAlarm: true });
    }
    return limits;
  }

  async function loadHistory() {
    try {
      const { items } = await get("alarms/history", { well_id: wellId, limit: 20 });
      replace(history, h("h2", null, "What was done"), items.length ? actionList(items, true) : h("p", { class: "muted" }, "Nothing yet."));
    } catch (error) {
      replace(history, h("h2", null, "What was done"), h("p", { class: "error" }, unread("What was done", error)));
    }
  }

  const loadAll = () => { loadWell(); drawAlarms(); loadHistory(); };
  const retry = throttled(loadAll, 5_000);
  const reload = throttled(loadAll, 1_500);
  const ends = [
    live.on("readings", ({ columns, rows }) => {
      const row = rows.find((each) => each[0] === wellId);
      if (!row || !well) return;
      const reading = readingOf(columns, row);
      well.last_seen = reading.timestamp;
      well.reading = reading;
      well.state = reading.state;
      showState();
      trends?.push(Date.parse(reading.timestamp) / 1000, reading);
      trends?.showReading(reading);
      loadPump();
    }),
    live.on("alarms", ({ items }) => items.some((item) => item.well_id === wellId) && reload()),
    live.on("reset", () => {
      reload();
      trends?.refresh();
      meter.load();
    }),
  ];
  const ages = setInterval(showAge, 5_000);

  loadWell();
  list.load();
  loadHistory();
  return {
    query(now) {
      const isOther = now.get("cursor") !== query.get("cursor");
      query = now;
      trends?.query(now);
      if (isOther) list.load();
    },
    close() {
      isClosed = true;
      clearInterval(ages);
      reload.cancel();
      retry.cancel();
      loadPump.cancel();
      trends?.close();
      meter.close();
      list.close();
      for (const end of ends) end();
    },
  };
}

/** How many rules do not run at a well, and how many run in part, in one clause. */
function rulesOffText(rules) {
  const partly = rules.filter((each) => each.reason.startsWith("in part")).length;
  const off = rules.length - partly;
  const said = (number, one, many) => number > 0 && (number === 1 ? `1 rule ${one}` : `${number} rules ${many}`);
  return `At this well ${[said(off, "is off", "are off"), said(partly, "runs in part", "run in part")].filter(Boolean).join(" and ")}`;
}
