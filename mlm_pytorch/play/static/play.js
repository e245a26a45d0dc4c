// The page of `mlm play`. What was typed, and what models answer, enters the page as text only (textContent), never as
// markup; the server's content security policy would refuse anything else.

import { ask, lines, replace } from "/ask.js";
import { barsOf, make, odds, percent } from "/parts.js";

const PAUSE = 250; // milliseconds without a key after which a text is read
const CANDIDATES = 8;
const LONGEST_LINE = 26; // characters that any screen has room for
const EXAMPLE = "The old house stood at the end of a quiet street, and nobody had lived there for many years.";
const LEVELS = [0.5, 0.1, 0.01, 0.001, 0.0001]; // probabilities at which a word gets the next colour
const SIDES = ["a", "b"];

const $ = (id) => document.getElementById(id);

// What is shown. Spans are in code points, as the server counts them; a JavaScript string counts otherwise.
const state = {
  models: [], // {name, max_tokens}, as served
  chosen: [], // names of the one or two that read
  points: [], // the code points of the text that is shown, which is the typed one as soon as it is read
  words: [], // [start, end]
  readings: [], // per chosen model: {tokens, max_tokens, kinds, pieces}
  hidden: new Map(), // "start:end" -> number of mask tokens, or null for as many as the word has
  heat: [], // per chosen model: word -> {nats, expected}
  found: [], // per chosen model: word -> slots
  panels: [], // per chosen model: {root, figures, chips}
};

// -- small parts ------------------------------------------------------------------------------------------------------

const wordKey = (word) => state.words[word].join(":");
const wordText = (word) => state.points.slice(...state.words[word]).join("");
const isHidden = (word) => state.hidden.has(wordKey(word)) || kindOf(word) === "mask";
const kindOf = (word) => (state.readings.some((r) => r.kinds[word] === "mask") ? "mask" : state.readings[0].kinds[word]);
const canHide = (word) => state.readings.every((reading) => reading.kinds[word] !== "bare");
const hiddenWords = () => state.words.map((_, word) => word).filter((word) => isHidden(word) && canHide(word));
const isComparing = () => state.chosen.length === 2;

const levelOf = (nats) => LEVELS.filter((p) => Math.exp(-nats) < p).length;

function complain(message) {
  $("problem").textContent = message;
  $("problem").hidden = !message;
}

// Runs what asks; says what went wrong, unless a newer question has taken this one's place.
async function attempt(kind, work) {
  const signal = replace(kind);
  try {
    await work(signal);
  } catch (error) {
    if (signal.aborted) return;
    complain(error.message);
    if (kind === "words") showNothing();
  }
}

// -- reading a text ---------------------------------------------------------------------------------------------------

const question = () => ({ text: state.points.join(""), models: state.chosen });

function readText() {
  for (const kind of ["words", "candidates", "surprise"]) replace(kind);
  complain("");
  const text = $("text").value;
  const points = Array.from(text);
  if (!text.trim()) {
    state.points = points;
    state.hidden.clear();
    return showNothing();
  }
  $("reading").classList.add("loading");
  return attempt("words", async (signal) => {
    const answer = await (await ask("/api/words", { text, models: state.chosen }, signal)).json();
    if (signal.aborted) return;
    state.hidden = stillHidden(points);
    state.points = points;
    state.words = answer.words;
    state.readings = answer.models;
    state.heat = state.chosen.map(() => new Map());
    state.found = state.chosen.map(() => new Map());
    const there = new Set(state.words.map((_, word) => wordKey(word)));
    for (const key of state.hidden.keys()) if (!there.has(key)) state.hidden.delete(key);
    showText();
    askCandidates();
    askSurprise();
  });
}

// Hidden words stay hidden while text before or after them changes: their spans move along.
function stillHidden(points) {
  const old = state.points;
  let head = 0;
  while (head < Math.min(old.length, points.length) && old[head] === points[head]) head += 1;
  let tail = 0;
  while (tail < Math.min(old.length, points.length) - head && old.at(-1 - tail) === points.at(-1 - tail)) tail += 1;
  const moved = new Map();
  for (const [key, count] of state.hidden) {
    const [start, end] = key.split(":").map(Number);
    if (end <= head) moved.set(key, count);
    else if (start >= old.length - tail) moved.set([start, end].map((i) => i + points.length - old.length).join(":"), count);
  }
  return moved;
}

