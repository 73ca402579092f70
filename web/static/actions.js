// The actions that a job offers, and the history of those that were done.

import { FINAL } from "./bar.js";
import { count, date, put, root } from "./page.js";

// Only a retry can be asked of a stage; every other action goes to its parent.
const open = (job) => !FINAL.includes(job.state) && !job.stopping && job.parent === null;
const hasUnmadeStage = (job, state) => job.state === state && job.stages.some((stage) => !stage.sealed && stage.state === state);

// `offered`: whether the job's page has a button for it; `question` is asked before, `done` called afterwards.
export const ACTIONS = [
  { name: "pause", path: "pause", tone: "", offered: (job) => open(job) && job.state !== "paused", label: () => "Pause" },
  { name: "resume", path: "resume", tone: "main", offered: (job) => open(job) && job.state === "paused", label: () => "Resume" },
  {
    name: "cancel", path: "cancel", tone: "danger", offered: open, label: () => "Cancel",
    question: (job) => `Cancel ${job.name}? What has not started never will, unless it is run again by hand.`,
  },
  {
    name: "retry", path: "retry", tone: "",
    offered: (job) => (job.failed > 0 || hasUnmadeStage(job, "failed")) && !job.stopping,
    label: (job) => (job.failed ? `Retry ${count(job.failed, "failed item")}` : "Make its stage again"),
  },
  {
    name: "rest", path: "retry", body: { states: ["cancelled"] }, tone: "",
    offered: (job) => (job.cancelled > 0 || hasUnmadeStage(job, "cancelled")) && !job.stopping,
    label: (job) => (job.cancelled ? `Run ${count(job.cancelled, "cancelled item")}` : "Go on with its stages"),
  },
  {
    name: "delete", path: "", method: "DELETE", tone: "danger", offered: (job) => FINAL.includes(job.state), label: () => "Delete",
    question: (job) => `Delete ${job.name}, with its ${count(job.total, "item")}, results, errors and history? Nothing brings them back.`,
    done: () => document.location.assign(root),
  },
];

// Limits by the names that the API and the command line have for them; a limit that was removed is `none`.
export function limits(given) {
  const value = (name, set) => (set && ["at", "deadline"].includes(name) ? date(set) : set ?? "none");
  return Object.entries(given).map(([name, set]) => `${name} ${value(name, set)}`).join(", ");
}

function retried({ count: items, states, items: chosen, error }) {
  const which = [states?.join(", "), chosen && `of ${count(chosen.length, "chosen item")}`, error].filter(Boolean).join(", ");
  return `${count(items, "item")}${which ? ` (${which})` : ""}`;
}

const WORDS = { limit: limits, retry: retried };

export function fillAction(row, { action, detail, who, via, done_at: time }) {
  const words = WORDS[action]?.(detail) ?? detail.reason;
  put(row, {
    ".what": words ? `${action}: ${words}` : action,
    ".aside": `${who || "somebody"}, by ${via}`,
    ".push": date(time),
    pre: detail.traceback,
  });
}
