// Changes one node into another with few changes, so that focus, selection and open <details> survive. Children are
// matched by their id.

export function morph(old, wanted) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== wanted.nodeValue) old.nodeValue = wanted.nodeValue;
    return;
  }
  if (old.hasAttribute("data-read")) return;  // a script fills it
  for (const { name, value } of wanted.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const { name } of [...old.attributes]) if (!wanted.hasAttribute(name) && !isOpened(old, name)) old.removeAttribute(name);
  const ids = new Set([...wanted.children].map((child) => child.id));
  for (const child of [...old.children]) if (child.id && !ids.has(child.id)) child.remove();
  let place = old.firstChild;
  for (const child of [...wanted.childNodes]) {
    const same = child.id ? [...old.children].find((one) => one.id === child.id) : alike(place, child) && place;
    if (!same) old.insertBefore(child, place);
    else {
      if (same === place) place = place.nextSibling;
      else old.insertBefore(same, place);
      morph(same, child);
    }
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

const isOpened = (node, name) => name === "open" && node.tagName === "DETAILS";  // the reader has opened it
const alike = (one, other) => one && !one.id && one.nodeName === other.nodeName;
