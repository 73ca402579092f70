// The board: all jobs, the newest first.

import { FINAL, bar, done, percent, pill, rate } from "./bar.js";
import { ask, count, crew, date, duration, find, keep, make, note, number, poll, root, since, text } from "./page.js";

const STEP = 50;
const MOST = 500;

let limit = STEP;

function card(job) {
  const head = make("span", "head", make("span", "name"), make("span", "pill"), make("span", "number"));
  const parts = ["share", "bad", "pace", "left", "wait", "when"].map((name) => make("span", name));
  const link = make("a", "", head, make("span", "bar"), make("span", "foot", ...parts));
  link.href = new URL(`jobs/${job.id}`, root);
  return make("li", "", link);
}

function fill(element, job) {
  const part = (name) => element.querySelector(`.${name}`);
  const put = (name, words) => {
    part(name).hidden = !words;
    text(part(name), words);
  };
  text(part("name"), job.name);
  pill(part("pill"), job);
  text(part("number"), job.id);
  part("bar").setAttribute("aria-label", `Items of ${job.name} that are done`);
  bar(part("bar"), job);
  put("share", `${percent(job)} of ${count(job.total, "item")}`);
  put("bad", job.failed ? `${number(job.failed)} failed` : "");
  put("pace", done(job) && !job.stalled ? rate(job) : "");
  put("left", job.eta ? `${duration(-since(job.eta))} left${job.stages.length ? " in its stage" : ""}` : "");
  put("wait", job.stalled);
  put("when", FINAL.includes(job.state) ? `ended ${date(job.finished_at)}` : `since ${date(job.created_at)}`);
}

const again = poll(async () => {
  const [{ jobs, next }] = await Promise.all([ask(`api/jobs?limit=${limit}`), crew()]);
  keep(find("jobs"), jobs, (job) => job.id, card, fill);
  find("more").hidden = next === null || limit >= MOST;
  note(jobs.length ? "" : "No job yet. Submit one, and it appears here by itself.");
  return 900;
});

find("more").addEventListener("click", () => {
  limit = Math.min(limit + STEP, MOST);
  again();
});

document.addEventListener("visibilitychange", () => document.hidden || again());
