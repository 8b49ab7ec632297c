// Creates elements with text only, so that nothing in a manifest becomes HTML.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "rect", "line", "text", "title", "g", "path"]);

/** An element; a property whose name begins with "on" is a listener, null and false leave an attribute out. */
export function h(tag, properties = {}, ...children) {
  const element = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false)
      element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const UNITS = [["year", 31557600], ["month", 2629800], ["day", 86400], ["hour", 3600], ["minute", 60]];

export const number = (value) => whole.format(value);
export const compact = (value) => short.format(value);

export function size(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  const power = Math.min(Math.floor(Math.log10(bytes) / 3), 5);
  const value = bytes / 1000 ** power;
  return `${value.toFixed(value < 100 ? 1 : 0)} ${["B", "kB", "MB", "GB", "TB", "PB"][power]}`;
}

export function duration(seconds) {
  if (seconds < 59.5) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.floor(Math.round(seconds) / 60);
  return minutes < 60
    ? `${minutes} min ${Math.round(seconds) % 60} s`
    : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function exact(time) {
  const when = new Date(time);
  return Number.isNaN(when.valueOf()) ? String(time) : `${when.toISOString().slice(0, 19).replace("T", " ")} UTC`;
}

/** How the times of `points` are written: as days if each is a midnight, or else to the minute. */
export function label(points) {
  const length = points.every((point) => new Date(point.at) % 86400000 === 0) ? 10 : 16;
  return (time) => exact(time).slice(0, length);
}

/** "3 hours ago", with the exact time on hover, and read out. */
export function ago(time) {
  const seconds = (new Date(time) - Date.now()) / 1000;
  const [unit, length] = UNITS.find(([, length]) => Math.abs(seconds) >= length) ?? ["second", 1];
  const text = Number.isFinite(seconds) ? relative.format(Math.trunc(seconds / length), unit) : String(time);
  return h("time", { datetime: time, title: exact(time) }, text, h("span", { class: "hidden" }, `, ${exact(time)}`));
}
