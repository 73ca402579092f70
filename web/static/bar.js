// A job's progress: one bar of the states its items are in, and its words.

import { make, number, text } from "./page.js";

// From what is done to what is to come: the left part of the bar only ever grows.
export const STATES = ["succeeded", "skipped", "failed", "cancelled", "retrying", "running", "queued", "pending"];

export const FINAL = ["completed", "failed", "cancelled"];

// Nothing is called done before it is: 99.96 % stays 99.9 %.
export function percent(job) {
  if (job.progress === 1) return "100 %";
  return `${(Math.floor(job.progress * 1000) / 10).toFixed(1)} %`;
}

export const done = (job) => job.succeeded + job.failed + job.skipped;

export function bar(element, job) {
  if (!element.firstChild) {
    element.setAttribute("role", "progressbar");
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

// Of the bar, for one state. Stages have equal parts, as in the percent: one that isn't made yet leaves its part empty.
function share(job, state) {
  const parts = job.stages ?? [];
  if (parts.length) return parts.reduce((sum, stage) => sum + share(stage, state), 0) / parts.length;
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
  return `${job.rate >= 100 ? number(Math.round(job.rate)) : job.rate.toFixed(1)}/s`;
}

export function legendEntry(state) {
  return make("li", "", segment(state), make("b"), make("span", "", state));
}
