// What both pages are made of: polling that says when it is cut off, and elements that change only where they must.

export const root = new URL(document.documentElement.dataset.root, document.location.href);
export const find = (id) => document.getElementById(id);

const PATIENCE = 5000;

// A problem that the API answered: the connection works, and asking again may not help.
export class Refusal extends Error {}

export async function ask(path) {
  return answered(await fetch(new URL(path, root), { signal: AbortSignal.timeout(PATIENCE) }));
}

// Says something to a job. It is waited for: to move a million items may take a while.
export async function tell(path, words = {}, method = "POST") {
  const headers = { "Content-Type": "application/json" };
  return answered(await fetch(new URL(path, root), { method, headers, body: JSON.stringify(words) }));
}

async function answered(answer) {
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  const problem = await answer.json().catch(() => ({}));
  const text = problem.detail ?? `the server answered ${answer.status}`;
  throw answer.status < 500 ? new Refusal(text) : new Error(text);
}

// Calls `look` again and again; it returns the milliseconds until the next time. Gives a function to look at once,
// which waits for what it then sees: a look that is under way may have begun before what was just done.
export function poll(look) {
  let timer = 0;
  let last = Promise.resolve();
  const turn = () => {
    clearTimeout(timer);
    last = last.then(async () => {
      const pause = await attempt(look);
      clearTimeout(timer);
      timer = setTimeout(turn, pause);
    });
    return last;
  };
  turn();
  return turn;
}

async function attempt(look) {
  try {
    const pause = await look();
    connected(true);
    refused(false);
    return pause;
  } catch (error) {
    const refusal = error instanceof Refusal;
    if (refusal) note(error.message);
    connected(refusal);
    refused(refusal);
    return 1000;
  }
}

// What was shown before isn't so any more, as when its job was deleted: the note alone is.
function refused(yes) {
  document.body.classList.toggle("refused", yes);
}

function connected(yes) {
  const link = find("link");
  link.dataset.live = yes ? "yes" : "no";
  text(link, yes ? "live" : "connection lost");
  document.body.classList.toggle("lost", !yes);
}

export function note(words) {
  show("note", words);
}

// Others' text goes in as text, never as markup; an equal text is left alone, so nothing flickers or is read twice.
export function text(element, words) {
  const value = String(words ?? "");
  if (element.textContent !== value) element.textContent = value;
}

export function show(id, words) {
  const element = find(id);
  element.hidden = !words;
  text(element, words);
}

export function make(tag, name, ...inside) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...inside);
  return element;
}

// Keeps one child of `list` for each entry, in order, made once and then only filled anew.
export function keep(list, entries, key, create, fill) {
  const present = new Map([...list.children].map((child) => [child.dataset.key, child]));
  entries.forEach((entry, place) => {
    const name = String(key(entry));
    let child = present.get(name);
    present.delete(name);
    if (!child) {
      child = create(entry);
      child.dataset.key = name;
    }
    if (list.children[place] !== child) list.insertBefore(child, list.children[place] ?? null);
    fill(child, entry);
  });
  for (const gone of present.values()) gone.remove();
}

export async function crew() {
  const { workers } = await ask("api/workers?state=alive&limit=500");
  const threads = workers.reduce((sum, worker) => sum + worker.threads, 0);
  const releases = [...new Set(workers.map((worker) => worker.release || "unnamed"))].sort();
  const mixed = releases.length > 1 ? `, releases ${releases.join(" and ")}` : "";
  text(find("crew"), workers.length ? `${count(workers.length, "worker")}, ${count(threads, "thread")}${mixed}` : "no worker alive");
}

export const number = (value) => value.toLocaleString("en");
export const count = (value, word) => `${number(value)} ${word}${value === 1 ? "" : "s"}`;

export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

export const since = (time) => (Date.now() - Date.parse(time)) / 1000;

// The day is said only when it isn't today.
export function date(time) {
  const when = new Date(time);
  const today = when.toDateString() === new Date().toDateString();
  return when.toLocaleString(undefined, { ...(today ? {} : { dateStyle: "medium" }), timeStyle: "medium" });
}
