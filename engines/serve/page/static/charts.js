// Line charts of the last two minutes, drawn with SVG.
import { el, fill } from "./dom.js";

const WIDTH = 240, HEIGHT = 64, SECONDS = 120;
const pointed = new WeakMap(); // tile -> where the pointer is, as a share of the width
const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  node.append(...children);
  return node;
}

/** The smallest of 1, 2, 5 times a power of ten that is at least `value`. */
export function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((limit) => limit >= value * 0.999999);
}

/** What nearly all values stay below: a lone spike leaves the chart at its top instead of flattening the rest. */
function usual(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(0.98 * (sorted.length - 1))] ?? 0;
}

/** The path of a line; null values leave gaps. The newest point is at the right edge. */
function line(values, top) {
  const x = (i) => WIDTH - ((values.length - 1 - i) * WIDTH) / (SECONDS - 1);
  const y = (value) => HEIGHT - 1 - (Math.min(value, top) / top) * (HEIGHT - 3);
  let path = "", pen = false;
  values.forEach((value, i) => {
    if (value === null) { pen = false; return; }
    path += `${pen ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
    if (!pen && (i + 1 >= values.length || values[i + 1] === null)) path += "h0.1"; // a lone point stays visible
    pen = true;
  });
  return path;
}

/** Fill a tile: its value, its chart and a line below.
 *
 * `series` is [{name, values, className}], a value per second, null for none; `top` fixes the axis (1 for shares).
 */
export function tile(node, { value, unit, series, format, note, top }) {
  const title = node.querySelector("h3");
  const all = series.flatMap((s) => s.values).filter((v) => v !== null);
  const limit = top ?? ceiling(usual(all));
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "chart", role: "img" });
  const last = (s) => [...s.values].reverse().find((v) => v !== null);
  drawing.setAttribute("aria-label", all.length
    ? `${title.textContent}, last two minutes: ${series.map((s) => `${s.name} now ${format(last(s))}, at most ${
      format(Math.max(...s.values.filter((v) => v !== null)))}`).join("; ")}`
    : `${title.textContent}: no values yet`);
  for (const y of [1, HEIGHT / 2, HEIGHT - 1]) {
    drawing.append(svg("path", { d: `M0 ${y}H${WIDTH}`, class: "grid" }));
  }
  for (const s of series) {
    drawing.append(svg("path", { d: line(s.values, limit), class: `line ${s.className}` }));
  }
  const cursor = svg("path", { class: "cursor", d: "" });
  drawing.append(cursor);
  const legend = series.length > 1
    ? el("span", { className: "legend" }, series.map((s) => el("span", { className: s.className }, s.name))) : null;
  const below = el("p", { className: "soft small note" }, note || "\u00a0");
  const plain = below.textContent;
  const read = (share) => {
    const ago = Math.round((1 - share) * (SECONDS - 1));
    const found = series.map((s) => [s.name, s.values[s.values.length - 1 - ago] ?? null]).filter(([, v]) => v !== null);
    cursor.setAttribute("d", `M${(share * WIDTH).toFixed(1)} 0V${HEIGHT}`);
    below.textContent = `${ago} s ago: ${found.map(([name, v]) => `${name} ${format(v)}`).join(", ") || "no value"}`;
  };
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    pointed.set(node, Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)));
    read(pointed.get(node));
  });
  drawing.addEventListener("pointerleave", () => {
    pointed.delete(node);
    cursor.setAttribute("d", "");
    below.textContent = plain;
  });
  if (pointed.has(node) && node.matches(":hover")) read(pointed.get(node)); // the tile is drawn anew each second
  fill(node, title,
    el("p", { className: "figure" }, el("b", {}, value), unit ? el("span", {}, ` ${unit}`) : null, legend),
    el("div", { className: "plot" }, drawing, el("span", { className: "axis", "aria-hidden": "true" }, all.length ? format(limit) : "")),
    below);
}

/** The last two minutes of one field, a value per second, null where there was none. */
export const recent = (history, field) =>
  history.slice(-SECONDS).map((point) => (typeof point[field] === "number" && Number.isFinite(point[field]) ? point[field] : null));
