// The scripts of every page; without JavaScript each page is plain HTML with plain forms.

import { chart } from "./chart.js";
import { forms } from "./forms.js";
import { keys } from "./keys.js";
import { live } from "./live.js";
import { search } from "./search.js";
import { tell, text, toggleZone, zone } from "./words.js";

const button = document.getElementById("zone");

function showZone() {
  text(button, zone());
  button.title = "the time zone of this page; click to change it";
  tell(document);
}

if (button) {
  button.hidden = false;
  button.addEventListener("click", () => {
    toggleZone();
    showZone();
  });
  showZone();
}
chart();
forms();
keys();
search();
live();
