"use strict";
// Draws the charts as SVG from the data in this page, and lets a reader choose axes, runs, points and words.
// Text from outside reaches the page through textContent alone.

const root = document.documentElement;
const SVG = "http://www.w3.org/2000/svg";
const AXIS_NAMES = { tokens: "tokens", seconds: "time", step: "step" };
const COLOURS = 8;

function make(tag, attributes = {}, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}
function html(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// -- theme ------------------------------------------------------------------------------------------------------------

const THEMES = ["system", "light", "dark"];
const themeButton = document.getElementById("theme");
function remembered() {
  try { return localStorage.getItem("mlm-report-theme"); } catch { return null; } // a file may have no storage
}
function setTheme(theme) {
  if (theme === "system") delete root.dataset.theme;
  else root.dataset.theme = theme;
  themeButton.textContent = `Theme: ${theme}`;
  try { localStorage.setItem("mlm-report-theme", theme); } catch { /* then it lasts as long as the page is open */ }
}
let theme = THEMES.includes(remembered()) ? remembered() : "system";
themeButton.hidden = false;
setTheme(theme);
themeButton.addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  setTheme(theme);
});

// -- numbers ----------------------------------------------------------------------------------------------------------

function short(value, digits = 3) {
  for (const [limit, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= limit) return `${Number((value / limit).toPrecision(digits))}${letter}`;
  }
  return `${Number(value.toPrecision(digits))}`;
}
function clock(seconds) {
  const whole = Math.round(seconds), two = (n) => String(n).padStart(2, "0");
  const days = Math.floor(whole / 86400), hours = Math.floor(whole / 3600) % 24, minutes = Math.floor(whole / 60) % 60;
  if (days) return `${days}d ${two(hours)}:${two(minutes)}`;
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}
function written(value, format, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (format === "percent") return `${Number((100 * value).toPrecision(digits))}%`;
  if (value === 0) return "0";
  if (format === "bytes") return `${Number((value / 2 ** 30).toPrecision(Math.min(digits, 3)))} GiB`;
  if (format === "count") return short(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return Number(value.toPrecision(Math.min(digits, 3))).toExponential().replace("e+", "e");
  return `${Number(value.toPrecision(digits))}`;
}
const onAxis = (value, axis) => (axis === "seconds" ? clock(value) : axis === "step" ? Math.round(value).toLocaleString("en") : short(value, 4));

const TIMES = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 432000, 864000];
function niceStep(span, count, axis) {
  const wanted = span / Math.max(1, count);
  if (axis === "seconds" && wanted > 0.5 && wanted <= 864000) return TIMES.find((step) => step >= wanted * 0.85);
  const power = 10 ** Math.floor(Math.log10(wanted));
  return power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= wanted * 0.85);
}
function ticks([low, high], count, scale, axis) {
  if (scale === "log") {
    const found = [];
    const decades = Math.log10(high / low);
    const factors = decades < 1.2 ? [1, 2, 3, 5] : decades < 2.5 ? [1, 3] : [1];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      for (const factor of factors) {
        const value = factor * 10 ** power;
        if (value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9)) found.push(value);
      }
    }
    const every = Math.ceil(found.length / Math.max(2, count));
    return found.filter((_, index) => index % every === 0);
  }
  const step = niceStep(high - low, count, axis);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

// -- data -------------------------------------------------------------------------------------------------------------

const store = document.getElementById("data");
const data = store ? JSON.parse(store.textContent) : { runs: [], charts: [], labels: {} };
const state = { axis: "tokens", scale: "linear", hidden: new Set() };

const medians = new WeakMap();
function moving(values, reach, summary) {
  return values.map((value, i) => {
    if (value === null) return null;
    // As far on both sides at the start, so that a steep fall is not blunted; at the end as far back as anywhere else.
    const near = Math.min(reach, i);
    return summary(values.slice(i - near, i + near + 1).filter((one) => one !== null));
  });
}