function askCandidates() {
  showCards();
  if (!hiddenWords().length) return replace("candidates");
  const masks = hiddenWords().map((word) => {
    const tokens = state.hidden.get(wordKey(word));
    return tokens ? { word, tokens } : { word };
  });
  $("cards").setAttribute("aria-busy", "true");
  return attempt("candidates", async (signal) => {
    const answer = await (await ask("/api/candidates", { ...question(), masks, top_k: CANDIDATES }, signal)).json();
    if (signal.aborted) return;
    complain("");
    state.found = answer.models.map((words) => new Map(words.map(({ word, slots }) => [word, slots])));
    showCards();
    $("cards").removeAttribute("aria-busy");
    for (const word of hiddenWords()) dress(word);
  });
}

function askSurprise() {
  return attempt("surprise", async (signal) => {
    const total = state.readings.map((reading) => reading.kinds.filter((kind) => kind === "word").length);
    const response = await ask("/api/surprise", question(), signal);
    for await (const line of lines(response)) {
      if (signal.aborted) return;
      if (line.error) throw new Error(line.error);
      if (line.words) {
        for (const { word, nats, expected } of line.words) {
          state.heat[line.model].set(word, { nats, expected });
          dressIn(line.model, word);
        }
      }
      const done = state.heat.reduce((sum, heat) => sum + heat.size, 0);
      const all = total.reduce((sum, count) => sum + count, 0);
      $("progress").textContent = done < all ? `${Math.floor((100 * done) / all)}% read` : "";
      if (line.done) summarise();
    }
  });
}

// -- showing it -------------------------------------------------------------------------------------------------------

function showNothing() {
  state.words = [];
  state.panels = [];
  for (const id of ["reading", "guesses", "clear"]) $(id).hidden = true;
  $("count").textContent = "";
  $("reading").classList.remove("loading");
}

function showText() {
  const focused = document.activeElement?.closest?.(".word");
  const place = focused ? [state.panels.findIndex((panel) => panel.root.contains(focused)), Number(focused.dataset.word)] : null;
  state.panels = state.chosen.map(panelOf);
  $("panels").replaceChildren(...state.panels.map((panel) => panel.root));
  $("reading").hidden = false;
  $("reading").classList.remove("loading");
  $("about").textContent = "";
  $("progress").textContent = "";
  $("count").textContent = state.readings
    .map((reading) => `${reading.tokens.toLocaleString("en")} of ${reading.max_tokens.toLocaleString("en")} tokens`)
    .join(" · ");
  state.words.forEach((_, word) => dress(word));
  if (place && place[0] >= 0) state.panels[place[0]]?.chips[place[1]]?.focus();
}

function panelOf(name, model) {
  const text = make("div", { class: "text", role: "group", "aria-label": `Words, as ${name} reads them`, "aria-describedby": "how" });
  const chips = [];
  let done = 0;
  let cluster = text;
  state.words.forEach(([start, end], word) => {
    if (start > done || word === 0) {
      text.append(state.points.slice(done, start).join(""));
      cluster = clusterEnd(word) - start <= LONGEST_LINE ? text.appendChild(make("span", { class: "cluster" })) : text;
    }
    chips.push(make("button", { type: "button", class: "word", tabindex: word ? "-1" : "0" }));
    chips[word].dataset.word = word;
    cluster.append(chips[word]);
    done = end;
  });
  text.append(state.points.slice(done).join(""));
  const figures = make("span", { class: "figures" });
  const heading = make("header", {}, make("span", { class: "name" }, name), figures);
  return { root: make("div", { class: `panel ${SIDES[model]}` }, heading, text), figures, chips };
}

// Where the words end that follow this one without a blank: a full stop should not begin a line.
function clusterEnd(word) {
  while (word + 1 < state.words.length && state.words[word + 1][0] === state.words[word][1]) word += 1;
  return state.words[word][1];
}

const dress = (word) => state.panels.forEach((_, model) => dressIn(model, word));

