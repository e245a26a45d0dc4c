// Small parts: elements that hold text and nothing else, numbers as people read them, candidates as bars.

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null)); // strings become text nodes
  return element;
}

export function percent(p) {
  if (p >= 0.9995) return "100%";
  return p >= 0.001 ? `${(100 * p).toFixed(1)}%` : "<0.1%";
}

export function odds(p) {
  if (p >= 0.01) return percent(p);
  return p > 1e-15 ? `1 in ${Number((1 / p).toPrecision(2)).toLocaleString("en")}` : "next to nothing";
}

export function barsOf(slot) {
  const rows = slot.candidates.map((each, index) => barOf(each, slot.written?.rank === index + 1 && slot.written.name === each.name));
  if (slot.written && slot.written.rank > slot.candidates.length) {
    const row = barOf({ ...slot.written, name: `${slot.written.rank.toLocaleString("en")}. ${slot.written.name}` }, true);
    row.classList.add("beyond");
    rows.push(row);
  }
  return make("ol", { class: "bars" }, ...rows);
}

function barOf({ name, probability }, written) {
  const row = make(
    "li",
    { class: written ? "written" : "" },
    make("span", { class: "token" }, name),
    make("span", { class: "share" }, percent(probability)),
  );
  row.style.setProperty("--share", probability);
  return row;
}
