// A job's progress: a bar with a part for each state of its items, and the words for it.

import { make, number, text } from "./page.js";

// In the order of the bar, finished states first: the left part of the bar only ever grows.
export const STATES = ["succeeded", "skipped", "failed", "cancelled", "retrying", "running", "queued", "pending"];

export const FINAL = ["completed", "failed", "cancelled"];

// Rounded down: only a job that is done shows 100 %, and 99.96 % shows 99.9 %.
export function percent(job) {
  if (job.progress === 1) return "100 %";
  return `${(Math.floor(job.progress * 1000) / 10).toFixed(1)} %`;
}

export const done = (job) => job.succeeded + job.failed + job.skipped;

export function bar(element, job, label) {
  if (!element.firstChild) {
    element.setAttribute("role", "progressbar");
    element.setAttribute("aria-label", label);
    element.setAttribute("aria-valuemin", "0");
    element.setAttribute("aria-valuemax", "100");
    element.append(...STATES.map(segment));
  }
  element.setAttribute("aria-valuenow", String(Math.floor(job.progress * 100)));
  element.setAttribute("aria-valuetext", `${percent(job)}, ${number(done(job))} of ${number(job.total)} items`);
  for (const part of element.children) {
    const width = share(job, part.dataset.state);
    part.hidden = !width;
    part.style.width = `${100 * width}%`;
  }
}

// The share of the bar that a state has. Stages have equal parts of it, as they have of the percent: a stage without
// items yet leaves its part empty.
function share(job, state) {
  const stages = job.stages ?? [];
  if (stages.length) return stages.reduce((sum, stage) => sum + share(stage, state), 0) / stages.length;
  if (job.total) return job[state] / job.total;
  return state === "succeeded" ? job.progress : 0;
}

function segment(state) {
  const part = make("i");
  part.dataset.state = state;
  return part;
}

export function pill(element, job) {
  element.dataset.state = job.stopping ?? job.state;
  text(element, job.stopping ? "stopping" : job.state);
}

export function rate(job) {
  if (job.rate === null) return "–";
  const [pace, unit] = job.rate >= 0.1 || !job.rate ? [job.rate, "s"] : job.rate >= 0.1 / 60 ? [job.rate * 60, "min"] : [job.rate * 3600, "h"];
  return `${pace >= 100 ? number(Math.round(pace)) : pace.toFixed(1)}/${unit}`;
}

export function legendEntry(state) {
  return make("li", "", segment(state), make("b"), make("span", "", state));
}
