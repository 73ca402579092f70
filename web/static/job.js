// One job: where it stands, what is in hand, what went wrong.

import { FINAL, STATES, bar, done, legendEntry, percent, pill, rate } from "./bar.js";
import { ACTIONS, actionRow, fillAction, limits } from "./control.js";
import {
  ask, count, crew, date, duration, find, keep, make, note, number, poll, root, show, since, tell, text,
} from "./page.js";

const id = document.location.pathname.replace(/\/+$/, "").split("/").pop();
const SHOWN = 20;
// What is said in an item takes a tenth of a second to its row, and is to be seen within one.
const LIVE = 700;

let errorsOf = "";
let shown = null;

function headline(job) {
  document.title = `${percent(job)} ${job.name} – Callboard`;
  text(find("number"), job.id);
  text(find("name"), job.name);
  pill(find("state"), job);
  text(find("percent"), percent(job));
  text(find("done"), `${number(done(job))} of ${count(job.total, "item")}`);
  bar(find("bar"), job);
  const states = STATES.filter((state) => job[state]);
  keep(find("legend"), states, (state) => state, legendEntry, (entry, state) =>
    text(entry.querySelector("b"), number(job[state])));
}

// A stage leads to its parent, a parent to its stages.
function stages(job) {
  if (job.parent !== null && !find("whole")) {
    const whole = make("a", "", `${job.parent}`);
    whole.id = "whole";
    whole.href = new URL(`jobs/${job.parent}`, root);
    find("number").before(whole, " / ");
  }
  find("stages-part").hidden = !job.stages.length;
  keep(find("stages"), job.stages, (stage) => stage.job, stageRow, fillStage);
}

function stageRow(stage) {
  const link = make("a", "what");
  link.href = new URL(`jobs/${stage.job}`, root);
  const line = make("div", "line", link, make("span", "pill"), make("span", "aside push"));
  const progress = make("div", "bar");
  progress.setAttribute("aria-label", `Items of ${stage.name} that are done`);
  return make("li", "", line, progress);
}

function fillStage(row, stage) {
  text(row.querySelector(".what"), stage.name);
  pill(row.querySelector(".pill"), stage);
  const parts = STATES.filter((state) => stage[state]).map((state) => `${number(stage[state])} ${state}`);
  text(row.querySelector(".push"), parts.join(", ") || (stage.sealed ? "no items" : "not made yet"));
  bar(row.querySelector(".bar"), stage);
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

function fill(element, words) {
  text(element, words);
  element.hidden = !words;
}

function itemLink(job, item) {
  const link = make("a", "mono", `item ${item}`);
  link.href = new URL(`api/jobs/${job}/items/${item}`, root);
  return link;
}

function runningRow(item) {
  const line = make("div", "line", itemLink(item.job, item.item), make("span", "what"), make("span", "aside push"));
  const gauge = make("div", "gauge line", make("progress"), make("span", "aside"));
  return make("li", "", line, make("span", "aside step-of"), gauge, make("pre"));
}

function fillRunning(row, item) {
  text(row.querySelector(".what"), item.key ?? item.actor);
  text(row.querySelector(".push"), `worker ${item.worker}, ${duration(since(item.started_at))}`);
  fill(row.querySelector(".step-of"), item.step);
  fillGauge(row.querySelector(".gauge"), item.progress);
  fill(row.querySelector("pre"), item.stack);
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
  text(gauge.querySelector(".aside"), words);
}

async function running(job) {
  const whose = job.stages.length ? job.stages.find((stage) => stage.running)?.job : id;
  const { items } = job.running ? await ask(`api/jobs/${whose}/items?state=running&limit=${SHOWN}`) : { items: [] };
  find("running-part").hidden = !items.length;
  keep(find("running"), items, (item) => `${item.job}-${item.item}-${item.attempt}`, runningRow, fillRunning);
}

function errorRow(error) {
  const line = make("div", "line", make("span", "count"), make("span", "what mono"), make("span", "aside push"));
  return make("li", "", line, make("pre"), make("div", "line aside", make("span", "mono"), itemLink(error.job, error.item)));
}

function fillError(row, error) {
  const lost = error.failed ? `${count(error.failed, "item")} failed by it, ` : "";
  text(row.querySelector(".count"), `${number(error.count)} ×`);
  text(row.querySelector(".what"), error.kind === "failed" ? error.type : `${error.type} (${error.kind.replace("_", " ")})`);
  text(row.querySelector(".push"), `${lost}last at ${date(error.last_at)}`);
  fill(row.querySelector("pre"), error.message);
  text(row.querySelector(".aside .mono"), error.place);
}

async function errors(job) {
  const now = `${job.failed}-${job.retries}-${job.crashes}`;
  if (now === errorsOf) return;
  const { errors: groups } = await ask(`api/jobs/${id}/errors`);
  find("errors-part").hidden = !groups.length;
  keep(find("errors"), groups, (e) => JSON.stringify([e.job, e.kind, e.type, e.place]), errorRow, fillError);
  errorsOf = now;
}

async function act(action, button) {
  const job = shown;
  const keyboard = button.matches(":focus-visible");
  if (action.sure && !confirm(action.sure(job))) return;
  button.disabled = true;
  try {
    await tell(`api/jobs/${id}/${action.path}`.replace(/\/$/, ""), action.words, action.method);
    show("refused", "");
    if (action.then) return action.then();
  } catch (problem) {
    show("refused", problem.message);
  }
  button.disabled = false;
  await again();
  // The button may have gone with what it did: who came by keyboard goes on at the next one.
  if (keyboard) (button.isConnected ? button : find("acts").firstChild ?? find("name")).focus();
}

function control(job) {
  shown = job;
  keep(find("acts"), ACTIONS.filter((action) => action.fits(job)), (action) => action.name, actButton, (button, action) =>
    text(button, action.says(job)));
}

function actButton(action) {
  const button = make("button", `act ${action.tone}`);
  button.type = "button";
  button.addEventListener("click", () => act(action, button));
  return button;
}

async function history() {
  const { actions } = await ask(`api/jobs/${id}/actions?limit=${SHOWN}`);
  find("actions-part").hidden = !actions.length;
  keep(find("actions"), actions, (action) => action.id, actionRow, fillAction);
}

function callbackRow() {
  const line = make("div", "line", make("span", "what"), make("span", "aside"), make("span", "aside push"));
  return make("li", "", line, make("pre"));
}

function fillCallback(row, callback) {
  const tries = callback.tries > 1 ? `, ${count(callback.tries, "try").replace("trys", "tries")}` : "";
  const when = callback.state === "waiting" ? `, due ${date(callback.due_at)}` : ` ${date(callback.finished_at)}`;
  text(row.querySelector(".what"), callback.target);
  text(row.querySelector(".aside"), `when it was ${callback.on}`);
  text(row.querySelector(".push"), `${callback.state}${when}${tries}`);
  fill(row.querySelector("pre"), callback.error);
}

async function callbacks() {
  const { callbacks: called } = await ask(`api/jobs/${id}/callbacks`);
  find("callbacks-part").hidden = !called.length;
  keep(find("callbacks"), called.slice(0, SHOWN), (callback) => callback.id, callbackRow, fillCallback);
}

const again = poll(async () => {
  const [job] = await Promise.all([ask(`api/jobs/${id}`), crew()]);
  headline(job);
  stages(job);
  facts(job);
  control(job);
  note("");
  find("job").hidden = false;
  await Promise.all([running(job), errors(job), callbacks(), history()]);
  return FINAL.includes(job.state) ? 5000 : LIVE;
});

document.addEventListener("visibilitychange", () => document.hidden || again());
