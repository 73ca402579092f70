// The suggestions complete the last word of the search; they include the words before it.

export function search() {
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
