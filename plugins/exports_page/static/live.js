// The form of orders.csv: the table as it is now.

import { h } from "./dom.js";

/** The form, with a box for each of `statuses`; `page.save` downloads the file. */
export function live(page, api, statuses) {
  const from = h("input", { type: "datetime-local", id: "from", step: 1 });
  const to = h("input", { type: "datetime-local", id: "to", step: 1 });
  const boxes = statuses.map((name) => h("input", { type: "checkbox", value: name, id: `status-${name}` }));
  const button = h("button", { type: "submit" }, "Download orders.csv");
  const time = (input) => (input.value ? `${input.value.length === 16 ? `${input.value}:00` : input.value}+00:00` : null);
  const form = h("form", { onsubmit: (event) => {
    event.preventDefault();
    const query = new URLSearchParams();
    if (time(from)) query.append("created_from", time(from));
    if (time(to)) query.append("created_to", time(to));
    for (const box of boxes) if (box.checked) query.append("status", box.value);
    page.save(new URL(`orders.csv?${query}`, api), button);
  } },
  h("label", { for: "from" }, "Created from (UTC) ", from),
  h("label", { for: "to" }, "Created before (UTC) ", to),
  h("fieldset", {}, h("legend", {}, "Statuses (none: all)"),
    boxes.map((box) => h("label", { for: box.id }, box, ` ${box.value}`))),
  button);
  return h("details", { class: "live" }, h("summary", {}, "Orders as they are now"),
    h("p", { class: "muted" }, "One snapshot of the table, streamed. If the download fails, your browser says so."), form);
}
