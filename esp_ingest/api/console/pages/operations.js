// How the daemon does: its health, rates and spool; what was rejected; what is archived.

import { cursorOf, get, persistent, unread } from "../api.js";
import { choice, debounced, field, h, pageButtons, replace, select, setText, uniqueId } from "../dom.js";
import { bytes, count, number, span, timeElement } from "../format.js";
import { live } from "../live.js";

const LOOK_MILLISECONDS = 5_000;
const REASONS = ("invalid_topic payload_too_large empty_payload invalid_utf8 invalid_json too_deep not_an_object missing_timestamp invalid_timestamp "
  + "timestamp_ahead timestamp_too_old well_id_mismatch wrong_type no_signal unstorable_text refused_by_database conflicting_duplicate internal_error").split(" ");

// Figure of the daemon, its name, how it is written, and when it is abnormal.
const FIGURES = [
  ["mqtt_connected", "Broker", (value) => (value ? "connected" : "away"), (value) => value === 0],
  ["database_up", "Database", (value) => (value ? "up" : "away"), (value) => value === 0],
  ["oldest_unacked_seconds", "Oldest unacknowledged message", span, (value) => value > 30],
  ["unacked_messages", "Unacknowledged messages", count],
  ["buffer_messages", "Messages in the buffer", count],
  ["spool_messages", "Messages in the spool", count, (value) => value > 0],
  ["spool_bytes", "Size of the spool", bytes, (value) => value > 0],
  ["diagnostics_active", "Open alarms and events, suppressed ones too", (value) => h("a", { href: "#/alarms?state=open" }, count(value))],
  ["mqtt_reconnects_total", "Reconnects to the broker", count],
  ["database_retries_total", "Retries of the database", count],
];
const RATES = [
  ["messages_received", "Messages received"], ["readings_written", "Readings written"], ["readings_duplicate", "Duplicates"], ["readings_rejected", "Rejects"],
];

export function open(root, context) {
  const daemon = daemonPanel();
  const rejects = rejectsPanel(context);
  const archive = h("section", { class: "panel" });
  replace(root, h("h1", null, "Operations"), daemon.element, rejects.element, archive);
  const loadArchive = archiveLoader(archive);
  loadArchive();
  const end = live.on("health", daemon.load);
  return {
    query: rejects.query,
    close() {
      end();
      daemon.close();
      rejects.close();
      loadArchive.cancel();
    },
  };
}

function daemonPanel() {
  const status = h("span", { role: "status" });
  const sums = h("dl", { class: "figures" });
  const checks = h("ul", { class: "checks" });
  const element = h("section", { class: "panel" }, h("div", { class: "head" }, h("h2", null, "Daemon"), status), sums, checks);
  const WORDS = { ok: "All is well.", failing: "Something is wrong: see below.", unreachable: "It does not answer the API (api.daemon_url).", unknown: "Not known." };

  async function load() {
    let found;
    try {
      found = await get("daemon");
    } catch (error) {
      setText(status, unread("The daemon's state", error));
      return;
    }
    setText(status, WORDS[found.status] ?? found.status);
    status.className = found.status === "ok" ? "muted" : "outside-text";
    const rates = RATES.map(([name, text]) => [text, found.rates[name]]);
    replace(sums,
      rates.map(([text, value]) => h("div", null, h("dt", null, text), h("dd", { class: "reading" }, value === undefined ? "–" : `${number(value)} /s`))),
      FIGURES.filter(([name]) => name in found.figures).map(([name, text, write, isWrong]) => {
        const value = found.figures[name];
        return h("div", { class: isWrong?.(value) ? "outside" : null }, h("dt", null, text), h("dd", { class: "reading" }, write(value)));
      }));
    replace(checks, Object.entries(found.checks).map(([name, check]) => {
      const isOk = check.ok ?? check.status === "ok";
      return h("li", { class: isOk ? null : "outside" }, h("b", null, name.replaceAll("_", " ")), isOk ? " OK" : " failing", check.detail && `: ${check.detail === "there" ? "running" : check.detail}`);
    }));
  }

  const timer = setInterval(() => document.hidden || load(), LOOK_MILLISECONDS);
  load();
  return { element, load, close: () => clearInterval(timer) };
}

