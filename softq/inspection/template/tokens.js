// A completion as text whose tokens have colours, and the curve of its running sum.

const SPECIAL = /^\s*(<\|[^<>]+\|>|<\/?(s|bos|eos|pad|unk|mask|sep|cls|think|start_of_turn|end_of_turn|endoftext)>|\[\/?(INST|SYS|BOS|EOS|PAD|UNK|SEP|CLS|MASK)\])\s*$/;
const MOST = 240; // tokens of a completion that are drawn before anyone asks for the rest
const shown = new WeakMap(); // completion element -> { side, units, running, ... }

// Tokens as they are shown: one without text belongs to the character that the one before it began.
function unitsOf(side, strings) {
  const units = [];
  side.text.forEach((index, at) => {
    const text = strings[index];
    if (text === "" && units.length) units.at(-1).to = at + 1;
    else units.push({ from: at, to: at + 1, text });
  });
  return units;
}

function sum(values, unit) {
  let total = 0;
  for (let at = unit.from; at < unit.to; at++) total += values[at];
  return total / UNITS;
}

// The class of the colour: n and p on either side of 0, s for surprise where there is no reward.
function shade(side, unit) {
  const value = sum(side.reward ?? side.logp, unit);
  const most = side.reward ? given.scale.reward : given.scale.logp;
  const step = Math.min(given.shades, Math.round((given.shades * Math.abs(value)) / most));
  return step ? `${side.reward ? (value < 0 ? "n" : "p") : "s"}${step}` : "";
}

function token(unit, at, side, shared) {
  const span = make("span", `tok ${shade(side, unit)}`);
  span.dataset.at = at;
  span.tabIndex = -1;
  if (unit.from < shared) span.classList.add("common");
  else if (unit.from === shared || unit.to === shared + 1) span.classList.add("parting");
  const last = unit.to === side.text.length && /^\s*<[^<>]+>$/.test(unit.text); // most likely an end token
  if (SPECIAL.test(unit.text) || last) span.classList.add("special");
  else {
    if (/^ /.test(unit.text)) span.classList.add("lead-space");
    else if (/ $/.test(unit.text)) span.classList.add("trail-space");
    if (/^ +$/.test(unit.text)) span.classList.add("all-space");
  }
  span.append(...visible(unit.text));
  if (unit.text === "") span.append(mark("∅", ""));
  return span;
}

// The text in pieces, with marks for what can not be seen. The marks are no part of the text: they are not copied.
function visible(text) {
  const pieces = [];
  let last = 0;
  for (const { 0: character, index } of text.matchAll(UNSEEN)) {
    if (index > last) pieces.push(text.slice(last, index));
    const code = character.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
    const seen = MARKS[character];
    pieces.push(mark(seen ?? `U+${code}`, seen ? character : ""));
    last = index + character.length;
  }
  if (last < text.length) pieces.push(text.slice(last));
  return pieces;
}

function mark(sign, text) {
  const span = make("span", sign.length > 1 ? "mark code" : "mark", text);
  span.dataset.mark = sign;
  return span;
}

// A completion: one stop of the Tab key, the arrow keys go from token to token.
function completion(side, policy, shared, told) {
  const units = unitsOf(side, policy.blocks.strings);
  const element = make("div", "completion");
  element.dir = "auto";
  element.setAttribute("role", "group");
  element.setAttribute("aria-label", told);
  const values = side.reward ?? side.logp;
  let total = 0;
  const running = values.map((value) => (total += value));
  shown.set(element, { side, units, running, policy });
  if (!units.length) {
    element.classList.add("nothing");
    element.append("no tokens");
    return [element];
  }
  const first = Math.max(MOST, shared + MOST / 2);
  const add = (from, to) => element.append(...units.slice(from, to).map((unit, at) => token(unit, from + at, side, shared)));
  add(0, first);
  element.firstChild.tabIndex = 0;
  if (units.length <= first) return [element];
  const rest = make("button", "", `Show the other ${thousands(units.length - first)} tokens`);
  rest.type = "button";
  rest.addEventListener("click", () => {
    add(first, units.length);
    focusOn(element.children[first]);
    rest.remove();
  });
  return [element, rest];
}

// The running sums of the completions of a pair, on one scale.
function extent(sides) {
  let [low, high, length] = [0, 0, 1];
  for (const side of sides) {
    let total = 0;
    for (const value of side.reward ?? side.logp) {
      total += value;
      low = Math.min(low, total);
      high = Math.max(high, total);
    }
    length = Math.max(length, side.text.length);
  }
  return { low, high: Math.max(high, low + 1), length };
}

function spark(side, { low, high, length }) {
  const y = (value) => (100 - (100 * (value - low)) / (high - low)).toFixed(2);
  let total = 0;
  const values = side.reward ?? side.logp;
  const path = `M0 ${y(0)}${values.map((value, at) => `L${at + 1} ${y((total += value))}`).join("")}`;
  return draw(
    "svg",
    { class: "spark", viewBox: `0 0 ${length} 100`, preserveAspectRatio: "none", "aria-hidden": "true" },
    draw("path", { class: "base", d: `M0 ${y(0)}H${length}` }),
    draw("path", { class: "sum", d: path }),
    draw("path", { class: "here" }),
  );
}
