// One job: its progress, its running items, its errors, and what may be done to it.

import { ACTIONS, fillAction, limits } from "./actions.js";
import { FINAL, STATES, bar, done, legendEntry, percent, pill, rate } from "./bar.js";
import {
  count, date, duration, find, get, keep, link, make, number, poll, put, send, show, showWorkers, since, spans, text,
} from "./page.js";

const id = document.location.pathname.replace(/\/+$/, "").split("/").pop();
const ROWS = 20;
// A step or progress of an item takes a tenth of a second to its row, and must be seen within one.
const PAUSE_MS = 700;
const FINAL_PAUSE_MS = 5000;

let errorsShown = "";
let shown = null;

// A part of the page with a row for each entry; it is hidden while there are none.
function section(name, entries, key, create, fill) {
  find(`${name}-part`).hidden = !entries.length;
  keep(find(name), entries, key, create, fill);
}

const row = (line, ...below) => make("li", "", make("div", "line", ...line), ...below);
const entryRow = () => row(spans("what", "aside", "aside push"), make("pre"));
const itemLink = (job, item) => link(`api/jobs/${job}/items/${item}`, "mono", `item ${item}`);

function headline(job) {
  document.title = `${percent(job)} ${job.name} – Callboard`;
  text(find("number"), job.id);
  text(find("name"), job.name);
  pill(find("state"), job);
  text(find("percent"), percent(job));
  text(find("done"), `${number(done(job))} of ${count(job.total, "item")}`);
  bar(find("bar"), job, "Items that are done");
  const states = STATES.filter((state) => job[state]);
  keep(find("legend"), states, (state) => state, legendEntry, (entry, state) => put(entry, { b: number(job[state]) }));
}

// A stage links to its parent, a parent to its stages.
function stages(job) {
  if (job.parent !== null && !find("whole")) {
    const whole = link(`jobs/${job.parent}`, "", `${job.parent}`);
    whole.id = "whole";
    find("number").before(whole, " / ");
  }
  section("stages", job.stages, (stage) => stage.job, stageRow, fillStage);
}

function stageRow(stage) {
  return row([link(`jobs/${stage.job}`, "what"), ...spans("pill", "aside push")], make("div", "bar"));
}

function fillStage(element, stage) {
  pill(element.querySelector(".pill"), stage);
  bar(element.querySelector(".bar"), stage, `Items of ${stage.name} that are done`);
  const parts = STATES.filter((state) => stage[state]).map((state) => `${number(stage[state])} ${state}`);
  put(element, { ".what": stage.name, ".push": parts.join(", ") || (stage.sealed ? "no items" : "not made yet") });
}

function facts(job) {
  const over = FINAL.includes(job.state);
  text(find("rate"), rate(job));
  text(find("left-label"), over ? "Took" : job.stages.length ? "Stage’s time left" : "Time left");
  const took = job.started_at && over ? (Date.parse(job.finished_at) - Date.parse(job.started_at)) / 1000 : null;
  const left = job.eta ? duration(-since(job.eta)) : "–";
  text(find("left"), took === null ? left : took < 10 ? `${took.toFixed(1)} s` : duration(took));
  text(find("retries"), number(job.retries));
  text(find("crashes"), number(job.crashes));
  show("stalled", job.stalled && `Stalled: ${job.stalled}`);
  show("hung", hung(job.hung));
  show("reason", job.reason);
  show("limits", Object.keys(job.limits).length && `Limits: ${limits(job.limits)}`);
  show("unkept", job.unkept && `Results not kept: ${number(job.unkept)}. Each of these items says why`);
  show("step", job.step && !over && `Now: ${job.step}`);
  const ended = job.finished_at ? `, ended ${date(job.finished_at)}` : "";
  const by = job.created_by ? ` by ${job.created_by}` : "";
  text(find("dates"), `Submitted ${date(job.created_at)}${by}${ended}`);
}

function hung(items) {
  if (!items.length) return "";
  const [first, ...others] = items;
  const more = others.length ? `, and ${others.length === 9 ? "at least " : ""}${count(others.length, "more item")}` : "";
  return `Hung: item ${first.item} on worker ${first.worker}, for ${duration(first.seconds)}, at ${first.place}${more}`;
}

async function running(job) {
  const owner = job.stages.length ? job.stages.find((stage) => stage.running)?.job : id;
  const { items } = job.running ? await get(`api/jobs/${owner}/items?state=running&limit=${ROWS}`) : { items: [] };
  section("running", items, (item) => `${item.job}-${item.item}-${item.attempt}`, runningRow, fillRunning);
}

