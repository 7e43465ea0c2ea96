"use strict";
// Without this script the page shows everything, unfiltered.
const form = document.getElementById("filters");
if (form) {
  const cards = [...document.querySelectorAll("#examples .example")];
  const texts = new Map(cards.map((card) => [card, card.textContent.toLowerCase()]));
  const matches = (card) =>
    [...form.elements].every((field) => {
      if (field.name === "words")
        return field.value.toLowerCase().split(/\s+/).every((word) => texts.get(card).includes(word));
      const key = field.name.replace(/_(.)/g, (_, letter) => letter.toUpperCase());
      return !field.name || field.value === "" || card.dataset[key] === field.value;
    });
  const update = () => {
    let count = 0;
    for (const card of cards) if (!(card.hidden = !matches(card))) count += 1;
    document.getElementById("shown").textContent = `${count} of ${cards.length} shown`;
  };
  form.hidden = false;
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
}
