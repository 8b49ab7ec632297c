// The entry of an export.

import { exact, h, number, size } from "./dom.js";

/** The element for the answer of /details. */
export function details(found, actions) {
  const facts = [
    ["Manifest", h("code", {}, found.url)],
    ["Snapshot", `${exact(found.snapshot.taken_at)}, ${found.snapshot.server}` +
      (found.snapshot.wal_position ? `, WAL ${found.snapshot.wal_position}` : "")],
    ["Rows of", found.window ? `${exact(found.window[0])} to ${exact(found.window[1])}` : "the whole query"],
    ["Ordered by", found.unique_key ?? "the query's own order"],
    ["Compression", found.compression ?? "none"],
    found.spreadsheet_safe ? ["Spreadsheets", "text that looked like a formula begins with an added '"] : null,
    ["Query", h("code", {}, `SHA-256 ${found.query_sha256}`)],
    found.export_id ? ["Export", h("code", {}, found.export_id)] : null,
    found.console ? ["Object", h("a", { href: found.console, target: "_blank", rel: "noopener noreferrer" },
      "in the AWS console")] : null,
  ].filter(Boolean);
  return h("div", { class: "details" },
    h("section", {}, h("h2", {}, "Facts"), h("dl", { class: "facts" },
      facts.map(([term, value]) => [h("dt", {}, term), h("dd", {}, value)]))),
    h("section", {}, h("h2", {}, "Checks that ran"),
      h("ul", { class: "checks" }, found.checks.map((check) =>
        h("li", { class: check.passed ? null : "amber" }, check.passed ? "✓ " : "▲ ", check.text)))),
    h("section", {}, h("h2", {}, `Columns (${found.columns.length})`), h("div", { class: "scroll" },
      h("table", { class: "plain" },
        h("thead", {}, h("tr", {}, ["Name", "Type", "In the file"].map((name) => h("th", { scope: "col" }, name)))),
        h("tbody", {}, found.columns.map((column) => h("tr", {}, h("td", {}, h("code", {}, column.name)),
          h("td", {}, column.type || "–"), h("td", {}, masked(column.mask)))))))),
    h("section", {}, h("h2", {}, `Files (${found.files.length + found.more_files})`), h("div", { class: "scroll" },
      h("table", { class: "plain" },
        h("thead", {}, h("tr", {}, ["File", "Rows", "Size", "SHA-256", ""].map((name) =>
          h("th", { scope: "col", class: ["Rows", "Size"].includes(name) ? "right" : null }, name)))),
        h("tbody", {}, found.files.map((file, index) => h("tr", {}, h("td", {}, h("code", {}, file.name)),
          h("td", { class: "right" }, number(file.rows)), h("td", { class: "right" }, size(file.bytes)),
          h("td", {}, h("code", { class: "hash", title: file.sha256 }, file.sha256)),
          h("td", {}, found.may_download && h("button", { class: "quiet", "aria-label": `Download ${file.name}`,
            onclick: (event) => actions.download(found.url, index, file, event.currentTarget) }, "Download"))))))),
      found.more_files > 0 && h("p", { class: "muted" }, `and ${number(found.more_files)} more, which the manifest names`)),
    h("section", { class: "wide" }, h("h2", {}, "Load it"), loading(found.snippets, actions)));
}

function masked(mask) {
  const words = { hash: "hashed (HMAC-SHA-256)", redact: "redacted", drop: "dropped: not in the file" };
  return mask ? h("span", { class: "badge amber" }, words[mask]) : "unchanged";
}

/** Tabs of the tools, as WAI-ARIA describes them: arrows move between them. */
function loading(snippets, actions) {
  const names = Object.keys(snippets);
  const text = h("pre", { tabindex: 0, role: "tabpanel" });
  const tabs = names.map((name) => h("button", { role: "tab", class: "tab",
    onclick: () => choose(name),
    onkeydown: (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (by) choose(names[(names.indexOf(name) + by + names.length) % names.length], true);
    } }, name));
  const copy = h("button", { class: "quiet", onclick: () => actions.copy(text.textContent) }, "Copy");
  function choose(name, focus) {
    text.textContent = snippets[name];
    text.setAttribute("aria-label", `Lines that load it with ${name}`);
    tabs.forEach((tab, index) => {
      tab.setAttribute("aria-selected", names[index] === name);
      tab.tabIndex = names[index] === name ? 0 : -1;
      if (focus && names[index] === name) tab.focus();
    });
  }
  choose(names[0]);
  return h("div", {}, h("div", { class: "tabs" }, h("div", { role: "tablist", "aria-label": "Tools" }, tabs), copy), text);
}
