// The page "Exports" of Airflow's navigation, and the tab of each DAG. React draws one element; the rest is plain DOM.

import { charts } from "./chart.js";
import { details } from "./details.js";
import { ago, compact, duration, exact, h, label, number, size } from "./dom.js";
import { live } from "./live.js";

const API = new URL("../", import.meta.url); // correct below any base path
const AIRFLOW = new URL("../", API);
const HEADS = ["File", "Published", "Rows", "Size", "Time", "Verified", "Run", ""];

const { useEffect, useRef } = globalThis.React;

globalThis.AirflowPlugin = function Exports({ dagId }) {
  const host = useRef(null);
  const [search] = globalThis.ReactRouterDOM.useSearchParams();
  const wanted = search.get("export");
  useEffect(() => {
    const page = new Page(host.current, dagId ?? null);
    page.show({ export: wanted });
    return () => page.end();
  }, [dagId, wanted]);
  return globalThis.React.createElement("div", { ref: host, style: { height: "100%", overflow: "auto" } });
};

class Page {
  constructor(host, dag) {
    this.dag = dag;
    this.root = host.shadowRoot ?? host.attachShadow({ mode: "open" });
    this.main = h("main", { "aria-busy": "true" });
    this.notice = h("p", { class: "notice", role: "status" });
    this.style = h("link", { rel: "stylesheet", href: new URL("static/exports.css", API) });
    this.root.replaceChildren(this.style, h("div", { class: "page" }, this.notice, this.main));
    this.ending = new AbortController();
    this.resized = new ResizeObserver(() => this.drawCharts());
    this.resized.observe(this.main);
  }

  end() {
    this.ending.abort();
    this.resized.disconnect();
  }

