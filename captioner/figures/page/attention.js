"use strict";

// Words show their attention. What is drawn is what captioner.images.geometry.heatmap draws in Python: the
// same two matrices, made there, take the grid's cells to the picture.

document.addEventListener("DOMContentLoaded", () => {
  const setting = JSON.parse(document.getElementById("setting").textContent);
  const main = document.querySelector("main");
  const colours = bytesOf(setting.colours); // 256 times R, G and B
  let lit = null; // the word that is shown now

  function bytesOf(base64) {
    return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  }

  // Each word of a caption as a button, with the text between them as it is.
  function makeButtons(caption) {
    const pieces = JSON.parse(caption.dataset.pieces); // gap, word, gap, word, ..., rest
    caption.textContent = "";
    for (let place = 0; 2 * place + 1 < pieces.length; place++) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "word";
      button.dataset.place = place;
      button.tabIndex = place === 0 ? 0 : -1;
      button.textContent = pieces[2 * place + 1];
      caption.append(pieces[2 * place], button);
    }
    caption.append(pieces[pieces.length - 1]);
    caption.dataset.isReady = "";
  }

  // The heat of every word of a caption on a small square, row by row, and the most of any of them.
  const heatsOf = new WeakMap();
  function heats(caption) {
    if (!heatsOf.has(caption)) {
      const alphas = bytesOf(caption.dataset.alphas);
      const cells = setting.rows * setting.cols;
      const words = [];
      for (let start = 0; start < alphas.length; start += cells) words.push(project(alphas.subarray(start, start + cells)));
      heatsOf.set(caption, { words, most: Math.max(...words.map((heat) => Math.max(...heat))) || 1 });
    }
    return heatsOf.get(caption);
  }

  function project(alpha) {
    const { rows, cols, vertical, horizontal } = setting;
    const heat = [];
    for (const rowWeights of vertical) {
      for (const colWeights of horizontal) {
        let sum = 0;
        for (let row = 0; row < rows; row++) {
          for (let col = 0; col < cols; col++) sum += rowWeights[row] * colWeights[col] * alpha[row * cols + col];
        }
        heat.push(sum);
      }
    }
    return heat;
  }

  function drawHeat(canvas, heat, most) {
    canvas.width = canvas.height = setting.vertical.length;
    const image = new ImageData(canvas.width, canvas.height);
    for (const [pixel, value] of heat.entries()) {
      const level = Math.round((255 * value) / most);
      for (let channel = 0; channel < 3; channel++) image.data[4 * pixel + channel] = colours[3 * level + channel];
      image.data[4 * pixel + 3] = 255;
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  // Where the peak of a word's heat lies on the picture, in thirds.
  function whereOf(heat, most) {
    const peak = Math.max(...heat);
    if (peak < most / 2) return "attends nowhere in particular";
    const side = setting.vertical.length;
    const third = (index) => Math.floor((3 * index) / side);
    const hottest = heat.indexOf(peak);
    const row = ["upper", "middle", "lower"][third(Math.floor(hottest / side))];
    const col = ["left", "centre", "right"][third(hottest % side)];
    return `attends most to the ${row === "middle" && col === "centre" ? "centre" : `${row} ${col}`}`;
  }

  function show(word) {
    if (word === lit) return;
    clear();
    lit = word;
    const picture = word.closest(".picture");
    const { words, most } = heats(word.closest(".caption"));
    const heat = words[Number(word.dataset.place)];
    drawHeat(picture.querySelector("canvas"), heat, most);
    picture.classList.add("is-lit");
    word.classList.add("is-on");
    picture.querySelector(".where").textContent = `“${word.textContent}” ${whereOf(heat, most)}`;
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
    if (!word || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.key === "Escape") return clear();
    if (!["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) return;
    event.preventDefault();
    const next = neighbour(word, event.key);
    if (next) focus(next);
  });
  // The other captions of a picture get their buttons when they are first opened.
  main.addEventListener("toggle", (event) => {
    for (const caption of event.target.querySelectorAll(".caption:not([data-is-ready])")) makeButtons(caption);
  }, true);

  function makeReady(element) {
    for (const caption of element.querySelectorAll(".text > .caption:not([data-is-ready])")) makeButtons(caption);
  }
  makeReady(main);
  new MutationObserver((changes) => {
    for (const { addedNodes } of changes) for (const node of addedNodes) if (node.nodeType === Node.ELEMENT_NODE) makeReady(node);
  }).observe(main, { childList: true });
});
