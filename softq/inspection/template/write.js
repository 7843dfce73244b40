// What both pages, the report and the tree, write with.

// What can not be seen, or would turn the text around it; joiners (U+200C, U+200D) shape letters and emoji and stay.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]/g;
const MARKS = { "\n": "↵", "\t": "→", "\r": "␍" };

function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  return value.toFixed(digits).replace(/^-(?=0\.?0*$)/, "").replace("-", "−");
}

function signed(value, digits = 3) {
  const text = number(value, digits);
  return value > 0 && /[1-9]/.test(text) ? `+${text}` : text;
}

function percent(logp) {
  if (logp === null || logp === undefined) return "–";
  const share = 100 * Math.exp(logp);
  return `${share >= 9.95 ? share.toFixed(0) : share >= 0.01 ? share.toPrecision(2) : "<0.01"}%`;
}

// An element with a class and contents; strings among them are text and nothing else.
function make(tag, name = "", ...contents) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...contents);
  return element;
}

function draw(tag, attributes = {}, ...contents) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...contents);
  return element;
}
