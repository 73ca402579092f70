// Shows the numbers of the chart column under the pointer.

import { text } from "./words.js";

export function chart() {
  document.addEventListener("pointerover", (event) => {
    const column = event.target.closest?.(".chart g");
    const read = document.querySelector("[data-read]");
    if (!read) return;
    const { rate, failed } = column?.dataset ?? {};
    text(read, column ? `${rate}${failed === "0" ? "" : `, ${Number(failed).toLocaleString("en")} failed`}` : "");
  });
}