function runningRow(item) {
  const gauge = make("div", "gauge line", make("progress"), make("span", "aside"));
  return row([itemLink(item.job, item.item), ...spans("what", "aside push")], make("span", "aside step-of"), gauge, make("pre"));
}

function fillRunning(element, item) {
  put(element, {
    ".what": item.key ?? item.actor,
    ".push": `worker ${item.worker}, ${duration(since(item.started_at))}`,
    ".step-of": item.step,
    pre: item.stack,
  });
  fillGauge(element.querySelector(".gauge"), item.progress);
}

function fillGauge(gauge, progress) {
  gauge.hidden = !progress;
  if (!progress) return;
  const { done, total } = progress;
  const bar = gauge.querySelector("progress");
  bar.hidden = total === null;
  if (total !== null) [bar.max, bar.value] = [total, done];
  const words = total === null ? `${number(done)} so far` : `${number(done)} of ${number(total)}`;
  bar.setAttribute("aria-label", words);
  put(gauge, { ".aside": words });
}

async function errors(job) {
  const now = `${job.failed}-${job.retries}-${job.crashes}`;
  if (now === errorsShown) return;
  const { errors: groups } = await get(`api/jobs/${id}/errors`);
  section("errors", groups, (e) => JSON.stringify([e.job, e.kind, e.type, e.place, e.pattern]), errorRow, fillError);
  errorsShown = now;
}

function errorRow(error) {
  const place = make("div", "line aside", make("span", "mono"), itemLink(error.job, error.item));
  return row(spans("count", "what mono", "aside push"), make("pre"), place);
}

function fillError(element, error) {
  const kind = error.kind === "failed" ? "" : ` (${error.kind.replace("_", " ")})`;
  const retried = error.retried ? `${count(error.retried, "attempt")} retried, ` : "";
  put(element, {
    ".count": `${number(error.failed)} failed`,
    ".what": `${error.type}${kind}${error.pattern === null ? ", other messages" : ""}`,
    ".push": `${retried}last at ${date(error.last_at)}`,
    pre: error.message,
    ".aside .mono": error.place,
  });
}

async function callbacks() {
  const { callbacks: rows } = await get(`api/jobs/${id}/callbacks`);
  section("callbacks", rows.slice(0, ROWS), (callback) => callback.id, entryRow, fillCallback);
}

function fillCallback(element, callback) {
  const tries = callback.tries > 1 ? `, ${count(callback.tries, "try").replace("trys", "tries")}` : "";
  const when = callback.state === "waiting" ? `, due ${date(callback.due_at)}` : ` ${date(callback.finished_at)}`;
  put(element, {
    ".what": callback.target,
    ".aside": `when it was ${callback.on}`,
    ".push": `${callback.state}${when}${tries}`,
    pre: callback.error,
  });
}

async function history() {
  const { actions } = await get(`api/jobs/${id}/actions?limit=${ROWS}`);
  section("actions", actions, (action) => action.id, entryRow, fillAction);
}

function buttons(job) {
  shown = job;
  keep(find("acts"), ACTIONS.filter((action) => action.offered(job)), (action) => action.name, actionButton, (button, action) =>
    text(button, action.label(job)));
}

function actionButton(action) {
  const button = make("button", `act ${action.tone}`);
  button.type = "button";
  button.addEventListener("click", () => act(action, button));
  return button;
}

async function act(action, button) {
  const byKeyboard = button.matches(":focus-visible");
  if (action.question && !confirm(action.question(shown))) return;
  button.disabled = true;
  try {
    await send(`api/jobs/${id}/${action.path}`.replace(/\/$/, ""), action.body, action.method);
    show("refused", "");
    if (action.done) return action.done();
  } catch (problem) {
    show("refused", problem.message);
  }
  button.disabled = false;
  await update();
  // The button may be gone, and the focus with it: somebody with a keyboard goes on at the next button.
  if (byKeyboard) (button.isConnected ? button : find("acts").firstChild ?? find("name")).focus();
}

const update = poll(async () => {
  const [job] = await Promise.all([get(`api/jobs/${id}`), showWorkers()]);
  headline(job);
  stages(job);
  facts(job);
  buttons(job);
  show("note", "");
  find("job").hidden = false;
  await Promise.all([running(job), errors(job), callbacks(), history()]);
  return FINAL.includes(job.state) ? FINAL_PAUSE_MS : PAUSE_MS;
});
