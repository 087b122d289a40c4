// Elements and numbers as text. Everything a bundle or a client named goes through textContent.

/** Make an element; `properties` are DOM properties, `aria-*`, `data-*` and `role` attributes. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (/^(aria-|data-)|^(role|scope|for|datetime)$/.test(name)) node.setAttribute(name, String(value));
    else node[name] = value;
  }
  node.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Replace what a node holds. */
export const fill = (node, ...children) => node.replaceChildren(...children.flat().filter(Boolean));

/** A table in a box that scrolls by itself; a column is [title, numeric?]. */
export function table(label, columns, rows) {
  const head = columns.map(([title, numeric]) => el("th", { scope: "col", className: numeric ? "n" : "" }, title));
  const body = rows.map((cells) =>
    el("tr", {}, cells.map((cell, i) => el("td", { className: columns[i][1] ? "n" : "" }, cell ?? "–"))));
  return el("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": label },
    el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, body)));
}

/** A list of terms and values. */
export const facts = (pairs) =>
  el("dl", { className: "facts" }, pairs.map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, value))));

export const empty = (words) => el("p", { className: "empty" }, words);

/** A horizontal bar filled to `share` of its width. */
export function bar(share, label, className = "") {
  const part = el("span", { className: `part ${className}` });
  part.style.width = `${100 * Math.min(1, Math.max(0, share || 0))}%`;
  return el("span", { className: "bar", role: label ? "img" : "presentation", "aria-label": label || null }, part);
}

const known = (value) => typeof value === "number" && Number.isFinite(value);
const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** Three significant digits without an exponent. */
export function digits(value) {
  if (!known(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1000) return grouped.format(value);
  if (size >= 100) return value.toFixed(0);
  if (size >= 10) return value.toFixed(1);
  return value.toFixed(size >= 1 ? 2 : 3);
}

/** A number that may be very small or large: 1.2e-7 stays readable. */
export const scientific = (value) =>
  !known(value) ? "–" : value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6) ? value.toExponential(1) : digits(value);

export const count = (value) => (known(value) ? grouped.format(value) : "–");
export const ms = (value) => (known(value) ? `${digits(value)} ms` : "–");
export const percent = (share) => (known(share) ? `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)}\u00a0%` : "–");

export function bytes(value) {
  if (!known(value)) return "–";
  let size = value;
  for (const unit of ["B", "KiB", "MiB"]) {
    if (size < 1024) return `${unit === "B" ? size.toFixed(0) : size.toFixed(1)} ${unit}`;
    size /= 1024;
  }
  return `${size.toFixed(1)} GiB`;
}

export function duration(seconds) {
  if (!known(seconds)) return "–";
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 90) return `${whole} s`;
  if (whole < 5400) return `${Math.round(whole / 60)} min`;
  if (whole < 172800) return `${Math.floor(whole / 3600)} h ${Math.round((whole % 3600) / 60)} min`;
  return `${Math.round(whole / 86400)} days`;
}

/** A time of day for seconds since 1970, with the full date for machines and on hover. */
export function clock(seconds) {
  if (!known(seconds)) return "–";
  const at = new Date(1000 * seconds);
  return el("time", { datetime: at.toISOString(), title: at.toString() }, at.toLocaleTimeString("en-GB"));
}
