// Keeps a page up to date: numbers come by an event stream, lists as parts of the page; both by polling if no stream works.
// There is one stream per tab, closed while the tab is hidden.

import { morph } from "./morph.js";
import { FINAL, count, fill, number, percent, shownState, tell, text } from "./words.js";

export const root = new URL(document.documentElement.dataset.root, document.location.href);
const ANSWER_MS = 5000;
const POLL_MS = 1000;
const FINAL_POLL_MS = 5000;
const LOST_POLL_MS = 3000;
const PART_MS = 2000;
const OVERTAKEN_MS = 30000;
const STREAM_AGAIN_MS = 5000;
// A stream sends an event at once, and then at least every 15 s; otherwise a proxy buffers it, or the connection is broken.
const SILENT_MS = 40000;
const SILENT_AGAIN_MS = 60000;
// A browser opens at most six connections to a server: on a page with more frames than these, the frames poll.
const MOST_STREAMS = 2;
const SPEAK_MS = 10000;
// If the first request of a page is refused, for example by a proxy that passes only pages, it is refused after each reload
// too. So reload at most this often.
const RELOAD_MS = 30000;

// The address of a shared page has a token, which its requests need too.
const token = new URLSearchParams(document.location.search).get("token");

function api(path) {
  const url = new URL(path, root);
  if (token) url.searchParams.set("token", token);
  return url;
}

const pill = document.getElementById("live") ?? document.createElement("button");  // an embedded page has no pill
const page = document.querySelector("[data-poll]");
const onScreen = new Set();
const stale = new Set();
const watched = new Map();
const made = new Map();
let source = null;
let timer = 0;
let again = 0;
let streamAgain = 0;
let silence = 0;
let paused = false;
let latest = null;
let shown = 0;
let overtaken = 0;  // until when an older state may still arrive
let refreshed = 0;
let refreshing = false;
let spoken = ["", 0];
let leaving = false;
let answered = false;

// The states of the pill: live, paused, reconnecting in n seconds. Without a connection the page is grey.
function connected(yes) {
  const state = paused ? "paused" : yes ? "live" : "reconnecting";
  const seconds = Math.ceil((again - performance.now()) / 1000);
  pill.dataset.live = state;
  text(pill, state === "reconnecting" && seconds > 0 ? `${state} in ${seconds} s` : state);
  document.body.classList.toggle("lost", state === "reconnecting");
}

// The server did not answer, or answered with status 5xx.
export class Lost extends Error {}

// Sends a request and reads the whole answer, because the connection may break in the middle.
export async function ask(url, options = {}) {
  let answer, body;
  try {
    answer = await fetch(url, { signal: AbortSignal.timeout(ANSWER_MS), ...options });
    body = await answer.text();
  } catch (error) {
    throw new Lost(error.message);
  }
  if (answer.status >= 500) throw new Lost(`the server answered ${answer.status}`);
  return { ok: answer.ok, status: answer.status, url: answer.url, kind: answer.headers.get("content-type") ?? "", body };
}

// Reads the data of the page. If it was deleted, or the login refuses it or redirects the browser, reloads the page and
// returns nothing. An answer of another type than `kind` comes from a proxy, for example during a deploy of the web app.
async function read(url, kind) {
  const { ok, status, kind: said, body } = await ask(url, { redirect: "manual" });  // a redirect then has status 0
  const own = said.startsWith(ok ? kind : "application/problem+json");
  if (ok && own) return body;
  const refused = [0, 401, 403].includes(status) && (answered || performance.now() > RELOAD_MS);
  if (!ok && (own || refused)) return reload();
  throw new Lost(`a proxy answered ${status}`);
}

// Opens another page.
export function leave(url) {
  leaving = true;
  document.location.assign(url);
}

// Reloads an outdated page, unless an action is in progress: it opens the next page itself.
function reload() {
  if (!leaving && !document.querySelector("form[aria-busy]")) document.location.reload();
}

// Runs requests to the server, and shows whether the connection is lost.
async function attempt(work) {
  try {
    await work();
    connected(true);
    return true;
  } catch (error) {
    if (!(error instanceof Lost)) throw error;
    connected(false);
    return false;
  }
}

const mayStream = () => page?.dataset.events && performance.now() >= streamAgain && (parent === window || parent.length <= MOST_STREAMS);

function start() {
  stop();
  connected(true);
  if (paused || document.hidden) return;
  if (mayStream()) stream();
  else if (page?.id === "problem") wait();
  else if (page) poll();
  for (const part of document.querySelectorAll("[data-every]")) stale.add(part.id);
}

function stop() {
  source?.close();
  source = null;
  clearTimeout(timer);
  clearTimeout(silence);
}

const EVENTS = {
  job: (found) => attempt(() => takeJob(found)),
  jobs: (found) => attempt(() => takeJobs(found)),
  resync: (found) => attempt(() => takeJobs(found)),
  problem: ({ status }) => (status < 500 ? reload() : connected(false)),
  alive: () => {},
  gone: reload,
  end: poll,
};

function stream() {
  source = new EventSource(api(page.dataset.events));
  source.onopen = () => connected(true);
  source.onerror = () => pollFor(STREAM_AGAIN_MS);
  for (const [name, act] of Object.entries(EVENTS)) {
    source.addEventListener(name, (event) => {
      answered = true;
      hear(SILENT_MS);
      act(JSON.parse(event.data));
    });
  }
  hear(ANSWER_MS);
}

function hear(within) {
  clearTimeout(silence);
  silence = setTimeout(() => pollFor(SILENT_AGAIN_MS), within);
}