// A word's button as the state has it.
function dressIn(model, word) {
  const chip = state.panels[model]?.chips[word];
  if (!chip) return;
  const text = wordText(word);
  const heat = state.heat[model].get(word);
  const kind = state.readings[model].kinds[word];
  let look = "word";
  let label = text;
  if (isHidden(word) && canHide(word)) {
    const number = hiddenWords().indexOf(word) + 1;
    const guess = bestGuess(model, word);
    look += " hidden-word";
    label = `${text}, hidden, number ${number}${guess ? `; expected here: ${guess}` : ""}`;
    chip.replaceChildren(guess ?? "…", make("sup", {}, String(number)));
  } else {
    chip.textContent = text;
    if (kind === "unknown") [look, label] = [`${look} unknown-word`, `${text}, not in the vocabulary`];
    else if (kind === "bare") look += " bare";
    else if (heat) [look, label] = [`${look} heat-${levelOf(heat.nats)}`, `${text}, ${odds(Math.exp(-heat.nats))}`];
  }
  chip.className = look;
  chip.setAttribute("aria-label", label);
  chip.setAttribute("aria-pressed", String(isHidden(word)));
  if (!canHide(word) || kindOf(word) === "mask") chip.setAttribute("aria-disabled", "true");
}

function bestGuess(model, word) {
  const slots = state.found[model].get(word);
  return slots ? slots.map((slot) => slot.candidates[0].token).join("") : null;
}

function summarise() {
  state.panels.forEach((panel, model) => {
    const nats = [...state.heat[model].values()].map((heat) => heat.nats);
    if (!nats.length) return;
    const sum = nats.reduce((total, each) => total + each, 0);
    panel.figures.textContent = `${(sum / nats.length).toFixed(2)} nats a word, PLL −${sum.toFixed(1)}`;
    panel.figures.title = `Pseudo-log-likelihood over ${nats.length} words, in nats: the closer to 0, the less the text surprises.`;
  });
}

// What is known of the word that has the focus, or the pointer over it.
function tellAbout(word) {
  const parts = [make("span", {}, make("b", {}, wordText(word)), kindOf(word) === "mask" ? " is a mask in the text" : "")];
  state.chosen.forEach((name, model) => {
    const reading = state.readings[model];
    const heat = state.heat[model].get(word);
    const pieces = reading.pieces[word].length > 1 ? ` as ${reading.pieces[word].join(" · ")}` : "";
    let said = "";
    if (reading.kinds[word] === "unknown") said = " is not in the vocabulary";
    if (reading.kinds[word] === "bare") said = " has no token";
    if (heat) {
      const expected = heat.expected.map((each) => `“${each.name}” ${percent(each.probability)}`).join(", ");
      said = `: ${odds(Math.exp(-heat.nats))} (${heat.nats.toFixed(2)} nats)${pieces}; expected: ${expected}`;
    }
    if (said && !isComparing()) parts[0].append(said);
    else if (said) parts.push(make("span", {}, make("b", { class: SIDES[model] }, name), said));
  });
  $("about").replaceChildren(...parts);
}

// -- candidates -------------------------------------------------------------------------------------------------------

function showCards() {
  const words = hiddenWords();
  const focus = document.activeElement?.dataset?.keep; // a control of a card that is built anew
  $("guesses").hidden = !words.length;
  $("clear").hidden = !state.hidden.size;
  $("cards").replaceChildren(...words.map(cardOf));
  if (focus) document.querySelector(`[data-keep="${CSS.escape(focus)}"]`)?.focus();
}

function cardOf(word, index) {
  const text = wordText(word);
  const sides = state.chosen.map((name, model) => sideOf(name, model, word));
  const title = make("h3", {}, make("sup", {}, String(index + 1)), text);
  const tools = kindOf(word) === "mask" ? null : make("div", { class: "tools" }, sizeOf(word), showAgain(word));
  return make("article", { class: "card" }, make("div", { class: "top" }, title, tools), make("div", { class: "sides" }, ...sides));
}

// How many mask tokens stand for the word: tokenizers cut it differently, and another word may have fewer.
function sizeOf(word) {
  const chosen = state.hidden.get(wordKey(word));
  const select = make("select", { "aria-label": `Mask tokens in place of ${wordText(word)}` });
  for (const count of [null, 1, 2, 3, 4]) {
    const option = make("option", { value: count ?? "" }, count === null ? "its own" : String(count));
    option.selected = count === chosen;
    select.append(option);
  }
  select.dataset.keep = `size ${wordKey(word)}`;
  select.addEventListener("change", () => {
    state.hidden.set(wordKey(word), select.value ? Number(select.value) : null);
    askCandidates();
  });
  return make("label", {}, "tokens", select);
}

