// Three bar charts on one time axis. Missing exports stay visible, unusual ones are marked.

import { compact, duration, h, label, number, size } from "./dom.js";

const LEFT = 62, RIGHT = 14, TOP = 16, HEIGHT = 84, AXIS = 22;
const CHARTS = [
  ["Rows", "rows", compact, number],
  ["Size", "bytes", size, size],
  ["Time", "seconds", duration, duration],
];

/** The figures for the answer of /list; `width` in pixels, `open` is called with the URL of a bar's export. */
export function charts({ points, missing, tiles }, width, open) {
  const written = label(points);
  const times = [...points.map((point) => +new Date(point.at)), ...missing.map((at) => +new Date(at))];
  const [first, last] = [Math.min(...times), Math.max(...times)];
  // What most gaps are, though there may be an outage in half of them.
  const gaps = points.slice(1).map((point, i) => new Date(point.at) - new Date(points[i].at)).filter((gap) => gap > 0);
  const step = gaps.sort((a, b) => a - b)[Math.floor(gaps.length / 4)] ?? 86400000;
  const slots = Math.max((last - first) / step + 1, 8);
  const slot = (width - LEFT - RIGHT) / slots;
  const x = (at) => LEFT + ((+new Date(at) - first) / step) * slot;
  const bar = Math.max(Math.min(slot * 0.72, 28), 1.5);
  return CHARTS.map(([title, name, short, long], index) => {
    const axis = index === CHARTS.length - 1;
    const top = nice(Math.max(...points.map((point) => point[name]), 1e-9), name);
    const y = (value) => TOP + HEIGHT * (1 - value / top);
    const odd = points.filter((point) => point.unusual.length).length;
    const summary = `${title} of ${points.length} exports from ${written(first)} to ${written(last)}, at most ` +
      `${long(Math.max(...points.map((point) => point[name])))}; ${odd} unusual, ${number(tiles.missing)} missing. ` +
      "The table below has the same figures.";
    const svg = h("svg", { width, height: TOP + HEIGHT + (axis ? AXIS : 6), role: "group", "aria-label": summary,
      onkeydown: move });
    for (const share of [0, 0.5, 1])
      svg.append(
        h("line", { class: share ? "grid" : "base", x1: LEFT, x2: width - RIGHT, y1: y(top * share), y2: y(top * share) }),
        h("text", { class: "tick", x: LEFT - 8, y: y(top * share) + 4, "text-anchor": "end", "aria-hidden": "true" },
          share ? short(top * share) : "0"));
    for (const at of missing)
      svg.append(h("rect", { class: "missing", x: x(at) + (slot - bar) / 2, y: TOP, width: bar, height: HEIGHT },
        h("title", {}, `${written(at)}: no export`)));
    for (const point of points) svg.append(...column(point, name, long));
    svg.lastElementChild.setAttribute("tabindex", 0);
    if (axis) svg.append(...ticks());
    return h("figure", {}, h("figcaption", {}, title), svg);

    function column(point, name, long) {
      const unusual = point.unusual.length > 0;
      const left = x(point.at) + (slot - bar) / 2;
      const height = Math.max(HEIGHT * (point[name] / top), 1.5);
      const words = `${written(point.at)}: ${long(point[name])}${point.unusual.map((words) => `\n▲ ${words}`).join("")}`;
      return [
        h("rect", { class: unusual ? "bar unusual" : "bar", x: left, y: TOP + HEIGHT - height, width: bar, height,
          rx: Math.min(bar / 4, 2) }),
        unusual && h("text", { class: "mark", x: left + bar / 2, y: Math.max(TOP + HEIGHT - height - 4, 10),
          "text-anchor": "middle", "aria-hidden": "true" }, "▲"),
        h("rect", { class: "touch", x: left - (slot - bar) / 2, y: TOP, width: slot, height: HEIGHT,
          role: "button", tabindex: -1, "aria-label": words, onclick: () => open(point.url) }, h("title", {}, words)),
      ].filter(Boolean);
    }

    function ticks() {
      const hours = step < 86400000 / 2; // longer words
      const every = Math.max(Math.ceil((hours ? 100 : 78) / slot), 1);
      const found = [];
      for (let index = 0; index * step <= last - first; index += every) {
        const at = first + index * step;
        const text = new Date(at).toLocaleString("en", { day: "numeric", month: "short", timeZone: "UTC",
          ...(hours ? { hour: "2-digit", minute: "2-digit", hourCycle: "h23" } : {}) });
        const middle = Math.min(Math.max(x(at) + slot / 2, LEFT + 16), width - RIGHT - (hours ? 30 : 18));
        found.push(h("text", { class: "tick", x: middle, y: TOP + HEIGHT + 16, "text-anchor": "middle", "aria-hidden": "true" },
          text));
      }
      return found;
    }
  });
}

/** Arrows move between the bars of a chart, of which Tab reaches one; Enter and Space open its export. */
function move(event) {
  const bars = [...event.currentTarget.querySelectorAll(".touch")];
  const at = bars.indexOf(event.target);
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: bars.length - 1 }[event.key];
  if (at >= 0 && bars[to]) {
    bars[at].setAttribute("tabindex", -1);
    bars[to].setAttribute("tabindex", 0);
    bars[to].focus();
  } else if (at >= 0 && ["Enter", " "].includes(event.key)) bars[at].dispatchEvent(new MouseEvent("click"));
  else return;
  event.preventDefault();
}

/** The end of an axis: 1, 2, 4, 5 or 8 times a power of ten (of a minute's parts, for times over one). */
function nice(most, name) {
  const unit = name === "seconds" && most > 90 ? 60 : 1;
  const power = 10 ** Math.floor(Math.log10(most / unit));
  return unit * power * [1, 2, 4, 5, 8, 10].find((times) => times * power * 1.0001 >= most / unit);
}