  /** Show a page of a series: { series, page }, or { export } for the one with that export. */
  async show(asked) {
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries({ ...asked, dag: this.dag })) if (value) query.set(name, value);
    const focused = this.root.activeElement?.id;
    this.main.setAttribute("aria-busy", "true");
    if (!this.main.childElementCount) this.main.replaceChildren(h("p", { class: "muted" }, "Loading the exports …"));
    try {
      this.data = await this.ask(`list?${query}`);
    } catch (error) {
      if (this.ending.signal.aborted) return;
      this.main.replaceChildren(h("h1", {}, "Exports"), h("div", { class: "empty" },
        h("h2", {}, "The exports can't be shown"), h("p", {}, error.message),
        h("button", { onclick: () => this.show(asked) }, "Try again")));
      return;
    } finally {
      this.main.setAttribute("aria-busy", "false");
    }
    this.draw(asked.export);
    if (focused) this.focusAgain(focused);
  }

  /** Keep the focus on what was used, or beside it, though it was drawn anew. */
  focusAgain(id) {
    const drawn = this.root.getElementById(id);
    (drawn?.disabled ? this.root.querySelector(".pager button:enabled") : drawn)?.focus({ preventScroll: true });
  }

  async ask(path, options) {
    const answer = await fetch(new URL(path, API), { ...options, signal: this.ending.signal });
    if (answer.ok) return answer.json();
    throw new Error(await sentence(answer));
  }

  say(text, kind = "") {
    this.notice.textContent = text;
    this.notice.className = `notice ${kind}`;
  }

  draw(wanted) {
    const { data } = this;
    this.main.replaceChildren(...[this.header(), ...this.warnings(wanted)].filter(Boolean));
    if (!data.selected) {
      this.main.append(this.empty());
    } else {
      this.charts = h("section", { class: "charts", "aria-label": "Charts" });
      this.main.append(this.tiles(), this.charts, this.unusual(), this.table());
      this.drawCharts();
    }
    if (data.live) this.main.append(live(this, API, data.live.statuses));
    if (data.wanted) this.open(data.wanted);
  }

  header() {
    const { data } = this;
    const choice = h("select", { id: "series", onchange: (event) => this.show({ series: event.target.value }) },
      data.series.map((one) => h("option", { value: one.name, selected: one.name === data.selected },
        `${one.name}  (${number(one.exports)})`)));
    return h("header", {}, h("h1", {}, "Exports"),
      data.series.length > 0 && h("label", { for: "series" }, "Series ", choice),
      h("span", { class: "muted grow" }, "as of ", ago(data.listed_at)),
      h("button", { id: "reload", class: "quiet", onclick: () => this.show({ series: data.selected, page: data.page }) }, "Reload"));
  }

  warnings(wanted) {
    const { data } = this;
    return [
      data.problem && `The store could not be listed: these are the exports of ${exact(data.listed_at)}. ${data.problem}`,
      data.truncated && "The bucket has more objects than this page lists, so some exports are not shown.",
      wanted && !data.wanted && `${wanted} is not here. It may be in another bucket, replaced, removed, or of a DAG ` +
        "whose runs you may not see.",
    ].filter(Boolean).map((text) => h("p", { class: "notice amber" }, text));
  }

  empty() {
    return h("div", { class: "empty" },
      h("h2", {}, this.dag ? `${this.dag} has no exports` : "No exports yet"),
      h("p", {}, this.dag ? "This tab shows what a DAG publishes with PostgresToS3Operator. This one has published nothing."
        : "This page shows what DAGs publish with PostgresToS3Operator."),
      this.dag && h("a", { href: new URL("plugin/exports", AIRFLOW) }, "All exports"));
  }

  tiles() {
    const { tiles } = this.data;
    if (!tiles) return h("p", { class: "notice amber" }, "None of the newest exports can be read: the table says why.");
    const change = (value, usual) => usual ? `${value >= usual ? "+" : "−"}${Math.abs((value / usual - 1) * 100).toFixed(1)} %` : null;
    const rows = change(tiles.rows, tiles.usual_rows);
    const bytes = change(tiles.bytes, tiles.usual_bytes);
    return h("dl", { class: "tiles" },
      tile("Newest", ago(tiles.newest), tiles.file),
      tile("Rows", number(tiles.rows), rows ? `${rows} against ${tiles.compared}` : this.data.total > 1 ? "–" : "the first of this series"),
      tile("Size", size(tiles.bytes), bytes ? `${bytes} against the last ones` : "–"),
      tile("Time", duration(tiles.seconds), tiles.seconds > 0 ? `${compact(tiles.rows / tiles.seconds)} rows/s` : "–"),
      tile("Unusual", tiles.unusual + tiles.missing ? `▲ ${tiles.unusual}` : "None",
        `of ${tiles.shown} exports; ${tiles.missing ? number(tiles.missing) : "none"} missing`, tiles.unusual + tiles.missing > 0));
  }

  drawCharts() {
    const width = Math.floor(this.charts?.clientWidth ?? 0);
    if (!this.data?.points?.length || !width || width === this.charts.drawn) return;
    this.charts.drawn = width;
    this.charts.replaceChildren(...charts(this.data, width, (url) => this.goTo(url)));
  }

  unusual() {
    const odd = this.data.points.filter((point) => point.unusual.length).reverse();
    const written = label(this.data.points);
    if (!odd.length) return h("p", { class: "muted" }, "Nothing in the charts is unusual.");
    return h("section", { class: "unusual", "aria-label": "Unusual exports" }, h("ul", {}, odd.map((point) =>
      h("li", {}, h("span", { class: "amber", "aria-hidden": "true" }, "▲ "),
        h("button", { class: "link", onclick: () => this.goTo(point.url) }, written(point.at)), ` ${point.unusual.join(" ")}`))));
  }

  table() {
    const { data } = this;
    this.rows = new Map();
    const body = h("tbody", {}, data.rows.flatMap((row) => this.row(row)));
    return h("section", { "aria-label": "Table of exports" },
      h("div", { class: "scroll" }, h("table", { class: "exports" },
        h("caption", {}, `${number(data.total)} exports of ${data.selected}, the newest first`),
        h("thead", {}, h("tr", {}, HEADS.map((name) => h("th", { scope: "col" }, name || h("span", { class: "hidden" }, "Actions"))))),
        body)),
      data.pages > 1 && h("nav", { "aria-label": "Pages", class: "pager" },
        h("button", { id: "newer", disabled: data.page <= 1, onclick: () => this.turn(-1) }, "Newer"),
        h("span", {}, `Page ${data.page} of ${number(data.pages)}`),
        h("button", { id: "older", disabled: data.page >= data.pages, onclick: () => this.turn(1) }, "Older")));
  }

  async turn(by) {
    await this.show({ series: this.data.selected, page: this.data.page + by });
    this.root.querySelector("caption")?.scrollIntoView({ block: "nearest" });
  }

  row(row) {
    const cell = (index, ...content) => h("td", { "data-label": HEADS[index], class: index > 1 && index < 5 ? "right" : null }, ...content);
    if (row.hidden)
      return h("tr", {}, h("td", { colspan: HEADS.length, class: "muted" }, "An export of a DAG whose runs you may not see."));
    if (row.problem)
      return h("tr", { class: "problem" }, cell(0, h("code", {}, row.file)), cell(1, ago(row.at)),
        h("td", { colspan: HEADS.length - 2 }, h("span", { class: "amber" }, "▲ "), row.problem));
    const below = h("tr", { class: "below", hidden: true }, h("td", { colspan: HEADS.length }));
    const toggle = h("button", { class: "link file", "aria-expanded": "false", onclick: () => this.toggle(row.url) },
      h("span", { class: "arrow", "aria-hidden": "true" }, "▸"), row.files > 1 ? `${row.file} and ${row.files - 1} more` : row.file);
    this.rows.set(row.url, { toggle, below, version: row.version });
    const verified = cell(5, row.verified ? h("span", { class: "green" }, "✓ rows") : h("span", { class: "muted" }, "not counted"));
    const why = row.may_download ? null : `This needs permission to trigger ${row.dag ?? "all DAGs"}.`;
    return [h("tr", {},
      cell(0, toggle, row.unusual.length > 0 && h("span", { class: "amber", title: row.unusual.join(" ") }, " ▲",
        h("span", { class: "hidden" }, row.unusual.join(" ")))),
      cell(1, ago(row.at)), cell(2, number(row.rows)), cell(3, size(row.bytes)), cell(4, duration(row.seconds)), verified,
      cell(6, row.run_path ? h("a", { href: new URL(row.run_path, AIRFLOW), title: `${row.dag}, ${row.run}`, class: "run" }, row.run) : "–"),
      h("td", { class: "actions" },
        row.files > 1 // the first alone would look like the export
          ? h("button", { "aria-label": `The files of ${row.file}`, onclick: () => this.open(row.url) }, `${number(row.files)} files`)
          : h("button", { disabled: why !== null, title: why, "aria-label": `Download ${row.file}`,
            onclick: (event) => this.download(row.url, 0, row, event.currentTarget) }, "Download"),
        h("button", { class: "quiet", disabled: why !== null, title: why, "aria-label": `Verify ${row.file}`,
          onclick: (event) => this.verify(row, verified, event.currentTarget) }, "Verify"))), below];
  }

  async goTo(url) {
    if (!this.rows.has(url)) await this.show({ export: url });
    else await this.open(url);
  }

  async open(url) {
    const { toggle, below } = this.rows.get(url) ?? {};
    if (!toggle) return;
    if (below.hidden) await this.toggle(url);
    toggle.scrollIntoView({ block: "start" });
    toggle.focus({ preventScroll: true });
  }

  async toggle(url) {
    const { toggle, below, version } = this.rows.get(url);
    const opens = below.hidden;
    below.hidden = !opens;
    toggle.setAttribute("aria-expanded", opens);
    if (!opens || below.drawn) return;
    below.drawn = true;
    below.firstChild.replaceChildren(h("p", { class: "muted" }, "Reading the manifest …"));
    try {
      const found = await this.ask(`details?${new URLSearchParams({ manifest: url, version })}`);
      below.firstChild.replaceChildren(details(found, {
        download: (...file) => this.download(...file),
        copy: (text) => navigator.clipboard.writeText(text).then(() => this.say("Copied."), () => this.say("Select and copy it.")),
      }));
    } catch (error) {
      below.drawn = false;
      below.firstChild.replaceChildren(h("p", { class: "notice amber" }, error.message));
    }
  }

  /** Have the browser download a file; if the server would refuse, say why instead. */
  async download(url, index, file, button) {
    const query = { manifest: url, file: index, ...(file.sha256 ? { sha256: file.sha256 } : { version: file.version }) };
    await this.save(new URL(`files?${new URLSearchParams(query)}`, API), button);
  }

  async save(address, button) {
    await this.during(button, async () => {
      let answer = await fetch(address, { method: "HEAD", signal: this.ending.signal });
      if (!answer.ok) answer = await fetch(address, { signal: AbortSignal.any([this.ending.signal, AbortSignal.timeout(30000)]) });
      if (!answer.ok) throw new Error(await sentence(answer));
      h("a", { href: address, download: "" }).click();
      this.say("The download has started: your browser shows its progress, and whether it failed.");
    });
  }

  /** Do the work of a button, which is disabled meanwhile, and say why if it fails. */
  async during(button, work) {
    const focused = this.root.activeElement === button;
    button.disabled = true;
    try {
      await work();
    } catch (error) {
      this.say(error.message, "amber");
    } finally {
      button.disabled = false;
      if (focused && !this.root.activeElement) button.focus({ preventScroll: true });
    }
  }

  async verify(row, cell, button) {
    await this.during(button, async () => {
      this.say(`Hashing ${row.file} …`);
      try {
        const found = await this.ask("verify", { method: "POST", headers: { "Content-Type": "application/json" },
          body: JSON.stringify({ manifest: row.url, version: row.version }) });
        cell.replaceChildren(h("span", { class: "green", title: found.detail }, row.verified ? "✓ rows, SHA-256" : "✓ SHA-256"));
        this.say(`${row.file}: ${found.detail}`, "green");
      } catch (error) {
        cell.replaceChildren(h("span", { class: "amber", title: error.message }, "▲ no"));
        throw error;
      }
    });
  }
}

function tile(name, value, below, amber) {
  return h("div", { class: amber ? "tile amber" : "tile" }, h("dt", {}, name), h("dd", { class: "value" }, value), h("dd", { class: "muted" }, below));
}

/** The reason in an answer that failed. */
async function sentence(answer) {
  if (answer.status === 401) return "You are no longer logged in. Reload the page, and log in.";
  const found = await answer.json().catch(() => ({}));
  if (Array.isArray(found.detail)) return found.detail.map((one) => one.msg).join(" ");
  return found.detail ?? `Airflow answered with status ${answer.status}.`;
}