function rejectsPanel(context) {
  let { query } = context;
  let asked = null;
  const reason = select([["", "Any"], ...REASONS.map((each) => [each, each.replaceAll("_", " ")])], "");
  const topic = h("input", { type: "search", maxlength: 500, placeholder: "esp/ESP-1*" });
  const since = select([["", "Any time"], ["1h", "Last hour"], ["24h", "Last 24 h"], ["7d", "Last 7 days"]], "");
  const found = h("p", { class: "found", role: "status" });
  const list = h("div");
  const pager = h("div", { class: "pager" });
  for (const [name, control] of Object.entries({ reason, topic, since })) {
    const change = () => context.setQuery({ [name]: control.value.trim(), cursor: "" }, control !== topic);
    control.addEventListener(control === topic ? "input" : "change", control === topic ? debounced(change, 400) : change);
  }

  const load = persistent("The rejects", async () => {
    asked?.abort();
    asked = new AbortController();
    reason.value = query.get("reason") ?? "";
    since.value = query.get("since") ?? "";
    if (document.activeElement !== topic) topic.value = query.get("topic") ?? "";
    const parameters = { reason: query.get("reason"), topic: query.get("topic"), from: query.get("since"), cursor: query.get("cursor"), limit: 25 };
    const page = await get("rejects", parameters, asked.signal);
    setText(found, page.items.length === 0 ? "No reject fits." : `${count(page.items.length)} on this page, newest first`);
    replace(list, page.items.length > 0 && table(page.items));
    pageButtons(pager, ["Newest", "Older"], query.get("cursor"), cursorOf(page.next), (cursor) => context.setQuery({ cursor }));
  }, (text) => setText(found, text));

  const table = (items) => h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Rejects" }, h("table", null,
    h("thead", null, h("tr", null, ["Received", "Reason", "Topic", "Detail"].map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", null, items.map(rejectRows))));

  const element = h("section", { class: "panel" }, h("h2", null, "Rejects"),
    h("p", { class: "muted" }, "Messages that could not be stored as readings, kept unchanged. esp-ingest rejects replay puts them through once more."),
    h("form", { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() }, field("Reason", reason), field("Topic", topic), field("Received in", since)),
    found, list, pager);
  load();
  return { element, query(now) { query = now; load(); }, close() { asked.abort(); load.cancel(); } };
}

function rejectRows(reject) {
  const id = uniqueId("payload");
  const more = h("tr", { class: "unfolded", id, hidden: true });
  const fold = h("button", { type: "button", class: "fold", "aria-expanded": "false", "aria-controls": id, onclick: () => {
    more.hidden = !more.hidden;
    fold.setAttribute("aria-expanded", String(!more.hidden));
    if (!more.firstChild) more.append(h("td", { colspan: 4 }, payload(reject)));
  } }, reject.reason.replaceAll("_", " "));
  const row = h("tr", null, h("td", null, timeElement(reject.received_at)), h("td", null, fold), h("td", { class: "wide" }, reject.topic), h("td", { class: "wide" }, reject.detail));
  return [row, more];
}

/** The bytes of a payload as text or as hexadecimal lines. */
export function hexLines(data) {
  const lines = [];
  for (let at = 0; at < data.length; at += 16) {
    const piece = [...data.subarray(at, at + 16)];
    const hex = piece.map((each) => each.toString(16).padStart(2, "0")).join(" ");
    const text = piece.map((each) => (each >= 32 && each < 127 ? String.fromCharCode(each) : "·")).join("");
    lines.push(`${at.toString(16).padStart(6, "0")}  ${hex.padEnd(47)}  ${text}`);
  }
  return lines.join("\n");
}

function payload(reject) {
  const data = Uint8Array.from(atob(reject.payload), (each) => each.charCodeAt(0));
  const text = new TextDecoder("utf-8").decode(data);
  const place = h("pre", { class: "payload", tabindex: 0, "aria-label": "Payload" });
  const show = (how) => setText(place, how === "hex" ? hexLines(data) : text);
  const isText = !/[\u0000-\u0008\u000e-\u001f\ufffd]/.test(text);
  show(isText ? "text" : "hex");
  const notes = [reject.item > 0 && `item ${reject.item} of its array`, reject.redelivered && "redelivered", reject.replayed_at && ["replayed ", timeElement(reject.replayed_at), ` (${reject.replay_outcome ?? "no outcome"})`]];
  return h("div", { class: "explanation" },
    h("div", { class: "bar" }, choice("Payload as", [["text", "Text"], ["hex", "Hex"]], isText ? "text" : "hex", show),
      h("span", { class: "muted" }, `${bytes(data.length)}, id ${reject.id}`), notes.filter(Boolean).map((each) => h("span", { class: "muted" }, each))),
    place);
}

const archiveLoader = (place) => persistent("The archive", async () => {
  const page = await get("archive");
  const at = (time) => (time ? timeElement(time) : "–");
  replace(place, h("h2", null, "Archive"), page.items.length === 0
    ? h("p", { class: "muted" }, "No day is archived yet. The lifecycle (archive.url) archives days, proves them and then drops them here.")
    : h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Archived days" }, h("table", null,
      h("thead", null, h("tr", null, ["Day", "Table", "Rows here", "Rows archived", "Size", "Verified", "Dropped here"].map((text, column) => h("th", { scope: "col", class: column > 1 && column < 5 ? "number" : null }, text)))),
      h("tbody", null, page.items.map((day) => h("tr", null, h("th", { scope: "row" }, day.day), h("td", null, day.table, day.problem && [" ", h("span", { class: "outside-text" }, day.problem)]),
        h("td", { class: "number" }, count(day.rows_database)), h("td", { class: "number" }, count(day.rows_archived)), h("td", { class: "number" }, bytes(day.bytes)),
        h("td", null, at(day.verified_at)), h("td", null, at(day.dropped_at))))))));
}, (text) => replace(place, h("h2", null, "Archive"), h("p", { class: "error" }, text)));
