// Forms without a reload: an action is sent and the page refreshed; a confirmation opens in a dialog.

import { Lost, ask, leave, refreshAll } from "./live.js";
import { number, text } from "./words.js";

const COPIED_MS = 2000;
const dialog = document.getElementById("dialog");
const refused = document.getElementById("refused");

const parsed = (html) => new DOMParser().parseFromString(html, "text/html");

export function show(...nodes) {
  dialog.replaceChildren(...nodes);
  if (!dialog.open) dialog.showModal();
}

async function question(url) {
  const here = new URL(url);
  here.searchParams.append("part", "confirm");
  const answer = await ask(here, { redirect: "manual" });  // a redirect then has status 0
  if (!answer.ok && answer.status) return refuse(answer.body);
  const form = parsed(answer.body).querySelector("#confirm");
  if (!form) return leave(url);  // the answer is a login page
  form.action = url;
  show(form);
}

async function act(form, button) {
  const body = new URLSearchParams(new FormData(form, button));
  const answer = await ask(form.action, { method: "POST", body, signal: null });  // no timeout: it may take long
  dialog.close();
  if (!answer.ok) return refuse(answer.body);
  refused.hidden = true;
  const asked = parsed(answer.body).querySelector("#confirm");
  if (asked) {
    asked.action = answer.url;
    return show(asked);
  }
  if (new URL(answer.url).pathname !== document.location.pathname) return leave(answer.url);
  await refreshAll();
  showChosen();
  // The focused button may have been removed: move the focus to the next one, for users of a keyboard.
  if (document.activeElement === document.body) document.querySelector(".acts button, h1")?.focus();
}

function refuse(body) {
  let detail = null;
  try {
    ({ detail } = JSON.parse(body));
  } catch {
    // the answer of a proxy, for example
  }
  text(refused, typeof detail === "string" ? detail : "the server gave an unexpected answer");
  refused.hidden = false;
  refused.scrollIntoView({ block: "nearest" });
}

// Copies all texts of the button's container, also folded ones. Without HTTPS a page has no clipboard, but may copy a selection.
async function copy(button) {
  const whole = [...button.closest("[data-whole]").querySelectorAll("pre")].map((one) => one.textContent).join("");
  if (navigator.clipboard) await navigator.clipboard.writeText(whole);
  else {
    const field = Object.assign(document.createElement("textarea"), { value: whole });
    button.after(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button.focus();
  }
  text(button, "Copied");
  setTimeout(() => text(button, "Copy"), COPIED_MS);
}

// Shows how many jobs are selected. The label of the checkbox shows how many jobs match.
function showChosen() {
  const chosen = document.querySelectorAll(".jobs input:checked").length;
  const node = document.getElementById("chosen");
  if (node) text(node, document.querySelector("#bulk [name=all]:checked") ? "" : `${number(chosen)} selected`);
}

export function forms() {
  document.addEventListener("change", showChosen);
  showChosen();  // a browser that goes back keeps the selection
  document.documentElement.dataset.scripts = "on";
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) copy(button);
  });
  document.addEventListener("submit", async (event) => {
    const form = event.target;
    if (!form.matches("[data-act]") || form.hasAttribute("aria-busy")) return;
    event.preventDefault();
    form.setAttribute("aria-busy", "true");
    try {
      await (form.method === "get" ? question(form.action) : act(form, event.submitter));
    } catch (error) {
      if (!(error instanceof Lost)) throw error;
      dialog.close();
      text(refused, "the server can't be reached; the action may or may not be done");
      refused.hidden = false;
    } finally {
      form.removeAttribute("aria-busy");
    }
  });
  dialog.addEventListener("click", (event) => {
    if (event.target !== dialog && !event.target.closest("[data-close]")) return;
    event.preventDefault();
    dialog.close();
  });
}
