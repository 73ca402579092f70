// <callboard-progress job="17" token="cb_…">: the progress of a job, on a page of any site. It follows the job by events, and
// polls while it gets none.

import { FINAL, percent, fill, shownState } from "./words.js";

const AGAIN_MS = 2000;
const ANSWER_MS = 5000;
// A stream sends an event at once, and then at least every 15 s; otherwise a proxy buffers it, or the connection is broken.
const SILENT_MS = 40000;
// A browser opens at most six connections to a server, for all of its tabs together. So further elements of a page poll, and
// so do all of them while the tab is hidden.
const MOST_STREAMS = 2;
let streams = 0;
const STATES = ["succeeded", "skipped", "cancelled", "retrying", "running", "queued", "pending", "failed"];
const SHEET = new CSSStyleSheet();
SHEET.replaceSync(`
  :host { display: block; font: 14px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
  svg { display: block; width: 100%; height: .6rem; border-radius: 99px; overflow: hidden; background: #e3ded6; }
  rect { transition: width .5s, x .5s; } rect[width="0%"] { display: none; }
  [data-state=succeeded] { fill: #2e9a62; } [data-state=skipped] { fill: #9a8fb8; } [data-state=failed] { fill: #cf3f36; }
  [data-state=cancelled] { fill: #8d867d; } [data-state=retrying] { fill: #e0a021; } [data-state=running] { fill: #3a7bd0; }
  [data-state=queued] { fill: #b9cdea; } [data-state=pending] { fill: #e3ded6; }
  p { margin: 0 0 .3rem; } [part=state]::before { content: " · "; } .lost, .lost + svg { filter: grayscale(1); }
`);

class CallboardProgress extends HTMLElement {
  static observedAttributes = ["job", "token"];

  connectedCallback() {
    if (!this.shadowRoot) this.#build();
    document.addEventListener("visibilitychange", this.#turn);
    this.#follow();
  }

  disconnectedCallback() {
    document.removeEventListener("visibilitychange", this.#turn);
    this.#stop();
  }

  #turn = () => this.#follow();

  #stop() {
    if (this.source) streams -= 1;
    this.source?.close();
    this.source = null;
    clearTimeout(this.timer);
  }

  attributeChangedCallback() {
    if (this.shadowRoot) this.#follow();
  }

  #build() {
    const shadow = this.attachShadow({ mode: "open" });
    shadow.adoptedStyleSheets = [SHEET];
    const rects = STATES.map((state) => `<rect data-state="${state}" y="0" width="0%" height="100%"/>`).join("");
    shadow.innerHTML = `<p part="text"><b part="name" dir="auto"></b> <span data-of="percent">–</span> <span part="state"></span></p>
      <svg data-bar="" role="progressbar" aria-valuemin="0" aria-valuemax="100">${rects}</svg>`;
  }

  #address(path) {
    const url = new URL(`../api/v1/jobs/${encodeURIComponent(this.getAttribute("job"))}${path}`, import.meta.url);
    url.searchParams.set("token", this.getAttribute("token") ?? "");
    return url;
  }

  #follow() {
    this.#stop();
    if (document.hidden || streams >= MOST_STREAMS) return void this.#ask();
    streams += 1;
    this.source = new EventSource(this.#address("/events"));
    this.source.addEventListener("job", (event) => {
      this.#hear(SILENT_MS);
      this.#show(JSON.parse(event.data));
    });
    this.source.addEventListener("alive", () => this.#hear(SILENT_MS));
    this.source.addEventListener("end", () => this.#stop());
    this.source.onerror = () => this.#ask();
    this.#hear(ANSWER_MS);
  }

  #hear(within) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#ask(), within);
  }

  async #ask() {
    this.#stop();
    let job = null, refused = false;
    try {
      const answer = await fetch(this.#address(""), { signal: AbortSignal.timeout(ANSWER_MS) });
      if (answer.ok) this.#show((job = await answer.json()));
      const own = answer.headers.get("content-type")?.startsWith("application/problem+json");  // not a proxy's
      const missing = answer.status === 404 && own;
      refused = missing || [401, 403].includes(answer.status);  // the job is deleted, or its token is not valid
    } catch {
      // retried below
    }
    this.shadowRoot.querySelector("p").classList.toggle("lost", !job);
    if (refused) this.shadowRoot.querySelector("[part=state]").textContent = "no longer shown";
    else if (this.isConnected && !FINAL.includes(job?.state)) this.timer = setTimeout(() => this.#follow(), AGAIN_MS);
  }

  #show(job) {
    this.shadowRoot.querySelector("[part=name]").textContent = job.name;
    this.shadowRoot.querySelector("[part=state]").textContent = shownState(job);
    this.shadowRoot.querySelector("svg").setAttribute("aria-label", job.name);
    fill(this.shadowRoot, job);
    this.setAttribute("aria-label", `${job.name}, ${percent(job)}`);
    this.dispatchEvent(new CustomEvent("progress", { detail: job }));
  }
}

customElements.define("callboard-progress", CallboardProgress);
