// The signals of a well over time, a chart each under one shared view: from a year down to a second.

import { Chart, loadPlot } from "./chart.js";
import { announce, choice, debounced, h, replace, setText, throttled } from "../dom.js";
import { moment, number, ruleName, signalName, span, unitOf, usualBand, zoneName } from "../format.js";
import { keyStep, pointerGestures } from "./gestures.js";
import { indicator } from "./indicator.js";
import { prefs } from "../prefs.js";
import { Series } from "./series.js";

const SPANS = { "15m": 900, "1h": 3_600, "6h": 21_600, "24h": 86_400, "7d": 604_800, "30d": 2_592_000, "1y": 31_536_000 };
const SHORTEST = 1;
const LONGEST = 2 * SPANS["1y"];

export class Trends {
  /** `options`: wellId, signals that it sends, newest() (s), onView(query). */
  constructor(root, options) {
    this.options = options;
    this.series = new Series(options.wellId, options.signals);
    this.charts = new Map();
    this.piece = null;
    this.bands = {};
    this.isClosed = false;
    this.cursorText = h("span", { class: "muted cursor-text" });
    this.rangeText = h("span", { class: "muted" });
    this.trouble = h("p", { class: "error", role: "alert" });
    this.spans = choice("Range", Object.keys(SPANS).map((each) => [each, each]), "24h", (value) => this.follow(SPANS[value]));
    const button = (text, label, step) => h("button", { type: "button", "aria-label": label, title: label, onclick: () => step(this.view) }, text);
    this.nowButton = h("button", { type: "button", onclick: () => this.follow(this.view.to - this.view.from) }, "Follow");
    this.element = h("section", { class: "panel trends" },
      h("div", { class: "bar" }, h("h2", null, "Trends"), this.spans,
        h("span", { class: "choice" },
          button("◀", "Earlier", ({ from, to }) => this.go(from - (to - from) / 2, to - (to - from) / 2)),
          button("▶", "Later", ({ from, to }) => this.go(from + (to - from) / 2, to + (to - from) / 2)),
          button("+", "Zoom in", ({ from, to }) => this.go(from + (to - from) / 4, to - (to - from) / 4)),
          button("−", "Zoom out", ({ from, to }) => this.go(from - (to - from) / 2, to + (to - from) / 2))),
        this.nowButton, this.rangeText),
      h("p", { class: "muted hint" }, "Drag to zoom, Shift and drag to move, Ctrl and wheel to zoom at the pointer, double click to zoom out; with two fingers too. Keys: ← → + − End."),
      this.trouble);
    this.plots = h("div", { class: "plots", tabindex: 0, role: "group", "aria-label": "Charts. Arrow keys move, plus and minus zoom, End follows the newest reading." });
    this.plots.addEventListener("keydown", (event) => this.key(event));
    this.element.append(this.cursorText, this.plots);
    root.append(this.element);
    this.settle = debounced(() => this.settled(), 60);
    this.redraw = throttled(() => this.piece && this.showPiece(), 1_000);
    this.resized = new ResizeObserver(debounced(() => { for (const { chart } of this.charts.values()) chart.resize(); }, 100));
    this.view = { from: 0, to: 1 };
    this.isFollowing = true;
  }

  /** Make the charts and show what the address says. */
  async start(query) {
    await loadPlot();
    if (this.isClosed) return;
    this.setFromQuery(query);
    for (const signal of this.options.signals) this.addChart(signal);
    this.resized.observe(this.plots);
    await this.settled();
    this.timer = setInterval(() => this.beat(), 1_000);
  }

  close() {
    this.isClosed = true;
    clearInterval(this.timer);
    this.settle.cancel();
    this.redraw.cancel();
    this.resized.disconnect();
    this.series.close();
    for (const { chart } of this.charts.values()) chart.close();
  }

