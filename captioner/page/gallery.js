"use strict";

// Words light up where they looked. What is drawn is what captioner.images.heatmap draws in Python: the
// same two matrices, made there, take the grid's cells to the picture.

document.addEventListener("DOMContentLoaded", () => {
  const setting = JSON.parse(document.getElementById("setting").textContent);
  const main = document.querySelector("main");
  const pictures = [...main.querySelectorAll(".picture")];
  const filter = document.getElementById("filter");
  const order = document.getElementById("order");
  const count = document.getElementById("count");
  const colours = bytesOf(setting.colours); // 256 times R, G and B
  let lit = null; // the word that is shown now

  function bytesOf(base64) {
    return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  }

  // Each word of a caption as a button, with the text between them as it is.
  function makeButtons(caption) {
    const text = caption.textContent;
    const words = JSON.parse(caption.dataset.words);
    caption.textContent = "";
    let end = 0;
    for (const [place, word] of words.entries()) {
      const start = text.indexOf(word, end);
      if (place > 0) caption.append(start < 0 ? " " : text.slice(end, start));
      if (start >= 0) end = start + word.length;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "word";
      button.dataset.place = place;
      button.tabIndex = place === 0 ? 0 : -1;
      button.textContent = word;
      caption.append(button);
    }
    caption.dataset.isReady = "";
  }

  // One word's attention, in units of the most that any word of its caption gives to a cell.
  function alphaOf(word) {
    const { alphas } = word.closest(".caption").dataset;
    const cells = setting.rows * setting.cols;
    const place = Number(word.dataset.place);
    return bytesOf(alphas).subarray(place * cells, (place + 1) * cells);
  }

  function drawHeat(canvas, alpha) {
    const { rows, cols, vertical, horizontal } = setting;
    const side = vertical.length;
    canvas.width = canvas.height = side;
    const image = new ImageData(side, side);
    for (let y = 0; y < side; y++) {
      for (let x = 0; x < side; x++) {
        let heat = 0;
        for (let row = 0; row < rows; row++) {
          let sum = 0;
          for (let col = 0; col < cols; col++) sum += alpha[row * cols + col] * horizontal[x][col];
          heat += vertical[y][row] * sum;
        }
        const level = Math.round(Math.min(heat, 255));
        const pixel = 4 * (y * side + x);
        for (let channel = 0; channel < 3; channel++) image.data[pixel + channel] = colours[3 * level + channel];
        image.data[pixel + 3] = 255;
      }
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  function placeName(alpha) {
    const hottest = alpha.indexOf(Math.max(...alpha));
    const third = (index, size) => Math.floor((3 * index) / size);
    const row = ["upper", "middle", "lower"][third(Math.floor(hottest / setting.cols), setting.rows)];
    const col = ["left", "centre", "right"][third(hottest % setting.cols, setting.cols)];
    return row === "middle" && col === "centre" ? "centre" : `${row} ${col}`;
  }

  function show(word) {
    if (word === lit) return;
    clear();
    lit = word;
    const picture = word.closest(".picture");
    const alpha = alphaOf(word);
    drawHeat(picture.querySelector("canvas"), alpha);
    picture.classList.add("is-lit");
    word.classList.add("is-on");
    picture.querySelector(".where").textContent = `“${word.textContent}” looked most at the ${placeName(alpha)}`;
  }

  function clear() {
    if (!lit) return;
    const picture = lit.closest(".picture");
    picture.classList.remove("is-lit");
    lit.classList.remove("is-on");
    picture.querySelector(".where").textContent = "";
    lit = null;
  }

  function focus(word) {
    for (const other of word.closest(".caption").querySelectorAll(".word")) other.tabIndex = -1;
    word.tabIndex = 0;
    word.focus();
  }

  const isShown = (picture) => !picture.hidden;

  function neighbour(word, key) {
    const words = [...word.closest(".caption").querySelectorAll(".word")];
    const place = words.indexOf(word);
    const across = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: words.length - 1 };
    if (key in across) return words[across[key]];
    const shown = [...main.children].filter(isShown);
    const next = shown[shown.indexOf(word.closest(".picture")) + (key === "ArrowDown" ? 1 : -1)];
    return next && next.querySelector(".word[tabindex='0']");
  }

  main.addEventListener("pointerover", (event) => {
    const word = event.target.closest(".word");
    if (word) show(word);
  });
  main.addEventListener("pointerout", (event) => {
    if (event.pointerType !== "mouse" || !event.target.closest(".word")) return;
    const focused = document.activeElement.closest(".word");
    if (focused) show(focused);
    else clear();
  });
  main.addEventListener("focusin", (event) => {
    const word = event.target.closest(".word");
    if (word) show(word);
  });
  main.addEventListener("focusout", clear);
  main.addEventListener("click", (event) => {
    const word = event.target.closest(".word");
    if (word) focus(word); // Safari does not focus a button that is clicked
  });
  main.addEventListener("keydown", (event) => {
    const word = event.target.closest(".word");
    if (!word) return;
    if (event.key === "Escape") return clear();
    if (!["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) return;
    event.preventDefault();
    const next = neighbour(word, event.key);
    if (next) focus(next);
  });
  // The other captions of a picture get their buttons when they are first looked at.
  main.addEventListener("toggle", (event) => {
    for (const caption of event.target.querySelectorAll(".caption:not([data-is-ready])")) makeButtons(caption);
  }, true);

  function applyFilter() {
    const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const picture of pictures) {
      const text = picture.querySelector(".text").textContent.toLowerCase();
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

  for (const caption of main.querySelectorAll(".text > .caption")) makeButtons(caption);
  filter.addEventListener("input", applyFilter);
  order.addEventListener("change", applyOrder);
  applyFilter();
});
