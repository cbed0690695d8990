// What an alarm means: its sentence taken apart into what was seen, why, what follows and what to do.

import { get } from "../api.js";
import { h, replace } from "../dom.js";
import { SIGNALS, fromStored, number, ruleName, signalName, timeElement, unitOf } from "../format.js";

/** A stored value of a signal with its unit, in the chosen system. */
const shown = (signal, value) => `${number(fromStored(signal, value), unitOf(signal))} ${unitOf(signal)}`;

/** {seen, cause, consequence} out of the message of an alarm, as the daemon composes it. */
export function partsOf(message) {
  const parts = { seen: message, cause: "", consequence: "" };
  const [seen, ...rest] = message.replace(/\.$/, "").split(" — ");
  if (rest.length === 0) return parts;
  // The well and the time of raising stand beside it.
  parts.seen = seen.replace(/^[A-Za-z0-9._-]{1,64}: /, "").replace(/,? since \d{4}-\d\d-\d\d [\d:.]+( UTC)?$/, "");
  for (const each of rest) {
    if (each.startsWith("likely ")) parts.cause = each.slice(7);
    if (each.startsWith("consequence: ")) parts.consequence = each.slice(13);
  }
  return parts;
}

let rules = null;
/** What the rules say of each diagnosis; empty if the API does not tell. */
export function rulesSay() {
  rules ??= get("rules").then((page) => new Map(page.items.map((rule) => [rule.diagnosis, rule])), () => {
    rules = null;
    return new Map();
  });
  return rules;
}

/** An element with all that is known of an alarm, its history too. */
export function explanation(alarm) {
  const { seen, cause, consequence } = partsOf(alarm.message);
  const list = h("dl", { class: "why" });
  const say = (name, ...text) => text.some(Boolean) && list.append(h("div", null, h("dt", null, name), h("dd", null, text)));
  const sentence = (text) => text && `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
  say("Evidence", sentence(seen));
  say("Likely cause", sentence(cause));
  const follows = h("dd", null, sentence(consequence));
  const row = h("div", { hidden: !consequence }, h("dt", null, "Consequence"), follows);
  list.append(row);
  if (!consequence) {
    rulesSay().then((known) => {
      const rule = known.get(alarm.diagnosis);
      if (!rule?.consequence) return;
      replace(follows, sentence(rule.consequence));
      row.hidden = false;
    });
  }
  const actions = Array.isArray(alarm.actions) ? alarm.actions : [];
  if (actions.length) say("To do", h("ul", null, actions.map((each) => h("li", null, sentence(String(each))))));
  if (alarm.cleared_at) say("Cleared", timeElement(alarm.cleared_at));
  if (alarm.occurrences > 1) say("Came back", `${alarm.occurrences - 1} times within this occurrence.`);
  if (Number.isFinite(alarm.confidence)) say("Confidence", `${Math.round(alarm.confidence * 100)} %`);
  if (alarm.shelved_to) say("Shelved until", timeElement(alarm.shelved_to));
  if (alarm.verdict) say("Verdict", [alarm.verdict, alarm.cause, alarm.stop_reason && `stopped: ${alarm.stop_reason}`].filter(Boolean).join("; "));
  const history = h("div", { class: "history" });
  loadHistory(alarm, history);
  return h("div", { class: "explanation" }, list, snapshot(alarm.telemetry_snapshot), history);
}

function snapshot(data) {
  if (!data || typeof data !== "object") return null;
  const median = data.median_24h ?? {};
  const signals = Object.keys(SIGNALS).filter((signal) => Number.isFinite(data[signal]));
  if (signals.length === 0) return null;
  return h("table", { class: "snapshot" },
    h("caption", null, "When it was raised"),
    h("thead", null, h("tr", null, h("th", { scope: "col" }, "Signal"), h("th", { scope: "col", class: "number" }, "Value"), h("th", { scope: "col", class: "number" }, "24 h median"))),
    h("tbody", null, signals.map((signal) => h("tr", null, h("th", { scope: "row" }, signalName(signal)),
      h("td", { class: "number" }, shown(signal, data[signal])),
      h("td", { class: "number" }, Number.isFinite(median[signal]) ? shown(signal, median[signal]) : "–")))));
}

async function loadHistory(alarm, place) {
  let items;
  try {
    ({ items } = await get("alarms/history", { well_id: alarm.well_id, diagnosis: alarm.diagnosis, limit: 20 }));
  } catch (error) {
    replace(place, h("p", { class: "error" }, error.message));
    return;
  }
  replace(place, h("p", { class: "minor" }, "What was done"), items.length === 0 ? h("p", { class: "muted" }, "Nothing yet.") : actionList(items));
}

const DONE = { ack: "acknowledged", shelve: "shelved", unshelve: "unshelved", note: "noted on", verdict: "judged" };

/** What operators did, newest first. `isNamed`: each with its alarm. */
export function actionList(items, isNamed = false) {
  return h("ul", { class: "done" }, items.map((item) => h("li", null, timeElement(item.at), ` ${item.by_whom} ${DONE[item.action] ?? item.action} `,
    isNamed ? [h("b", null, ruleName(item.diagnosis)), item.raised_at && [" of ", timeElement(item.raised_at)]] : "it",
    item.shelved_to && [" until ", timeElement(item.shelved_to)], said(item.detail ?? {}), item.why && `: ${item.why}`)));
}

function said({ verdict, cause, stop_reason: stop }) {
  return [verdict && ` ${verdict}`, cause && `, cause: ${cause}`, stop && `, the well stopped by: ${stop}`];
}
