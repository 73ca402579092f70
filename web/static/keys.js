// Keyboard shortcuts. They are off inside fields and dialogs, and with Ctrl, Alt or Meta.

import { show } from "./forms.js";
import { root, togglePause } from "./live.js";

const PLACES = { j: "", w: "workers", q: "queues" };
const KEYS = [
  ["/", "search"], ["j k", "next and previous row"], ["Enter", "open the row"], ["x", "select the row"],
  ["p", "pause or resume the updates"], ["g j, g w, g q", "jobs, workers, queues"], ["?", "these keys"],
];
let gone = -Infinity;

const rows = () => [...document.querySelectorAll(".jobs .name, tbody tr td:first-child > a")];

function move(by) {
  const links = rows();
  const row = document.activeElement.closest("li, tr");
  const at = links.findIndex((link) => row?.contains(link));
  links[at === -1 ? 0 : Math.min(Math.max(at + by, 0), links.length - 1)]?.focus();
}

function help() {
  const table = document.createElement("dl");
  table.className = "table card";
  for (const [key, what] of KEYS) {
    const line = table.appendChild(document.createElement("div"));
    line.append(Object.assign(document.createElement("dt"), { textContent: key }), Object.assign(document.createElement("dd"), { textContent: what }));
  }
  show(table);
}

const ACTIONS = {
  "/": () => document.getElementById("search")?.select(),
  j: () => move(1),
  k: () => move(-1),
  x: () => document.activeElement.closest("li, tr")?.querySelector("input[type=checkbox]")?.click(),
  p: togglePause,
  g: () => (gone = performance.now()),
  "?": help,
};

export function keys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input:not([type=checkbox]), select, textarea, dialog")) return;
    const place = performance.now() - gone < 1000 ? PLACES[event.key] : undefined;
    const action = place !== undefined ? () => document.location.assign(new URL(place, root)) : ACTIONS[event.key];
    if (!action) return;
    event.preventDefault();
    gone = -Infinity;
    action();
  });
}