function showAgain(word) {
  const button = make("button", { type: "button", class: "quiet", "aria-label": `Show ${wordText(word)} again` }, "show");
  button.addEventListener("click", () => {
    toggle(word);
    state.panels[0].chips[word].focus();
  });
  return button;
}

function sideOf(name, model, word) {
  const slots = state.found[model].get(word);
  const lists = (slots ?? []).map((slot, index) =>
    make(
      "div",
      {},
      slots.length > 1 ? make("p", { class: "slot-title" }, `Token ${index + 1} of ${slots.length}`) : null,
      barsOf(slot),
    ),
  );
  const heading = isComparing() ? make("span", { class: "name" }, name) : null;
  const body = slots ? make("div", { class: "slots" }, ...lists) : make("p", { class: "hint" }, "…");
  return make("div", { class: `side ${SIDES[model]}` }, heading, body);
}

// -- what people do ---------------------------------------------------------------------------------------------------

function toggle(word) {
  if (!canHide(word) || kindOf(word) === "mask") return;
  const key = wordKey(word);
  if (!state.hidden.delete(key)) state.hidden.set(key, null);
  for (const found of state.found) found.delete(word);
  askCandidates();
  const numbered = new Set([word, ...hiddenWords()]); // the others' numbers may have changed
  numbered.forEach(dress);
  tellAbout(word);
}

const wordAt = (event) => {
  const chip = event.target.closest?.(".word");
  return chip ? Number(chip.dataset.word) : null;
};

function listen() {
  let timer = 0;
  $("text").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(readText, PAUSE);
  });
  $("example").addEventListener("click", () => {
    $("text").value = EXAMPLE;
    readText();
  });
  $("clear").addEventListener("click", () => {
    state.hidden.clear();
    askCandidates();
    state.words.forEach((_, word) => dress(word));
    $("text").focus();
  });
  const panels = $("panels");
  panels.addEventListener("click", (event) => {
    const word = wordAt(event);
    if (word !== null) toggle(word);
  });
  for (const kind of ["focusin", "pointerover"]) {
    panels.addEventListener(kind, (event) => {
      const word = wordAt(event);
      if (word === null) return;
      tellAbout(word);
      for (const chip of panels.querySelectorAll(".twin")) chip.classList.remove("twin");
      for (const { chips } of state.panels) if (chips[word] !== event.target) chips[word].classList.add("twin");
    });
  }
  panels.addEventListener("focusin", (event) => {
    const panel = state.panels.find(({ root }) => root.contains(event.target));
    if (wordAt(event) === null) return;
    for (const chip of panel.root.querySelectorAll('[tabindex="0"]')) chip.tabIndex = -1;
    event.target.tabIndex = 0;
  });
  panels.addEventListener("keydown", (event) => {
    const word = wordAt(event);
    const last = state.words.length - 1;
    const to = { ArrowRight: word + 1, ArrowLeft: word - 1, Home: 0, End: last }[event.key];
    if (word === null || to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const panel = state.panels.find(({ root }) => root.contains(event.target));
    panel.chips[Math.min(Math.max(to, 0), last)].focus();
  });
  for (const side of SIDES) $(`model-${side}`).addEventListener("change", choose);
}

// -- models -----------------------------------------------------------------------------------------------------------

function choose() {
  const [first, second] = SIDES.map((side) => $(`model-${side}`));
  for (const option of second.options) option.disabled = option.value === first.value;
  if (second.value === first.value) second.value = "";
  state.chosen = [first.value, second.value].filter(Boolean);
  document.body.classList.toggle("comparing", isComparing());
  readText();
}

async function start() {
  listen();
  try {
    state.models = await (await ask("/api/models")).json();
  } catch (error) {
    return complain(error.message);
  }
  $("model-b").append(make("option", { value: "" }, "none"));
  for (const side of SIDES) $(`model-${side}`).append(...state.models.map(({ name }) => make("option", { value: name }, name)));
  $("choice-b").hidden = state.models.length < 2;
  if (state.models.length > 1) $("model-b").value = state.models[1].name;
  choose();
}

start();
