// The board: all jobs, the newest first.

import { FINAL, bar, done, percent, pill, rate } from "./bar.js";
import { count, date, duration, find, get, keep, link, make, number, poll, put, show, showWorkers, since, spans } from "./page.js";

const PAUSE_MS = 900;
const STEP = 50;
const MOST = 500;
const STANDING = 20;

let limit = STEP;

function card(job) {
  const head = make("span", "head", ...spans("name", "pill", "number"));
  const foot = make("span", "foot", ...spans("share", "bad", "pace", "left", "wait", "when"));
  const card = link(`jobs/${job.id}`);
  card.append(head, make("span", "bar"), foot);
  return make("li", "", card);
}

function fill(element, job) {
  pill(element.querySelector(".pill"), job);
  bar(element.querySelector(".bar"), job, `Items of ${job.name} that are done`);
  put(element, {
    ".name": job.name,
    ".number": job.id,
    ".share": `${percent(job)} of ${count(job.total, "item")}`,
    ".bad": job.failed ? `${number(job.failed)} failed` : "",
    ".pace": done(job) && !job.stalled ? rate(job) : "",
    ".left": job.eta ? `${duration(-since(job.eta))} left${job.stages.length ? " in its stage" : ""}` : "",
    ".wait": job.stalled,
    ".when": FINAL.includes(job.state) ? `ended ${date(job.finished_at)}` : `since ${date(job.created_at)}`,
  });
}

const update = poll(async () => {
  const [{ jobs, next }, { jobs: standing }] = await Promise.all([
    get(`api/jobs?limit=${limit}&standing=false`), get(`api/jobs?limit=${STANDING}&standing=true`), showWorkers(),
  ]);
  keep(find("jobs"), jobs, (job) => job.id, card, fill);
  keep(find("standing"), standing, (job) => job.id, card, fill);
  find("standing-part").hidden = !standing.length;
  find("more").hidden = next === null || limit >= MOST;
  show("note", jobs.length || standing.length ? "" : "No job yet. Submit one, and it appears here by itself.");
  return PAUSE_MS;
});

find("more").addEventListener("click", () => {
  limit = Math.min(limit + STEP, MOST);
  update();
});
