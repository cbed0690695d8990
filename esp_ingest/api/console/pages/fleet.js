// The fleet: each well with its state, newest values, a day of one signal and open alarms.

import { cursorOf, get, isPassing, limited, unread } from "../api.js";
import { choice, debounced, field, h, pageButtons, replace, select, setText, throttled } from "../dom.js";
import { SEVERITIES, SIGNALS, STATES, WAITING, HELD_BACK, age, count, number, readingOf, ruleName, severityMark, signalName, span, stateMark, timeElement } from "../format.js";
import { live } from "../live.js";
import { prefs } from "../prefs.js";
import { sparkline } from "../parts/spark.js";

const PAGE_WELLS = 50;
const COLUMNS = ["motor_current", "vsd_frequency", "pip", "motor_temp", "flow_rate"];
const SORTS = [["need", "Most urgent first"], ["well_id", "Name, A to Z"], ["-well_id", "Name, Z to A"], ["last_seen", "Last seen, oldest first"], ["-last_seen", "Last seen, newest first"], ["flow_rate", "Flow, lowest first"], ["-flow_rate", "Flow, highest first"]];
const SPARK_POINTS = 96;
const SPARK_MILLISECONDS = 300_000; // a sparkline is asked for again after so long: a third of one of its points

const sparks = new Map(); // "well signal units" → {at, rows}

