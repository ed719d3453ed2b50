"use strict";

// The gallery's filter and order.

document.addEventListener("DOMContentLoaded", () => {
  const main = document.querySelector("main");
  const pictures = [...main.querySelectorAll(".picture")];
  const filter = document.getElementById("filter");
  const order = document.getElementById("order");
  const count = document.getElementById("count");

  function applyFilter() {
    const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const picture of pictures) {
      const texts = [...picture.querySelectorAll(".file, .caption, .references li")];
      const text = texts.map((element) => element.textContent.toLowerCase()).join("\n");
      picture.hidden = !wanted.every((word) => text.includes(word));
      shown += !picture.hidden;
    }
    count.textContent = `${shown} of ${pictures.length} pictures`;
  }

  // Least first; pictures without the number come last, and ties stay in the order given.
  function applyOrder() {
    const number = (picture) => (order.value in picture.dataset ? Number(picture.dataset[order.value]) : Infinity);
    const sorted = order.value === "given" ? pictures : pictures.slice().sort((a, b) => number(a) - number(b) || 0);
    main.append(...sorted);
  }

  filter.addEventListener("input", applyFilter);
  order.addEventListener("change", applyOrder);
  applyFilter();
});