  addChart(signal) {
    const value = h("b", { class: "reading" });
    const meter = h("div");
    const place = h("div", { class: "plot", role: "img" });
    const unit = unitOf(signal);
    this.plots.append(h("div", { class: "trend", "data-signal": signal },
      h("div", { class: "trend-head" }, h("h3", null, signalName(signal)), h("span", { class: "trend-value" }, value, ` ${unit}`), meter), place));
    const chart = new Chart(place, {
      signal, unit, isUtc: prefs.zone === "utc",
      onSelect: (from, to) => this.go(from, to),
      onCursor: (index) => this.cursor(signal, index),
    });
    pointerGestures(chart.plot.over, () => this.view, (from, to) => this.go(from, to));
    this.charts.set(signal, { chart, value, meter, place, unit });
  }

  /** Show this range; the address follows. */
  go(from, to) {
    const wide = Math.min(Math.max(to - from, SHORTEST), LONGEST);
    const middle = (from + to) / 2;
    const latest = Date.now() / 1000 + wide / 2;
    const end = Math.min(middle + wide / 2, latest);
    this.view = { from: end - wide, to: end };
    this.isFollowing = false;
    this.moved();
  }

  /** Show the last seconds up to now, and go on with time. */
  follow(seconds) {
    this.isFollowing = true;
    this.view = this.newestView(seconds);
    this.moved();
  }

  /** Up to now; up to the newest reading for a well that has been silent for most of the range. */
  newestView(seconds) {
    const now = Date.now() / 1000;
    const newest = this.options.newest();
    const to = newest && now - newest > seconds / 2 ? newest + seconds * 0.05 : now;
    return { from: to - seconds, to };
  }

  setFromQuery(query) {
    const [from, to] = [Date.parse(query.get("from") ?? ""), Date.parse(query.get("to") ?? "")];
    if (Number.isFinite(from) && Number.isFinite(to) && to > from) {
      this.isFollowing = false;
      this.view = { from: from / 1000, to: to / 1000 };
    } else {
      this.isFollowing = true;
      this.view = this.newestView(SPANS[query.get("range")] ?? SPANS["24h"]);
    }
    this.showRange();
  }

  /** The address has changed by Back or Forward. */
  query(query) {
    const mine = this.queryOf();
    if ((query.get("from") ?? "") === mine.from && (query.get("to") ?? "") === mine.to && (query.get("range") ?? "") === mine.range) return;
    this.setFromQuery(query);
    this.settle();
  }

  queryOf() {
    const seconds = this.view.to - this.view.from;
    const range = this.isFollowing ? (Object.entries(SPANS).find(([, each]) => Math.abs(each - seconds) < 1)?.[0] ?? "24h") : "";
    const iso = (time) => new Date(time * 1000).toISOString();
    return this.isFollowing ? { range: range === "24h" ? "" : range, from: "", to: "" } : { range: "", from: iso(this.view.from), to: iso(this.view.to) };
  }

  moved() {
    this.showRange();
    for (const { chart } of this.charts.values()) chart.move(this.view); // the old picture, until the new one is there
    this.settle();
  }

  showRange() {
    const { from, to } = this.view;
    setText(this.rangeText, `${moment(from * 1000)} to ${moment(to * 1000)} ${zoneName()}, ${span(to - from)}${this.piece ? `, resolution ${this.piece.resolution}` : ""}`);
    this.spans.show(this.isFollowing ? this.queryOf().range || "24h" : "");
    this.nowButton.setAttribute("aria-pressed", String(this.isFollowing));
  }

  async settled() {
    this.options.onView(this.queryOf());
    try {
      const piece = await this.series.load(this.view);
      if (this.isClosed) return;
      replace(this.trouble);
      this.piece = piece;
      this.showPiece();
    } catch (error) {
      if (error.name !== "AbortError" && error.status !== 0) replace(this.trouble, error.message);
    }
  }

  showPiece() {
    for (const [signal, { chart, place }] of this.charts) {
      const data = this.piece.data[signal];
      chart.show(data, this.view);
      place.setAttribute("aria-label", this.summary(signal, data));
    }
    this.showRange();
  }

