// What may be said to a job, when, and how it is told afterwards.

import { FINAL } from "./bar.js";
import { count, date, make, root, text } from "./page.js";

// A stage is told nothing but what to retry: the rest is said to the whole.
const open = (job) => !FINAL.includes(job.state) && !job.stopping && job.parent === null;
const unmade = (job, state) => job.state === state && job.stages.some((stage) => !stage.sealed && stage.state === state);

export const ACTIONS = [
  {
    name: "pause", path: "pause", tone: "", fits: (job) => open(job) && job.state !== "paused", says: () => "Pause",
  },
  { name: "resume", path: "resume", tone: "main", fits: (job) => open(job) && job.state === "paused", says: () => "Resume" },
  {
    name: "cancel", path: "cancel", tone: "danger", fits: open, says: () => "Cancel",
    sure: (job) => `Cancel ${job.name}? What has not started never will, unless it is run again by hand.`,
  },
  {
    name: "retry", path: "retry", tone: "", fits: (job) => (job.failed > 0 || unmade(job, "failed")) && !job.stopping,
    says: (job) => (job.failed ? `Retry ${count(job.failed, "failed item")}` : "Make its stage again"),
  },
  {
    name: "rest", path: "retry", words: { states: ["cancelled"] }, tone: "",
    fits: (job) => (job.cancelled > 0 || unmade(job, "cancelled")) && !job.stopping,
    says: (job) => (job.cancelled ? `Run ${count(job.cancelled, "cancelled item")}` : "Go on with its stages"),
  },
  {
    name: "delete", path: "", method: "DELETE", tone: "danger", fits: (job) => FINAL.includes(job.state), says: () => "Delete",
    sure: (job) => `Delete ${job.name}, with its ${count(job.total, "item")}, results, errors and history? Nothing brings them back.`,
    then: () => document.location.assign(root),
  },
];

export function actionRow() {
  const line = make("div", "line", make("span", "what"), make("span", "aside"), make("span", "aside push"));
  return make("li", "", line, make("pre"));
}

// In the words by which they are said.
export function limits(given) {
  const time = (name, value) => (["at", "deadline"].includes(name) && value ? date(value) : value);
  return Object.entries(given).map(([name, value]) => `${name} ${time(name, value) ?? "none"}`).join(", ");
}

function retried({ count: items, states, items: chosen, error_type: error }) {
  const which = [states?.join(", "), chosen && `of ${count(chosen.length, "chosen item")}`, error].filter(Boolean).join(", ");
  return `${count(items, "item")}${which ? ` (${which})` : ""}`;
}

export function fillAction(row, action) {
  const { reason, traceback } = action.detail;
  const told = action.action === "limit" ? limits(action.detail) : action.action === "retry" ? retried(action.detail) : reason;
  text(row.querySelector(".what"), told ? `${action.action}: ${told}` : action.action);
  text(row.querySelector(".aside"), `${action.who || "somebody"}, by ${action.via}`);
  text(row.querySelector(".push"), date(action.done_at));
  const pre = row.querySelector("pre");
  text(pre, traceback);
  pre.hidden = !traceback;
}
