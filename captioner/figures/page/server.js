"use strict";

// Pictures that are chosen, dropped, pasted or photographed go to the server one after another; its answers are
// articles like the gallery's, which attention.js brings to life.

document.addEventListener("DOMContentLoaded", () => {
  const main = document.querySelector("main");
  const controls = document.getElementById("controls");
  const status = document.getElementById("status");
  const spoken = document.getElementById("spoken"); // for screen readers
  const token = document.getElementById("token");
  const waiting = [];
  const refused = []; // for want of the right token
  let isBusy = false;

  function query() {
    const { beam_size: beam, num_captions: captions, temperature } = controls.elements;
    const asked = new URLSearchParams({ num_captions: captions.value || 1 });
    if (temperature.value) {
      asked.set("sample", "true");
      asked.set("temperature", temperature.value);
      asked.set("seed", Math.floor(Math.random() * 2 ** 31));
    } else if (beam.value) {
      asked.set("beam_size", beam.value);
    }
    return asked;
  }

  async function request(file) {
    const form = new FormData();
    form.append("file", file, file.name || "picture");
    const headers = { Accept: "text/html" };
    if (token.value) headers.Authorization = `Bearer ${token.value}`;
    const answer = await fetch(`v1/captions?${query()}`, { method: "POST", body: form, headers });
    if (answer.ok) return answer.text();
    if (answer.status === 401) {
      refused.push(file);
      throw new Error(token.value ? "the token is wrong" : "enter the token first");
    }
    const { error } = await answer.json().catch(() => ({ error: answer.statusText }));
    throw new Error(error);
  }

  function failed(file, reason) {
    const article = document.createElement("article");
    article.className = "failed";
    article.setAttribute("role", "alert");
    article.textContent = reason.includes(file.name) ? reason : `${file.name}: ${reason}`;
    return article;
  }

  async function work() {
    if (isBusy) return;
    isBusy = true;
    while (waiting.length) {
      const file = waiting.shift();
      status.textContent = `Captioning ${file.name}` + (waiting.length ? `, ${waiting.length} more` : "");
      try {
        const html = document.createElement("template");
        html.innerHTML = await request(file);
        main.prepend(html.content.querySelector("article"));
        status.textContent = "";
        spoken.textContent = main.querySelector(".caption").textContent;
      } catch (error) {
        status.textContent = refused.includes(file) ? error.message : "";
        if (!refused.includes(file)) main.prepend(failed(file, error.message));
      }
    }
    isBusy = false;
  }

  function add(files) {
    waiting.push(...files);
    work();
  }

  function addOrSay(files) {
    if (files.length) add(files);
    else status.textContent = "That has no picture's file; save it first, and drop or paste the file.";
  }

  for (const id of ["files", "camera"]) {
    document.getElementById(id).addEventListener("change", (event) => {
      add(event.target.files);
      event.target.value = ""; // so that the same picture can be chosen again
    });
  }
  document.addEventListener("paste", (event) => addOrSay(event.clipboardData.files));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("is-target");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("is-target");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("is-target");
    addOrSay(event.dataTransfer.files);
  });
  token.addEventListener("change", () => add(refused.splice(0)));
  controls.addEventListener("submit", (event) => event.preventDefault());
});
