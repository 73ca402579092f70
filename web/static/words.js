// Numbers, times and the progress of a job as text, in the same words as web/pages/words.py.

export const FINAL = ["completed", "failed", "cancelled"];
// In the order of the bar.
const STATES = ["succeeded", "skipped", "failed", "cancelled", "retrying", "running", "queued", "pending"];

export const number = (value) => (value === null ? "–" : value.toLocaleString("en"));
export const count = (value, noun) => `${number(value)} ${noun}${value === 1 ? "" : "s"}`;

export const percent = (job) => (job.progress === 1 ? "100 %" : `${(Math.floor(job.progress * 1000) / 10).toFixed(1)} %`);
export const shownState = ({ stopping, standing, state, sealed }) => (stopping ? "stopping" : standing && state === "running" && !sealed ? "open" : state);
const done = (job) => job.succeeded + job.failed + job.skipped;

function rate({ rate: value }) {
  if (value === null) return "–";
  const [pace, unit] = value >= 0.1 || !value ? [value, "s"] : value >= 0.1 / 60 ? [value * 60, "min"] : [value * 3600, "h"];
  return `${pace >= 100 ? number(Math.round(pace)) : pace.toFixed(1)}/${unit}`;
}

export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

// Milliseconds by which the browser's clock is behind the server's, from the time in the page. A small difference is the
// time that the answer took.
const FEW_MS = 5000;
const [load] = performance.getEntriesByType("navigation");
const behind = Date.parse(document.documentElement.dataset.now) - (Date.now() - performance.now() + (load?.responseStart ?? 0));
const now = () => Date.now() + (Math.abs(behind) > FEW_MS ? behind : 0);

const since = (time) => (now() - Date.parse(time)) / 1000;

function left(job) {
  if (job.eta) return duration(-since(job.eta));
  if (!FINAL.includes(job.state) || !job.started_at) return "";
  const took = Math.max(Date.parse(job.finished_at) - Date.parse(job.started_at), 0);
  if (took < 1000) return `${took} ms`;
  return took < 10000 ? `${(took / 1000).toFixed(1)} s` : duration(took / 1000);
}

function mean(job) {
  if (FINAL.includes(job.state) || !job.started_at || !done(job)) return "";
  const seconds = since(job.started_at);
  return seconds > 0 ? rate({ rate: done(job) / seconds }) : "";
}

function budget({ limits: { max_failures: most }, ...job }) {
  const failed = String(most).includes("%") ? `${((100 * job.failed) / Math.max(done(job), 1)).toFixed(1)} %` : number(job.failed);
  return `${failed} failed, ${typeof most === "number" ? number(most) : most.replace("%", " %")} allowed`;
}

const TIME = /\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z/g;

// A time in the chosen time zone, without the day if it is today.
function shortly(time) {
  const [when, now] = [moment(time), moment()];
  return when.slice(0, 10) === now.slice(0, 10) ? when.slice(11) : when.slice(0, 16);
}

// Values of a job that a page shows and that are not plain fields.
const SHOWN = {
  percent, rate, mean, budget, left, open: (job) => !FINAL.includes(job.state), over: (job) => FINAL.includes(job.state), done: (job) => number(done(job)), items: (job) => count(job.total, "item"),
  pace: (job) => (done(job) && !job.stalled && job.rate ? rate(job) : ""), since: (job) => (job.finished_at ? "ended" : "since"), when: (job) => job.finished_at ?? job.created_at,
  stalled: (job) => (job.stalled ?? "").replace(TIME, shortly), eta: (job) => job.eta ?? "",
};

