// Readings of one well for the charts, in the resolution that the view needs and in aligned pieces that are kept.

import { get } from "../api.js";
import { prefs } from "../prefs.js";

const MOST_POINTS = 2_400; // rows of a piece, which is up to three times as wide as the view
const KEPT = 24;
const FRESH_MILLISECONDS = 20_000; // of a piece that reaches to the present

/** Times are in seconds since 1970, as uPlot has them. */
export class Series {
  constructor(wellId, signals) {
    this.wellId = wellId;
    this.signals = signals;
    this.pieces = [];
    this.asked = null;
  }

  /** The piece that shows this view as finely as can be, if it is here. */
  find(view) {
    const level = levelOf(view);
    return this.pieces.find((piece) => piece.level === level && piece.from <= view.from && piece.to >= view.to && !isStale(piece, view));
  }

  /** The piece for this view. Throws AbortError where another view has replaced it. */
  async load(view) {
    const known = this.find(view);
    if (known) return known;
    this.asked?.abort();
    this.asked = new AbortController();
    const level = levelOf(view);
    const step = 2 ** (level - 1);
    const from = Math.floor(view.from / step) * step;
    const to = Math.ceil(view.to / step) * step;
    const page = await get(`wells/${encodeURIComponent(this.wellId)}/telemetry`, {
      from: iso(from), to: iso(to), signals: this.signals.join(","), max_points: MOST_POINTS, units: prefs.units,
    }, this.asked.signal);
    const piece = { level, from, to, at: Date.now(), resolution: page.resolution, ...columnsOf(page, this.signals) };
    this.pieces = [piece, ...this.pieces.filter((each) => each.level !== level || each.from !== from || each.to !== to)].slice(0, KEPT);
    return piece;
  }

  /** Add a reading that has just come to the pieces that reach so far. */
  push(time, reading) {
    for (const piece of this.pieces) {
      if (time < piece.from || time >= piece.to) continue;
      for (const signal of this.signals) {
        const { x, y } = piece.data[signal];
        const value = reading[signal];
        if (value === null || value === undefined || (x.length && time <= x.at(-1))) continue;
        x.push(time);
        y.push(value);
      }
    }
  }

  close() {
    this.asked?.abort();
  }
}

// A level is the power of two, in seconds, that holds the view.
const levelOf = (view) => Math.max(-3, Math.ceil(Math.log2(view.to - view.from)));
const iso = (seconds) => new Date(seconds * 1000).toISOString();

function isStale(piece, view) {
  return view.to * 1000 > piece.at - FRESH_MILLISECONDS && Date.now() - piece.at > FRESH_MILLISECONDS;
}

/** Each signal by itself without its nulls; a null stands where the line is to be broken. */
export function columnsOf(page, signals) {
  const times = page.rows.map((row) => Date.parse(row[0]) / 1000);
  const data = {};
  for (const signal of signals) {
    const at = page.columns.indexOf(signal);
    const x = [];
    const y = [];
    page.rows.forEach((row, index) => {
      if (row[at] === null) return;
      x.push(times[index]);
      y.push(row[at]);
    });
    data[signal] = broken(x, y);
  }
  return { data };
}

// A gap is 20 times as long as readings usually are apart.
function broken(x, y) {
  if (x.length < 3) return { x, y };
  const steps = x.slice(1).map((time, index) => time - x[index]).sort((a, b) => a - b);
  const gap = Math.max(20 * steps[Math.floor(steps.length * 0.75)], 2);
  if (steps.at(-1) <= gap) return { x, y };
  const found = { x: [x[0]], y: [y[0]] };
  for (let index = 1; index < x.length; index += 1) {
    if (x[index] - x[index - 1] > gap) {
      found.x.push((x[index] + x[index - 1]) / 2);
      found.y.push(null);
    }
    found.x.push(x[index]);
    found.y.push(y[index]);
  }
  return found;
}
