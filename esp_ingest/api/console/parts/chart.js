// One signal over time: a uPlot chart with the usual band, the alarms and the limits drawn on it.

import { axisNumbers, axisTimes, number } from "../format.js";

const VENDOR = "vendor/uPlot-1.6.32";
const HEIGHT = 116;
let loading = null;

/** Load uPlot, once. */
export function loadPlot() {
  loading ??= new Promise((resolve, reject) => {
    const sheet = document.createElement("link");
    sheet.rel = "stylesheet";
    sheet.href = `${VENDOR}.min.css`;
    const script = document.createElement("script");
    script.src = `${VENDOR}.iife.min.js`;
    script.onload = resolve;
    script.onerror = () => {
      loading = null;
      reject(new Error("The chart library cannot be loaded: try again."));
    };
    document.head.append(sheet, script);
  });
  return loading;
}

/** The colours of the page, as a canvas needs them. */
export function colours() {
  const style = getComputedStyle(document.documentElement);
  return new Proxy({}, { get: (_, name) => style.getPropertyValue(`--${name}`).trim() });
}

export class Chart {
  /** `options`: signal, unit, isUtc, label, onSelect(from, to), onCursor(index or null). */
  constructor(place, options) {
    this.place = place;
    this.options = options;
    this.alarms = [];
    this.limits = [];
    this.band = null;
    this.colours = colours();
    this.plot = new uPlot(this.plotOptions(), [[], []], place);
  }

  plotOptions() {
    const { unit, isUtc, onSelect, onCursor } = this.options;
    const { line, muted, signal } = this.colours;
    const axis = { stroke: muted, grid: { stroke: line, width: 0.5 }, ticks: { stroke: line, width: 0.5, size: 4 }, font: "12px system-ui, sans-serif" };
    return {
      width: Math.max(this.place.clientWidth, 100),
      height: HEIGHT,
      padding: [8, 20, 0, 0],
      legend: { show: false },
      tzDate: (seconds) => (isUtc ? uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC") : new Date(seconds * 1000)),
      cursor: {
        sync: { key: "well" },
        drag: { x: true, y: false, setScale: false },
        bind: { dblclick: () => null },
        points: { size: 6 },
        y: false,
      },
      scales: { x: { time: true, auto: false }, y: { range: (_, low, high) => this.range(low, high) } },
      axes: [
        { ...axis, size: 26, space: 80, values: (_, splits, _axis, _space, step) => axisTimes(splits, step, isUtc ? "utc" : "local") },
        { ...axis, size: 56, space: 20, values: (_, splits, _axis, _space, step) => axisNumbers(splits, step) }, // 82 px have two ticks at least
      ],
      series: [{}, { stroke: signal, width: 1.3, points: { size: 4 }, value: (_, value) => number(value, unit) }],
      hooks: {
        drawAxes: [(plot) => this.drawBehind(plot)],
        draw: [(plot) => this.drawLimits(plot)],
        setCursor: [(plot) => onCursor(plot.cursor.idx ?? null)],
        setSelect: [(plot) => {
          const { left, width } = plot.select;
          if (width < 5) return;
          plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
          onSelect(plot.posToVal(left, "x"), plot.posToVal(left + width, "x"));
        }],
      },
    };
  }

  // A flat line stays flat: the scale spans a tenth of the value at least. Near limits are shown.
  range(low, high) {
    if (low === null || high === null) return [0, 1];
    let [bottom, top] = [low, high];
    for (const { value, isAlarm } of this.limits) {
      const reach = Math.max(high - low, Math.abs(high) * 0.15) * (isAlarm ? 4 : 1);
      if (value > high && value - high < reach) top = value;
      if (value < low && low - value < reach) bottom = value;
    }
    const least = Math.max(Math.abs(top) * 0.1, 1e-6);
    const spare = Math.max((top - bottom) * 0.08, (least - (top - bottom)) / 2);
    return [bottom >= 0 ? Math.max(bottom - spare, top - bottom < least ? -Infinity : 0) : bottom - spare, top + spare];
  }

  /** Put these readings and this view in place. */
  show({ x, y }, view) {
    this.plot.batch(() => {
      this.plot.setData([x, y], false);
      this.plot.setScale("x", { min: view.from, max: view.to });
    });
  }

  /** Move the view over what is drawn. */
  move(view) {
    this.plot.setScale("x", { min: view.from, max: view.to });
  }

  /** The value under the cursor at this index, null if there is none. */
  valueAt(index) {
    return index === null ? null : (this.plot.data[1][index] ?? null);
  }

  timeAt(index) {
    return index === null ? null : (this.plot.data[0][index] ?? null);
  }

  /** `alarms`: {from, to, severity}; `limits`: {value, text, isAlarm}; `band`: [low, high] or null. */
  mark(alarms, limits, band) {
    this.alarms = alarms;
    this.limits = limits;
    this.band = band;
    this.plot.redraw(true, false);
  }

  resize() {
    const width = this.place.clientWidth;
    if (width > 50 && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
  }

  close() {
    this.plot.destroy();
  }

  drawBehind(plot) {
    const { ctx, bbox } = plot;
    const { left, top, width, height } = bbox;
    ctx.save();
    ctx.beginPath();
    ctx.rect(left, top, width, height);
    ctx.clip();
    if (this.band) {
      const high = plot.valToPos(this.band[1], "y", true);
      ctx.fillStyle = this.colours.band;
      ctx.globalAlpha = 0.6;
      ctx.fillRect(left, high, width, Math.max(plot.valToPos(this.band[0], "y", true) - high, 1));
    }
    for (const alarm of this.alarms) {
      const from = plot.valToPos(alarm.from, "x", true);
      const to = plot.valToPos(alarm.to, "x", true);
      if (to < left || from > left + width) continue;
      const wide = Math.max(to - from, 2 * devicePixelRatio);
      ctx.fillStyle = this.colours[alarm.severity];
      ctx.globalAlpha = 0.09;
      ctx.fillRect(from, top, wide, height);
      ctx.globalAlpha = 1;
      ctx.fillRect(from, top, wide, 4 * devicePixelRatio);
      ctx.fillRect(from, top, devicePixelRatio, height);
    }
    ctx.restore();
  }

  drawLimits(plot) {
    const { ctx, bbox } = plot;
    const { left, top, width, height } = bbox;
    ctx.save();
    for (const { value, text, isAlarm } of this.limits) {
      const y = plot.valToPos(value, "y", true);
      if (y < top || y > top + height) continue;
      ctx.strokeStyle = ctx.fillStyle = isAlarm ? this.colours.text : this.colours.muted;
      ctx.lineWidth = devicePixelRatio;
      ctx.setLineDash([6 * devicePixelRatio, 4 * devicePixelRatio]);
      ctx.beginPath();
      ctx.moveTo(left, y);
      ctx.lineTo(left + width, y);
      ctx.stroke();
      ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
      ctx.textAlign = "right";
      ctx.textBaseline = y - top < 16 * devicePixelRatio ? "top" : "bottom";
      ctx.fillText(text, left + width - 4 * devicePixelRatio, y);
    }
    ctx.restore();
  }
}