// Writes the values of a job into the nodes that show them.
export function fill(part, job) {
  for (const node of part.querySelectorAll("[data-of]")) {
    const name = node.dataset.of;
    if (node.tagName === "TIME") node.dateTime = SHOWN[name](job);
    else text(node, SHOWN[name] ? SHOWN[name](job) || "–" : number(job[name]));
  }
  for (const node of part.querySelectorAll("[data-when]")) {
    const name = node.dataset.when;
    node.hidden = !(SHOWN[name] ? SHOWN[name](job) : job[name]) && !node.hasAttribute("aria-current");
  }
  for (const line of part.querySelectorAll("svg[data-rates]")) draw(line, job);
  for (const bar of part.querySelectorAll("svg[data-bar]")) fillBar(bar, (job.stages ?? []).find((stage) => String(stage.job) === bar.dataset.bar) ?? job);
  for (const pill of part.querySelectorAll(".pill[data-pill]")) {
    pill.dataset.state = job.stopping ?? job.state;
    text(pill, shownState(job));
  }
}

// Number of rates in a spark line, milliseconds between two rates, and the time when each line was drawn.
const PACES = 24;
const SAMPLE_MS = 5000;
const drawn = new WeakMap();

// Draws the latest rates of an open job as a line. The page starts it from samples that are some seconds apart.
function draw(line, { state, rate }) {
  if (FINAL.includes(state)) return line.toggleAttribute("hidden", true);
  if (performance.now() - (drawn.get(line) ?? 0) < SAMPLE_MS) return;
  drawn.set(line, performance.now());
  const rates = [...line.dataset.rates.split(" ").filter(Boolean).map(Number), rate ?? 0].slice(-PACES);
  const top = Math.max(...rates) || 1;
  const points = rates.map((one, at) => `${((60 * at) / Math.max(rates.length - 1, 1)).toFixed(1)},${(15 - (14 * one) / top).toFixed(1)}`);
  line.dataset.rates = rates.join(" ");
  line.firstElementChild.setAttribute("points", points.join(" "));
  line.toggleAttribute("hidden", rates.length < 2);
}

function fillBar(bar, job) {
  let begin = 0;
  for (const state of STATES) {
    const part = bar.querySelector(`[data-state="${state}"]`);
    const width = 100 * share(job, state);
    part.setAttribute("x", `${begin.toFixed(3)}%`);
    part.setAttribute("width", width ? `${width.toFixed(3)}%` : "0%");
    begin += width;
  }
  bar.setAttribute("aria-valuenow", String(parseInt(percent(job))));
  bar.setAttribute("aria-valuetext", `${percent(job)}, ${number(done(job))} of ${count(job.total, "item")}`);
}

// All stages have equal parts of the bar, as in the percentage.
function share(job, state) {
  if (job.stages?.length) return job.stages.reduce((sum, stage) => sum + share(stage, state), 0) / job.stages.length;
  if (job.total) return job[state] / job.total;
  return state === "succeeded" ? job.progress : 0;
}

// An equal text is not written again, so nothing flickers, and a selection stays.
export function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

const store = (key, value) => { try { return value === undefined ? localStorage[key] : (localStorage[key] = value); } catch { return undefined; } };
const LOCAL = Intl.DateTimeFormat().resolvedOptions().timeZone;
export const zone = () => (store("callboard-zone") === "UTC" ? "UTC" : LOCAL);
export const toggleZone = () => store("callboard-zone", zone() === "UTC" ? "local" : "UTC");

// A time in the chosen time zone, to the second. Formatters are cached, because creating one is slow and all times of a
// page are updated each second.
const PARTS = { year: "numeric", month: "numeric", day: "numeric", hour: "numeric", minute: "numeric", second: "numeric" };
const formatters = {};

function moment(time = now()) {
  const timeZone = zone();
  return (formatters[timeZone] ??= new Intl.DateTimeFormat("sv", { ...PARTS, timeZone })).format(new Date(time));
}

// Updates times in the chosen time zone, and durations up to now.
export function tell(part) {
  for (const node of part.querySelectorAll("time[datetime]")) {
    if (!node.dateTime) continue;
    text(node, shortly(node.dateTime));
    node.title = `${moment(node.dateTime)} ${zone()}`;
  }
  for (const node of part.querySelectorAll("[data-since]")) text(node, duration(since(node.dataset.since)));
}
