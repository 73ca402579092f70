// The suggestions complete the last word of the search; they include the words before it.

export function search() {
  // A browser that goes back to a page shows it as it was left, with the next search in its field.
  addEventListener("pageshow", ({ persisted }) => {
    if (persisted) for (const one of document.querySelectorAll("input[type=search]")) one.value = one.defaultValue;
  });
  const field = document.getElementById("search");
  const list = document.getElementById("words");
  if (!field) return;
  const words = [...list.options].map((one) => one.value);
  let before = "";
  field.addEventListener("input", () => {
    const [first] = field.value.match(/^(?:(?:[^\s"]|"[^"]*")*\s)*/);
    if (first === before) return;
    before = first;
    list.replaceChildren(...words.map((word) => Object.assign(document.createElement("option"), { value: first + word })));
  });
}
