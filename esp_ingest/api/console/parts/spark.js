// Sparklines: a day of one signal beside the band in which it usually is.

import { s } from "../dom.js";
import { usualBand } from "../format.js";

const WIDTH = 120;
const HEIGHT = 24;
const HOURS = 24;

/** The picture of rows [timestamp, value] of 24 h. Gaps of an hour stay open. */
export function sparkline(rows, label) {
  const points = rows.filter((row) => row[1] !== null).map((row) => [Date.parse(row[0]), row[1]]);
  const picture = s("svg", { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label });
  if (points.length === 0) return picture;
  const values = points.map((point) => point[1]);
  const band = usualBand(values, 0.1);
  const low = Math.min(...values);
  const high = Math.max(...values);
  const middle = (low + high) / 2;
  // A flat line stays flat: the scale spans at least a tenth of the value.
  const reach = Math.max(high - low, Math.abs(middle) * 0.1, 1e-9) * 1.1;
  const end = Date.now();
  const x = (time) => (WIDTH - 3) * (1 - (end - time) / (HOURS * 3_600_000));
  const y = (value) => HEIGHT / 2 - ((value - middle) / reach) * HEIGHT;
  if (band) {
    const top = y(band[1]);
    picture.append(s("rect", { class: "band", x: 0, width: WIDTH, y: top, height: Math.max(y(band[0]) - top, 1) }));
  }
  let path = "";
  let before = -Infinity;
  for (const [time, value] of points) {
    path += `${time - before > 3_600_000 ? "M" : "L"}${x(time).toFixed(1)} ${y(value).toFixed(1)}`;
    before = time;
  }
  picture.append(s("path", { class: "line", d: path, "vector-effect": "non-scaling-stroke" }));
  const [time, value] = points.at(-1);
  picture.append(s("path", { class: "now", d: `M${x(time).toFixed(1)} ${y(value).toFixed(1)}h.01`, "vector-effect": "non-scaling-stroke" }));
  return picture;
}