/** A moving median, and its moving mean over half as far: it follows the curve, and one spike does not move it. */
function smoothed(values) {
  if (values.length < 20) return values;
  if (!medians.has(values)) {
    const reach = Math.max(2, Math.round(values.length / 40));
    const median = (near) => near.sort((a, b) => a - b)[near.length >> 1];
    const mean = (near) => near.reduce((sum, one) => sum + one, 0) / near.length;
    medians.set(values, moving(moving(values, reach, median), reach >> 1, mean));
  }
  return medians.get(values);
}

/** What a chart draws: an entry per run and field, with its points on the chosen axis. */
function series(chart) {
  const found = [];
  data.runs.forEach((run, index) => {
    for (const part of ["training", "held_out"]) {
      for (const field of chart[part]) {
        const values = run[part][field];
        const x = run[part][state.axis];
        if (!values || !x) continue; // a run of an older version may not know its tokens or its time
        const isHeld = part === "held_out";
        const name = [data.runs.length > 1 ? run.name : "", data.labels[field] ?? (data.runs.length > 1 ? "" : chart.title.toLowerCase())];
        found.push({
          index, field, isHeld, x, ...values, colour: index % COLOURS, hidden: state.hidden.has(index),
          label: name.filter(Boolean).join(", "),
          isDashed: !(field === chart[part][0]),
          line: chart.is_noisy && !isHeld ? smoothed(values.mean) : values.mean,
        });
      }
    }
  });
  // With one run alone, colour tells training from held out; with several, it tells the runs apart.
  if (data.runs.length === 1) for (const one of found) one.colour = one.isHeld ? 1 + chart.held_out.indexOf(one.field) : 0;
  return found;
}

