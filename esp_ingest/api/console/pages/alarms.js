// Alarms as a list: filters in the address, one or many to act on, and what each means.

import { AlarmList } from "../parts/alarm-list.js";
import { debounced, field, h, replace, select } from "../dom.js";
import { SEVERITIES } from "../format.js";

const STATES = [["open", "Open"], ["active", "Active: open, not suppressed or shelved"], ["waiting", "To be acknowledged"], ["unacknowledged", "Unacknowledged"], ["acknowledged", "Acknowledged"], ["latched", "Latched"], ["returned-unacknowledged", "Returned, unacknowledged"], ["shelved", "Shelved"],
  ["suppressed", "Suppressed"], ["out_of_service", "Out of service"], ["cleared", "Cleared"], ["any", "Any"]];
const VERDICTS = [["", "Any"], ["none", "None yet"], ["true", "True"], ["false", "False"], ["unclear", "Unclear"]];
const SINCE = [["", "Any time"], ["1h", "Last hour"], ["24h", "Last 24 h"], ["7d", "Last 7 days"], ["30d", "Last 30 days"]];

export function open(root, context) {
  let { query } = context;
  const list = new AlarmList(context, {
    parameters: () => ({
      state: stateOf(), severity: query.getAll("severity"), well_id: query.getAll("well"), diagnosis: query.getAll("rule"),
      verdict: query.get("verdict"), from: query.get("since"), cursor: query.get("cursor"),
    }),
    next: (cursor) => context.setQuery({ cursor }),
    isPaged: () => query.has("cursor"),
  });
  const stateOf = () => {
    const states = query.getAll("state");
    if (states.length === 0) return ["open"];
    return states.includes("any") ? [] : states;
  };
  const state = select(STATES, "open");
  const severity = select([["", "Any"], ...SEVERITIES.map((each) => [each, each])], "");
  const well = h("input", { type: "search", maxlength: 64, pattern: "[A-Za-z0-9._\\-]+" });
  const rule = h("input", { type: "search", maxlength: 100, placeholder: "gas_lock" });
  const verdict = select(VERDICTS, "");
  const since = select(SINCE, "");
  const controls = { state, severity, well, rule, verdict, since };
  for (const [name, control] of Object.entries(controls)) {
    const change = () => control.checkValidity() && context.setQuery({ [name]: control.value.trim(), cursor: "" }, control.tagName === "SELECT");
    control.addEventListener(control.tagName === "SELECT" ? "change" : "input", control.tagName === "SELECT" ? change : debounced(change, 400));
  }
  const fill = () => {
    for (const [name, control] of Object.entries(controls)) {
      if (document.activeElement !== control || control.tagName === "SELECT") control.value = query.get(name) ?? (name === "state" ? "open" : "");
    }
  };
  replace(root, h("h1", null, "Alarms"),
    h("form", { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
      field("State", state), field("Severity", severity), field("Well", well), field("Rule", rule), field("Verdict", verdict), field("Raised in", since)),
    list.element);
  fill();
  list.load();
  return {
    query(now) {
      query = now;
      fill();
      list.load();
    },
    close: () => list.close(),
  };
}