function pollFor(span) {
  streamAgain = performance.now() + span;
  poll();
}

async function poll() {
  stop();
  let pause = POLL_MS;
  const there = await attempt(async () => {
    if (page.id === "problem") {
      await ask(document.location.href, { method: "HEAD", redirect: "manual" });
      return reload();
    }
    const body = await read(api(page.dataset.poll), "application/json");
    if (body === undefined) return;
    answered = true;
    const found = JSON.parse(body);
    if (FINAL.includes(found.state)) pause = FINAL_POLL_MS;
    found.jobs ? takeJobs(found) : takeJob(found);
  });
  if (paused || document.hidden) return;
  if (there && pause === POLL_MS && mayStream()) start();
  else if (there) timer = setTimeout(poll, pause);
  else wait();
}

function wait() {
  timer = setTimeout(poll, LOST_POLL_MS);
  again = performance.now() + LOST_POLL_MS;
  connected(false);
}

function takeJob(job) {
  // An older state than the shown one is ignored. If it still comes later, the clock of the database was set back.
  if (Date.parse(job.updated_at) < shown && performance.now() < overtaken) return;
  latest = job;
  fill(document, job);
  document.title = `${percent(job)} ${job.name} – Callboard`;
  for (const id of moved(job)) stale.add(id);
  speak(`${shownState(job)}, ${10 * Math.floor(job.progress * 10)} %`);
  tell(document);
  refreshStale();
}

// Returns the parts whose watched fields have changed.
function moved(job) {
  const found = [...document.querySelectorAll("[data-watch]")].filter((part) => {
    const now = JSON.stringify(part.dataset.watch.split(" ").map((name) => job[name]));
    const before = watched.get(part.id);
    watched.set(part.id, now);
    return before !== now;
  });
  return found.map((part) => part.id);
}

// Rows are updated in place; new jobs wait behind a link, so that nothing moves under the pointer.
function takeJobs({ jobs, order = jobs.map((job) => job.id) }) {
  const shownRows = new Map([...document.querySelectorAll("[data-job]")].map((row) => [Number(row.dataset.job), row]));
  for (const job of jobs) if (shownRows.has(job.id)) fill(shownRows.get(job.id), job);
  const newest = Math.max(0, ...[...document.querySelectorAll("#jobs [data-job]")].map((row) => Number(row.dataset.job)));
  const waiting = order.filter((id) => id > newest);
  tell(document);
  const more = document.getElementById("more");
  if (waiting.length && !newest) return refresh(["jobs"]);  // an empty list can't move
  more.hidden = !waiting.length;
  text(more.firstElementChild, `${waiting.length === order.length ? "more than " : ""}${number(waiting.length)} new`);
}

function speak(words) {
  const [last, at] = spoken;
  if (last === words || performance.now() - at < SPEAK_MS) return;
  if (last) text(document.getElementById("said"), words);
  spoken = [words, performance.now()];
}

const allParts = () => [...document.querySelectorAll("[data-part]")].map((part) => part.id);
const isShown = (id) => onScreen.has(id) || document.getElementById(id)?.hidden;

function refreshStale() {
  const wanted = [...stale].filter(isShown);
  if (!wanted.length || paused || document.hidden || performance.now() - refreshed < PART_MS) return;
  refresh(wanted);
}

// Renders parts of the page again.
export async function refresh(ids) {
  if (refreshing || !ids.length) return;
  refreshing = true;
  refreshed = performance.now();
  for (const id of ids) stale.delete(id);
  const url = new URL(document.location.href);
  for (const id of ids) url.searchParams.append("part", id);
  const there = await attempt(async () => {
    const body = await read(url, "text/html");
    if (body !== undefined) take(body);
  });
  if (!there) for (const id of ids) stale.add(id);
  refreshing = false;
}

function take(html) {
  const parts = new DOMParser().parseFromString(html, "text/html").body;
  tell(parts);
  for (const part of [...parts.children]) {
    const old = document.getElementById(part.id);
    const at = Date.parse(part.dataset.updated);
    if (at > shown) [shown, overtaken] = [at, performance.now() + OVERTAKEN_MS];
    if (latest && at <= Date.parse(latest.updated_at)) fill(part, latest);
    if (old) morph(old, part);
    made.set(part.id, performance.now());
  }
  tell(document);
}

function tick() {
  tell(document);
  if (pill.dataset.live === "reconnecting") connected(false);
  for (const part of document.querySelectorAll("[data-every]")) {
    if (performance.now() - (made.get(part.id) ?? 0) > 1000 * Number(part.dataset.every)) stale.add(part.id);
  }
  refreshStale();
}

export function refreshAll() {
  refreshing = false;
  return refresh(allParts());
}

export function togglePause() {
  paused = !paused;
  paused ? (stop(), connected(true)) : start();
}

export function live() {
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) isIntersecting ? onScreen.add(target.id) : onScreen.delete(target.id);
    refreshStale();
  });
  for (const part of document.querySelectorAll("[data-part]")) {
    seen.observe(part);
    made.set(part.id, performance.now());
  }
  const data = document.getElementById("data");
  if (data) {
    const job = JSON.parse(data.textContent);
    [shown, overtaken] = [Date.parse(job.updated_at), performance.now() + OVERTAKEN_MS];
    moved(job);
  }
  pill.hidden = !document.querySelector("[data-part], [data-poll]");
  pill.addEventListener("click", togglePause);
  addEventListener("pageshow", ({ persisted }) => { if (persisted) leaving = false; });  // the browser went back to this page
  document.addEventListener("visibilitychange", () => (document.hidden ? stop() : start()));
  setInterval(tick, 1000);
  start();
}
