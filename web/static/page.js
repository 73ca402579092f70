// What both pages use: requests, polling that shows a lost connection, and elements that change only where they must.

export const root = new URL(document.documentElement.dataset.root, document.location.href);
export const find = (id) => document.getElementById(id);

const ANSWER_MS = 5000;
const RETRY_MS = 1000;

// A problem that the API answered: the connection works, and the same request may fail again.
export class Refusal extends Error {}

// Reads a path of the API.
export async function get(path) {
  return parsed(await fetch(new URL(path, root), { signal: AbortSignal.timeout(ANSWER_MS) }));
}

// Changes something. It has no time limit: to change a million items may take a while.
export async function send(path, body = {}, method = "POST") {
  const headers = { "Content-Type": "application/json" };
  return parsed(await fetch(new URL(path, root), { method, headers, body: JSON.stringify(body) }));
}

async function parsed(answer) {
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  const problem = await answer.json().catch(() => ({}));
  const detail = problem.detail ?? `the server answered ${answer.status}`;
  throw answer.status < 500 ? new Refusal(detail) : new Error(detail);
}

// Calls `update` again and again; it returns the milliseconds to the next call. Returns a function that calls it at once
// and after any call under way, which may have read before the latest change. A page that is shown again updates at once.
export function poll(update) {
  let timer = 0;
  let last = Promise.resolve();
  const turn = () => {
    clearTimeout(timer);
    last = last.then(async () => {
      const pause = await attempt(update);
      clearTimeout(timer);
      timer = setTimeout(turn, pause);
    });
    return last;
  };
  document.addEventListener("visibilitychange", () => document.hidden || turn());
  turn();
  return turn;
}

async function attempt(update) {
  try {
    const pause = await update();
    connected(true, false);
    return pause;
  } catch (error) {
    const refused = error instanceof Refusal;
    if (refused) show("note", error.message);
    connected(refused, refused);
    return RETRY_MS;
  }
}

// A refused page shows its note alone: the rest is not true any more, as when the job was deleted.
function connected(yes, refused) {
  const link = find("link");
  link.dataset.live = yes ? "yes" : "no";
  text(link, yes ? "live" : "connection lost");
  document.body.classList.toggle("lost", !yes);
  document.body.classList.toggle("refused", refused);
}

// Values go in as text, never as markup. An equal text is left alone, so nothing flickers or is read aloud twice.
export function text(element, value) {
  const words = String(value ?? "");
  if (element.textContent !== words) element.textContent = words;
}

// Sets an element's text, and hides it where there is none.
export function show(id, value) {
  put(document, { [`#${id}`]: value });
}

// The same for parts of an element, by their selectors.
export function put(element, values) {
  for (const [selector, value] of Object.entries(values)) {
    const part = element.querySelector(selector);
    part.hidden = !value;
    text(part, value);
  }
}

export function make(tag, name, ...inside) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...inside);
  return element;
}

export function link(path, name, words = "") {
  const element = make("a", name, words);
  element.href = new URL(path, root);
  return element;
}

export const spans = (...names) => names.map((name) => make("span", name));

// Keeps one child of `list` for each entry, in order: `create` makes it once, `fill` updates it each time.
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

export async function showWorkers() {
  const { workers } = await get("api/workers?state=alive&limit=500");
  const threads = workers.reduce((sum, worker) => sum + worker.threads, 0);
  const releases = [...new Set(workers.map((worker) => worker.release || "unnamed"))].sort();
  const mixed = releases.length > 1 ? `, releases ${releases.join(" and ")}` : "";
  text(find("workers"), workers.length ? `${count(workers.length, "worker")}, ${count(threads, "thread")}${mixed}` : "no worker alive");
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

// Seconds since a time; negative for one to come.
export const since = (time) => (Date.now() - Date.parse(time)) / 1000;

// The day is left out when it is today.
export function date(time) {
  const when = new Date(time);
  const today = when.toDateString() === new Date().toDateString();
  return when.toLocaleString(undefined, { ...(today ? {} : { dateStyle: "medium" }), timeStyle: "medium" });
}