function span(list) {
  let low = Infinity, high = -Infinity;
  for (const value of list) {
    if (value === null || value === undefined) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : null;
}

function quantile(list, share) {
  const sorted = list.filter((value) => value !== null && value !== undefined).sort((a, b) => a - b);
  return sorted[Math.round(share * (sorted.length - 1))];
}

/** The range of values: all of the lines, and of the extremes as much as leaves the lines to be seen. */
function valueRange(chart, drawn) {
  const lines = span(drawn.flatMap((one) => one.line));
  if (!lines) return [0, 1];
  const lows = drawn.flatMap((one) => one.low ?? one.mean), highs = drawn.flatMap((one) => one.high ?? one.mean);
  let low = Math.min(lines[0], quantile(lows, 0.02)), high = Math.max(lines[1], quantile(highs, 0.98));
  const room = 0.3 * (high - low);
  low = Math.min(low, Math.max(span(lows)[0], low - room));
  high = Math.max(high, Math.min(span(highs)[1], high + room));
  if (["lr", "mask_prob", "tokens_per_second", "memory_bytes", "skipped_steps", "grad_norm", "peak_share"].includes(chart.id)) low = Math.min(0, low);
  if (chart.id === "fill") low = Math.min(low, high - 0.01);
  const least = Math.max(Math.abs(high) * 1e-3, 1e-12);
  if (high - low < least) { high += least; low -= low >= least || low < 0 ? least : low; }
  const margin = 0.05 * (high - low);
  const top = chart.format === "percent" ? Math.max(high, Math.min(1, high + margin)) : high + margin;
  return [low === 0 ? 0 : low - margin, top];
}

// -- a chart ----------------------------------------------------------------------------------------------------------

const figures = [];

function draw(figure) {
  const { chart, plot } = figure;
  const width = Math.max(240, Math.round(plot.clientWidth)), height = chart.is_wide ? Math.min(360, Math.max(240, Math.round(width * 0.42))) : 190;
  const drawn = series(chart).filter((one) => !one.hidden);
  const box = { left: 52, right: width - 14, top: 8, bottom: height - 24 };
  const isLog = state.scale === "log";
  const xs = span(drawn.flatMap((one) => (isLog ? one.x.filter((value) => value > 0) : one.x))) ?? [1, 10];
  const domain = isLog ? [xs[0], Math.max(xs[1], xs[0] * 1.01)] : [0, xs[1] || 1];
  const range = valueRange(chart, drawn);
  const along = isLog
    ? (value) => (value > 0 ? box.left + (Math.log(value / domain[0]) / Math.log(domain[1] / domain[0])) * (box.right - box.left) : null)
    : (value) => box.left + (value / domain[1]) * (box.right - box.left);
  const up = (value) => box.bottom - ((value - range[0]) / (range[1] - range[0])) * (box.bottom - box.top);

  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", focusable: "false" });
  const clip = make("clipPath", { id: `clip-${chart.id}` });
  clip.append(make("rect", { x: box.left, y: box.top - 1, width: box.right - box.left + 1, height: box.bottom - box.top + 2 }));
  svg.append(clip);
  const unit = chart.format === "bytes" ? 2 ** 30 : 1;
  for (const value of ticks(range.map((end) => end / unit), chart.is_wide ? 6 : 4, "linear").map((tick) => tick * unit)) {
    const y = up(value).toFixed(1);
    svg.append(make("line", { class: "rule", x1: box.left, x2: box.right, y1: y, y2: y }));
    svg.append(make("text", { x: box.left - 7, y: Number(y) + 3.7, "text-anchor": "end" }, written(value, chart.format, chart.format === "percent" ? 4 : 3)));
  }
  for (const value of ticks(domain, Math.round(width / 80), state.scale, state.axis)) {
    const x = along(value);
    const anchor = x > width - 22 ? "end" : "middle"; // the last one must not leave the page
    svg.append(make("line", { class: "axis", x1: x.toFixed(1), x2: x.toFixed(1), y1: box.bottom, y2: box.bottom + 4 }));
    svg.append(make("text", { x: (anchor === "end" ? Math.min(width, x + 14) : x).toFixed(1), y: box.bottom + 17, "text-anchor": anchor }, value === 0 ? "0" : onAxis(value, state.axis)));
  }
  svg.append(make("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));

  const marks = make("g", { "clip-path": `url(#clip-${chart.id})` });
  const over = make("g");
  for (const one of drawn) {
    const at = one.x.map((value) => (value === null ? null : along(value)));
    if (one.low) marks.append(make("path", { class: `band f${one.colour}`, d: band(at, one.low, one.high, up, box) }));
    if (one.line !== one.mean) marks.append(make("path", { class: `raw s${one.colour}`, d: path(at, one.mean, up) }));
    marks.append(make("path", { class: `curve s${one.colour}${one.isHeld ? " held" : ""}${one.isDashed ? " dashed" : ""}`, d: path(at, one.line, up) }));
    if ((one.isHeld && one.x.length <= 60) || one.x.length === 1) {
      one.mean.forEach((value, i) => {
        if (value !== null && at[i] !== null) over.append(make("circle", { class: `knot f${one.colour}`, cx: at[i].toFixed(1), cy: up(value).toFixed(1), r: 3 }));
      });
    }
    for (const i of Object.keys(one.bad ?? {})) { // a red tip where the value was not finite
      const x = at[i];
      if (x !== null) over.append(make("path", { class: "bad", d: `M${(x - 4).toFixed(1)} ${box.top}h8l-4 7z` }));
    }
  }
  svg.append(marks, over);
  const cursor = make("g");
  svg.append(cursor);
  plot.replaceChildren(svg);
  Object.assign(figure, { drawn, along, up, box, width, cursor });
  plot.setAttribute("aria-label", described(chart, drawn));
}

function path(at, values, up) {
  let d = "", isDown = false;
  for (let i = 0; i < values.length; i++) {
    if (values[i] === null || at[i] === null) { isDown = false; continue; }
    d += `${isDown ? "L" : "M"}${at[i].toFixed(1)} ${up(values[i]).toFixed(1)}`;
    isDown = true;
  }
  return d;
}
function band(at, low, high, up, box) {
  const inside = (y) => Math.min(box.bottom + 2, Math.max(box.top - 2, y)).toFixed(1);
  let d = "", start = 0;
  for (let i = 0; i <= at.length; i++) {
    if (i < at.length && low[i] !== null && at[i] !== null) continue;
    if (i > start) {
      const places = Array.from({ length: i - start }, (_, k) => start + k);
      d += `M${places.map((k) => `${at[k].toFixed(1)} ${inside(up(high[k]))}`).join("L")}`;
      d += `L${places.reverse().map((k) => `${at[k].toFixed(1)} ${inside(up(low[k]))}`).join("L")}Z`;
    }
    start = i + 1;
  }
  return d;
}

function described(chart, drawn) {
  const parts = drawn.map((one) => {
    const known = one.line.filter((value) => value !== null);
    if (!known.length) return "";
    const bad = Object.values(one.bad ?? {}).reduce((sum, count) => sum + count, 0);
    return `${one.label}: from ${written(known[0], chart.format)} to ${written(known[known.length - 1], chart.format)}${bad ? `, ${bad} values not finite` : ""}.`;
  });
  return `${chart.title} over ${AXIS_NAMES[state.axis]}. ${parts.join(" ")} Left and right arrow keys read values; a table follows.`;
}

// -- reading values ---------------------------------------------------------------------------------------------------

function nearest(x, value) {
  let best = 0;
  for (let i = 1; i < x.length; i++) if (x[i] !== null && (x[best] === null || Math.abs(x[i] - value) < Math.abs(x[best] - value))) best = i;
  return best;
}
function point(figure, value) {
  const { chart, drawn, along, up, box, cursor, said } = figure;
  cursor.replaceChildren();
  if (!drawn.length) return;
  const x = along(value);
  if (x === null) return;
  cursor.append(make("line", { class: "cursor", x1: x.toFixed(1), x2: x.toFixed(1), y1: box.top, y2: box.bottom }));
  const parts = [];
  for (const one of drawn) {
    const i = nearest(one.x, value);
    if (one.mean[i] === null || one.x[i] === null) continue;
    const y = Math.min(box.bottom, Math.max(box.top, up(one.mean[i])));
    const there = along(one.x[i]);
    if (there !== null) cursor.append(make("circle", { class: `knot f${one.colour}`, cx: there.toFixed(1), cy: y.toFixed(1), r: 3.5 }));
    const range = one.low && one.high[i] > one.low[i] ? ` (${written(one.low[i], chart.format, 3)} to ${written(one.high[i], chart.format, 3)})` : "";
    parts.push(`${one.label} ${written(one.mean[i], chart.format)}${range}`);
  }
  said.textContent = `${AXIS_NAMES[state.axis]} ${onAxis(value, state.axis)}: ${parts.join(" · ")}`;
}
function forget() {
  for (const figure of figures) { figure.cursor?.replaceChildren(); figure.said.textContent = ""; figure.at = null; }
}
function listen(figure) {
  const { plot } = figure;
  const main = () => figure.drawn.reduce((most, one) => (one.x.length > most.x.length ? one : most), figure.drawn[0]);
  plot.addEventListener("pointermove", (event) => {
    if (!figure.drawn.length) return;
    const frame = plot.getBoundingClientRect();
    const wanted = ((event.clientX - frame.left) / frame.width) * figure.width;
    const x = main().x;
    const at = x.map((value) => (value === null ? null : figure.along(value)));
    figure.at = nearest(at, wanted);
    for (const other of figures) point(other, x[figure.at]);
  });
  plot.addEventListener("pointerleave", forget);
  plot.addEventListener("blur", forget);
  plot.addEventListener("keydown", (event) => {
    if (!figure.drawn.length) return;
    const x = main().x, last = x.length - 1, jump = Math.max(1, Math.round(x.length / 40));
    const now = figure.at ?? (event.key === "ArrowLeft" ? last + jump : -jump);
    const next = { ArrowRight: now + jump, ArrowLeft: now - jump, Home: 0, End: last }[event.key];
    if (event.key === "Escape") forget();
    if (next === undefined) return;
    event.preventDefault();
    figure.at = Math.min(last, Math.max(0, next));
    if (x[figure.at] !== null) point(figure, x[figure.at]);
  });
}

// -- controls ---------------------------------------------------------------------------------------------------------

function redraw() { for (const figure of figures) draw(figure); }

function control() {
  const controls = document.getElementById("controls");
  if (!controls) return;
  controls.hidden = false;
  for (const radio of controls.querySelectorAll('[name="axis"]')) {
    radio.disabled = !data.runs.some((run) => run.training[radio.value]);
    radio.closest("label").hidden = radio.disabled;
  }
  const possible = [...controls.querySelectorAll('[name="axis"]:not(:disabled)')];
  const first = possible.find((radio) => data.runs.every((run) => run.training[radio.value])) ?? possible[0];
  if (first) { first.checked = true; state.axis = first.value; }
  controls.addEventListener("change", (event) => {
    const { name, value, checked } = event.target;
    if (name === "axis" || name === "scale") state[name] = value;
    if (name === "run") state.hidden[checked ? "delete" : "add"](Number(value));
    redraw();
  });
  const shown = document.getElementById("shown");
  shown.hidden = data.runs.length < 2;
  data.runs.forEach((run, index) => {
    const label = html("label"), box = html("input");
    Object.assign(box, { type: "checkbox", name: "run", value: index, checked: true });
    label.append(box, html("span", `swatch b${index % COLOURS}`), document.createTextNode(run.name));
    shown.append(label);
  });
  key();
}
function key() {
  const line = document.getElementById("key");
  const widths = data.runs.map((run) => run.training.width ?? 1);
  const one = Math.max(1, ...widths);
  const parts = [];
  if (data.runs.length === 1) {
    const named = [["b0", "training"]];
    if (data.runs[0].held_out.step) named.push(["b1", "held out"]);
    for (const [colour, name] of named) {
      const entry = html("span", "entry");
      entry.append(html("span", `swatch ${colour}`), ` ${name}`);
      line.append(entry);
    }
  } else parts.push("Thick lines with points are held out.");
  parts.push(one > 1 ? `A point stands for up to ${one.toLocaleString("en")} steps; the shade reaches from their lowest to their highest value.` : "The faint line is each step, the strong one their moving median.");
  if (data.runs.some((run) => Object.values(run.training).some((values) => values.bad))) parts.push("A red tip marks a value that is not finite.");
  line.append(parts.join(" "));
}

// -- samples ----------------------------------------------------------------------------------------------------------

function explain(sample, words, index) {
  const panel = sample.querySelector(".candidates");
  const row = sample.querySelectorAll("tbody tr")[index];
  const head = html("p"), list = html("ol");
  head.append(html("b", "", row.cells[0].textContent), ` got ${row.cells[1].textContent}. Likeliest:`);
  for (const cell of [...row.cells].slice(2)) {
    const item = html("li"), bar = make("svg", { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" });
    bar.append(make("rect", { class: "track", width: 100, height: 8, rx: 1 }), make("rect", { class: "value f0", width: 100 * Number(cell.dataset.p), height: 8, rx: 1 }));
    item.append(html("bdi", "", cell.querySelector("bdi").textContent), bar, html("span", "", cell.querySelector("small").textContent));
    list.append(item);
  }
  panel.replaceChildren(head, list);
  panel.hidden = false;
  words.forEach((word, i) => word.setAttribute("aria-pressed", String(i === index)));
}
for (const sample of document.querySelectorAll(".sample")) {
  const words = [...sample.querySelectorAll("button.w")];
  words.forEach((word, index) => {
    word.setAttribute("aria-pressed", "false");
    word.addEventListener("click", () => {
      if (word.getAttribute("aria-pressed") === "true") {
        word.setAttribute("aria-pressed", "false");
        sample.querySelector(".candidates").hidden = true;
      } else explain(sample, words, index);
    });
  });
}
const firstWord = document.querySelector(".sample button.w");
if (firstWord) firstWord.click(); // shows what choosing a word does

// -- begin ------------------------------------------------------------------------------------------------------------

for (const element of document.querySelectorAll(".chart")) {
  const chart = data.charts.find((one) => one.id === element.dataset.chart);
  const figure = { chart, plot: element.querySelector(".plot"), said: element.querySelector(".said"), drawn: [], at: null };
  figures.push(figure);
  listen(figure);
}
control();
redraw();
let width = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth === width) return; // on a phone the address bar comes and goes
  width = window.innerWidth;
  redraw();
});
root.dataset.ready = "true";