  summary(signal, { x, y }) {
    const unit = unitOf(signal);
    const inView = y.filter((value, at) => value !== null && x[at] >= this.view.from && x[at] <= this.view.to);
    if (inView.length === 0) return `${signalName(signal)}: no readings in this range`;
    const [low, high] = inView.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
    const limits = (this.limits?.[signal] ?? []).filter((limit) => limit.isAlarm).map((limit) => limit.text);
    return `${signalName(signal)}: ${number(low, unit)} to ${number(high, unit)} ${unit}, last ${number(inView.at(-1), unit)}${limits.length ? `, limits: ${limits.join(", ")}` : ""}`;
  }

  key(event) {
    const step = keyStep(event, this.view);
    if (!step) return;
    event.preventDefault();
    if (step === "now") this.follow(this.view.to - this.view.from);
    else this.go(step.from, step.to);
    announce(this.rangeText.textContent);
  }

  beat() {
    if (!this.isFollowing || document.hidden) return;
    this.view = this.newestView(this.view.to - this.view.from);
    if (!this.series.find(this.view)) this.settle();
    else this.redraw();
  }

  /** A reading has come. */
  push(time, reading) {
    this.series.push(time, reading);
    this.redraw();
  }

  /** Ask again for what is shown: something was missed. */
  refresh() {
    this.series.pieces = [];
    this.settle();
  }

  cursor(signal, index) {
    const parts = this.charts.get(signal);
    if (!parts) return;
    const value = parts.chart.valueAt(index);
    parts.value.parentElement.classList.toggle("past", value !== null);
    setText(parts.value, number(value ?? this.reading?.[signal], parts.unit));
    if (signal !== this.options.signals[0]) return;
    const time = parts.chart.timeAt(index);
    const there = time === null ? [] : this.alarms?.filter((alarm) => alarm.from <= time && alarm.to >= time) ?? [];
    setText(this.cursorText, time === null ? "" : `${moment(time * 1000)} ${zoneName()}${there.length ? `: ${there.map((alarm) => `${ruleName(alarm.diagnosis)} (${alarm.severity})`).join(", ")}` : ""}`);
  }

  /** The newest values, which stand beside the charts while the cursor is elsewhere. */
  showReading(reading) {
    this.reading = reading;
    for (const [signal, { value, meter, unit }] of this.charts) {
      if (!value.parentElement.classList.contains("past")) setText(value, number(reading[signal], unit));
      replace(meter, indicator(reading[signal], this.bands[signal], unit));
    }
  }

  /** `alarms`: {from, to, severity, diagnosis, signals or null}; `limits`: signal → [{value, text, isAlarm}]. */
  mark(alarms, limits) {
    this.alarms = alarms;
    this.limits = limits;
    for (const [signal, { chart, place }] of this.charts) {
      const mine = alarms.filter((alarm) => !alarm.signals?.length || alarm.signals.includes(signal));
      chart.mark(mine, limits[signal] ?? [], this.bands[signal] ?? null);
      if (this.piece) place.setAttribute("aria-label", this.summary(signal, this.piece.data[signal]));
    }
  }

  /** Of each signal: nine tenths of its running time in seven days, without alarms. */
  async loadBands() {
    const to = this.options.newest() || Date.now() / 1000;
    const source = new Series(this.options.wellId, this.options.signals);
    let piece;
    try {
      piece = await source.load({ from: to - SPANS["7d"], to });
    } catch {
      return; // charts without a band
    }
    if (this.isClosed) return;
    const current = piece.data.motor_current;
    const stopped = new Set(current ? current.x.filter((_, at) => current.y[at] !== null && current.y[at] <= 0) : []);
    for (const signal of this.options.signals) {
      const { x, y } = piece.data[signal];
      const mine = (this.alarms ?? []).filter((alarm) => alarm.signals?.includes(signal));
      const isUsual = (time) => time > to - SPANS["7d"] && !stopped.has(time) && !mine.some((alarm) => time >= alarm.from - 900 && time <= alarm.to);
      this.bands[signal] = usualBand(y.filter((_, at) => isUsual(x[at])));
    }
    this.mark(this.alarms ?? [], this.limits ?? {});
    if (this.reading) this.showReading(this.reading);
  }
}