export function open(root, context) {
  let query = context.query;
  let wells = [];
  let units = {};
  let asked = null;
  const rows = new Map();
  const newest = new Map(); // the live reading of each well in the list
  const inTurn = limited(4);

  const sums = h("dl", { class: "sums", "aria-label": "The fleet in sums" });
  const list = h("div", { class: "list", "aria-busy": "true" });
  const found = h("p", { class: "found", role: "status" });
  const pager = h("div", { class: "pager" });

  const filters = filterBar();
  replace(root, h("h1", null, "Fleet"), sums, filters.element, found, list, pager);

  function filterBar() {
    const text = h("input", { type: "search", maxlength: 64, placeholder: "ESP-1 or A-*" });
    const state = select([["", "Any"], ...STATES.map((each) => [each, each])], "");
    const severity = select([["", "Any"], ...SEVERITIES.map((each) => [each, each])], "");
    const sort = select(SORTS, "need");
    const signal = select(Object.entries(SIGNALS), "motor_current");
    const view = choice("View", [["table", "Table"], ["tiles", "Tiles"]], "table", (value) => context.setQuery({ view: value }));
    const set = (name) => (event) => context.setQuery({ [name]: event.target.value, cursor: "" });
    text.addEventListener("input", debounced(() => context.setQuery({ q: text.value, cursor: "" }, false), 300));
    state.addEventListener("change", set("state"));
    severity.addEventListener("change", set("severity"));
    sort.addEventListener("change", set("sort"));
    signal.addEventListener("change", set("spark"));
    const element = h("form", { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
      field("Well", text), field("State", state), field("Worst alarm", severity), field("Sort by", sort), field("Trend of", signal), view);
    const fill = () => {
      if (document.activeElement !== text) text.value = query.get("q") ?? "";
      state.value = query.get("state") ?? "";
      severity.value = query.get("severity") ?? "";
      sort.value = query.get("sort") ?? "need";
      signal.value = query.get("spark") ?? "motor_current";
      view.show(viewOf());
    };
    return { element, fill };
  }

  const viewOf = () => query.get("view") ?? (matchMedia("(max-width: 760px)").matches ? "tiles" : "table");
  const sparkOf = () => query.get("spark") ?? "motor_current";

  async function load() {
    asked?.abort();
    asked = new AbortController();
    const { signal } = asked;
    const parameters = {
      q: query.get("q"), state: query.getAll("state"), severity: query.getAll("severity"), sort: query.get("sort") ?? "need",
      cursor: query.get("cursor"), units: prefs.units, limit: PAGE_WELLS,
    };
    list.setAttribute("aria-busy", "true");
    try {
      const [page, fleet] = await Promise.all([get("wells", parameters, signal), get("fleet", { units: prefs.units }, signal)]);
      wells = page.items.map(withNewest);
      units = page.units;
      draw();
      drawSums(fleet);
      found.classList.remove("error");
      setText(found, page.total === 0 ? noWells(fleet) : `${count(page.total)} ${page.total === 1 ? "well" : "wells"}. A well is silent once it has sent nothing for ${span(fleet.silent_after_seconds)}.`);
      pageButtons(pager, ["First page", "Next page"], query.get("cursor"), cursorOf(page.next), (cursor) => context.setQuery({ cursor }));
    } catch (error) {
      if (error.name === "AbortError") return;
      found.classList.add("error");
      setText(found, `${unread("The wells", error)}${rows.size ? " The list is as it was before." : ""}`);
      if (isPassing(error)) retry();
    } finally {
      if (!signal.aborted) list.removeAttribute("aria-busy");
    }
  }

  // A list of a large fleet may be some seconds old: what came live since is newer.
  function withNewest(well) {
    const reading = newest.get(well.well_id);
    if (!reading || Date.parse(reading.timestamp) <= Date.parse(well.last_seen)) return well;
    return { ...well, reading, state: reading.state, last_seen: reading.timestamp };
  }

  const noWells = (fleet) => (fleet.wells === 0 ? "No well has sent anything yet: a well is there as soon as its first reading is stored." : "No well fits the filter.");

  function drawSums(fleet) {
    const sum = (name, value, href) => h("div", null, h("dt", null, name), h("dd", null, href ? h("a", { href }, value) : value));
    const open = SEVERITIES.slice(0, 4).filter((each) => fleet.alarms[each]);
    replace(sums,
      sum("Wells", count(fleet.wells), "#/fleet"),
      STATES.filter((state) => fleet.states[state] || state === "running").map((state) => sum(state, count(fleet.states[state]), `#/fleet?state=${state}`)),
      h("div", null, h("dt", null, "active alarms"), h("dd", null, open.length === 0 ? "none" : open.map((each) => h("a", { class: "marked", href: `#/alarms?state=active&severity=${each}` }, severityMark(each), count(fleet.alarms[each]))))),
      sum("unacknowledged", count(fleet.unacknowledged), "#/alarms?state=waiting"),
      fleet.shelved > 0 && sum("shelved", count(fleet.shelved), "#/alarms?state=shelved"),
      sum("flow of running wells", `${number(fleet.flow_rate, fleet.units.flow_rate)} ${fleet.units.flow_rate}`),
      fleet.rejects_24h !== null && sum("rejects in 24 h", count(fleet.rejects_24h), "#/operations"));
  }

  // -- The list. Rows are kept by well, so that a live change moves nothing that has the focus.

  let drawnAs = "";
  function draw() {
    const view = viewOf();
    const shape = `${view} ${sparkOf()} ${prefs.units}`;
    if (shape !== drawnAs) {
      rows.clear();
      drawnAs = shape;
      replace(list, view === "table" ? table() : h("ul", { class: "tiles" }));
    }
    const place = list.querySelector("tbody, ul");
    const focused = document.activeElement;
    const wanted = new Set(wells.map((well) => well.well_id));
    for (const [name, row] of rows) {
      if (!wanted.has(name)) {
        row.element.remove();
        rows.delete(name);
      }
    }
    wells.forEach((well, at) => {
      let row = rows.get(well.well_id);
      if (!row) {
        row = view === "table" ? tableRow(well) : tile(well);
        rows.set(well.well_id, row);
        inView.observe(row.element);
      }
      row.update(well);
      if (place.children[at] !== row.element) place.insertBefore(row.element, place.children[at] ?? null);
    });
    if (focused?.isConnected && focused !== document.activeElement && list.contains(focused)) focused.focus({ preventScroll: true });
  }

  function table() {
    const heading = (text, unit, isNumber) => h("th", { scope: "col", class: isNumber ? "number" : null }, text, unit && h("small", null, ` ${unit}`));
    return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Wells" }, h("table", null,
      h("thead", null, h("tr", null, heading("Well"), heading("State"), heading("Open alarms"), heading(`24 h of ${signalName(sparkOf()).toLowerCase()}`),
        COLUMNS.map((signal) => heading(signalName(signal), units[signal], true)), heading("Last seen"))),
      h("tbody")));
  }

  function common(well) {
    const parts = { state: h("span"), alarms: h("span", { class: "alarm-names" }), spark: h("span", { class: "spark-place" }), seen: h("span", { class: "seen" }) };
    const values = Object.fromEntries(COLUMNS.map((signal) => [signal, h("span", { class: "value" })]));
    let known = "";
    const update = (now) => {
      replaceIf(parts.state, now.state, () => [stateMark(now.state)]);
      parts.state.closest("[data-well]").classList.toggle("stale", now.state === "silent"); // its values are old
      const names = JSON.stringify(now.alarms.map((alarm) => [alarm.diagnosis, alarm.state, alarm.severity]));
      if (names !== known) {
        known = names;
        replace(parts.alarms, alarmNames(now));
      }
      for (const signal of COLUMNS) setText(values[signal], number(now.reading[signal], units[signal]));
      setText(parts.seen, age(now.last_seen));
      parts.seen.title = timeElement(now.last_seen).textContent;
    };
    const loadSpark = () => spark(well.well_id, parts.spark);
    return { parts, values, update, loadSpark };
  }

  function replaceIf(element, key, make) {
    if (element.dataset.key === key) return;
    element.dataset.key = key;
    replace(element, make());
  }

  function alarmNames(well) {
    const wanting = well.alarms.filter((alarm) => !HELD_BACK.has(alarm.state));
    const held = well.alarms.length - wanting.length;
    wanting.sort((a, b) => SEVERITIES.indexOf(a.severity) - SEVERITIES.indexOf(b.severity));
    return [
      wanting.slice(0, 3).map((alarm) => h("span", { class: "marked", title: `${alarm.severity}, ${alarm.state}` }, severityMark(alarm.severity, WAITING.has(alarm.state)), ruleName(alarm.diagnosis))),
      wanting.length > 3 && h("span", { class: "more" }, `and ${wanting.length - 3} more`),
      held > 0 && h("span", { class: "more" }, `${held} suppressed or shelved`),
    ];
  }

  const link = (well) => h("a", { href: `#/well/${encodeURIComponent(well.well_id)}` }, well.well_id);

  function tableRow(well) {
    const made = common(well);
    const { parts, values } = made;
    const element = h("tr", { "data-well": well.well_id }, h("th", { scope: "row" }, link(well)), h("td", null, parts.state), h("td", null, parts.alarms), h("td", null, parts.spark),
      COLUMNS.map((signal) => h("td", { class: "number" }, values[signal])), h("td", null, parts.seen));
    return { ...made, element };
  }

  function tile(well) {
    const made = common(well);
    const { parts, values } = made;
    const element = h("li", { "data-well": well.well_id }, h("div", { class: "tile-head" }, link(well), parts.state), parts.alarms, parts.spark,
      h("dl", null, COLUMNS.map((signal) => h("div", null, h("dt", null, signalName(signal)), h("dd", null, values[signal], h("small", null, ` ${units[signal] ?? ""}`))))), parts.seen);
    return { ...made, element };
  }

  const inView = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) rows.get(entry.target.dataset.well)?.loadSpark();
    }
  }, { rootMargin: "200px" });

  async function spark(well, place) {
    const signal = sparkOf();
    const key = `${well} ${signal} ${prefs.units}`;
    let known = sparks.get(key);
    if (!known || Date.now() - known.at > SPARK_MILLISECONDS) {
      const ask = () => get(`wells/${encodeURIComponent(well)}/telemetry`, { from: "24h", signals: signal, max_points: SPARK_POINTS, units: prefs.units });
      try {
        known = { at: Date.now(), rows: (await inTurn(ask)).rows };
      } catch {
        return; // it comes with the next look
      }
      if (sparks.size > 2_000) sparks.clear();
      sparks.set(key, known);
    }
    if (!place.isConnected || signal !== sparkOf()) return;
    const last = known.rows.findLast((row) => row[1] !== null);
    replace(place, sparkline(known.rows, `${signalName(signal)} of ${well} over 24 h, ${last ? `last ${number(last[1], units[signal])} ${units[signal]}` : "no values"}`));
  }

  const others = new Map(); // the state of each well that is not in the list
  const reload = throttled(load, 1_500);
  const ends = [
    live.on("readings", ({ columns, rows: changed }) => {
      for (const values of changed) {
        const reading = readingOf(columns, values);
        const well = wells.find((each) => each.well_id === reading.well_id);
        if (!well) { // of another page, or new to the fleet
          if (others.get(reading.well_id) !== reading.state) reloadSlowly(); // sums, order and filters go by the state
          others.set(reading.well_id, reading.state);
          continue;
        }
        newest.set(well.well_id, reading);
        if (well.state !== reading.state) reload(); // sums, order and filters go by the state
        Object.assign(well, withNewest(well));
        rows.get(well.well_id)?.update(well);
      }
    }),
    live.on("alarms", reload),
    live.on("reset", reload),
  ];
  const reloadSlowly = throttled(load, 10_000);
  const retry = throttled(load, 5_000);
  const ages = setInterval(() => {
    for (const well of wells) rows.get(well.well_id)?.update(well);
  }, 5_000);
  const fresh = setInterval(() => {
    if (document.hidden || live.state !== "live") return;
    load();
    for (const row of rows.values()) if (isNear(row.element)) row.loadSpark();
  }, 30_000);
  const isNear = (element) => {
    const box = element.getBoundingClientRect();
    return box.bottom > -200 && box.top < innerHeight + 200;
  };

  filters.fill();
  load();
  return {
    query(now) {
      query = now;
      filters.fill();
      load();
    },
    close() {
      asked?.abort();
      inView.disconnect();
      clearInterval(ages);
      clearInterval(fresh);
      reload.cancel();
      reloadSlowly.cancel();
      retry.cancel();
      for (const end of ends) end();
    },
  };
}
