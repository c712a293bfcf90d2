"use strict";
// Sorts galleries. The page holds its cards in the first order; a second click on a button turns the order round.
for (const gallery of document.querySelectorAll(".bags")) {
  const orders = JSON.parse(gallery.querySelector("script").textContent);
  const buttons = [...gallery.querySelectorAll(".sort button")];
  const box = gallery.querySelector(".cards");
  const cards = [];
  orders[buttons[0].dataset.order].forEach((bag, place) => { cards[bag] = box.children[place]; });

  const sort = (button) => {
    const again = button.getAttribute("aria-pressed") === "true";
    const turned = again && !button.classList.contains("turned");
    for (const other of buttons) {
      other.setAttribute("aria-pressed", String(other === button));
      other.classList.toggle("turned", other === button && turned);
    }
    const order = orders[button.dataset.order];
    box.replaceChildren(...(turned ? [...order].reverse() : order).map((bag) => cards[bag]));
  };

  for (const button of buttons) button.addEventListener("click", () => sort(button));
  gallery.querySelector(".sort").hidden = false;
}
