// The list of pairs. Only those near the window are in the document: each is placed by the heights of those before it, which
// are guessed until they are seen. Where a guess was wrong, what is on the screen stays where it is.

const FEW = 4; // pairs before anyone asks for all
const NEAR = 700; // px above and below the window that are drawn, too
const LONG = 420; // characters of a prompt before it is cut
const list = document.getElementById("list");
const field = (name) => document.getElementById(name);
const heights = new Float64Array(records.length); // seen, or 0
const lengths = SIDES.map((side) => columns[`${side}_tokens`]); // in tokens
const drawn = new Map(); // row -> element
let rows = []; // in the order in which they are shown
let placeOf = new Map(); // row -> its place among them
let offsets = [0]; // px from the top of the list, one more than rows
let limit = FEW;
let only = null; // { name, records }: of a finding

const watcher = new ResizeObserver((entries) => {
  const anchor = rows[at(scrollY + edge() + 16 - top())];
  for (const { target } of entries) if (target.isConnected) heights[target.row] = target.offsetHeight;
  const before = offsets[placeOf.get(anchor)];
  arrange();
  const moved = offsets[placeOf.get(anchor)] - before;
  if (moved && scrollY + edge() > top()) scrollBy(0, moved);
  paint();
});

const top = () => list.getBoundingClientRect().top + scrollY;
const edge = () => document.querySelector(".bar").offsetHeight + (getComputedStyle(field("tools")).position === "sticky" ? field("tools").offsetHeight : 0);

// The place in `rows` of what is so many px below the top of the list.
function at(px) {
  let [low, high] = [0, rows.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (offsets[middle + 1] > px) high = middle;
    else low = middle + 1;
  }
  return Math.max(low, 0);
}

// The height of a pair that was not seen yet, from the lengths of its texts.
function guess(row, width) {
  const across = width > 760 ? SIDES.length : 1;
  let [most, total] = [0, 0];
  for (const tokens of lengths) {
    const lines = Math.ceil((4.6 * 8 * across * policies.length * Math.min(MOST, tokens?.[row] ?? 50)) / width);
    most = Math.max(most, lines);
    total += lines;
  }
  return 200 + 30 * (across > 1 ? most : total);
}

function arrange() {
  const width = list.clientWidth || 1;
  let end = 0;
  offsets = [end, ...rows.map((row) => (end += heights[row] || guess(row, width)))];
  list.style.height = `${end}px`;
  for (const [row, element] of drawn) element.style.transform = `translateY(${offsets[placeOf.get(row)] ?? 0}px)`;
}

function paint() {
  const from = scrollY - top();
  const visible = from + innerHeight + NEAR > 0 && from - NEAR < offsets.at(-1);
  const near = visible ? rows.slice(at(from - NEAR), at(from + innerHeight + NEAR) + 1) : [];
  const wanted = rows.length > FEW ? near : rows; // a few are always there, to be printed, too
  const keep = new Set(wanted);
  for (const [row, element] of drawn) {
    if (keep.has(row) || (element.contains(document.activeElement) && placeOf.has(row))) continue;
    watcher.unobserve(element);
    element.remove();
    drawn.delete(row);
  }
  for (const row of wanted) if (!drawn.has(row)) drawn.set(row, pairElement(row));
  [...drawn.keys()].sort((a, b) => placeOf.get(a) - placeOf.get(b)).forEach((row, n) => {
    const element = drawn.get(row);
    element.style.transform = `translateY(${offsets[placeOf.get(row)]}px)`;
    element.setAttribute("aria-posinset", placeOf.get(row) + 1);
    element.setAttribute("aria-setsize", rows.length);
    if (list.children[n] !== element) list.insertBefore(element, list.children[n] ?? null);
    watcher.observe(element);
  });
}

let due = false;
function soon() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    paint();
  });
}

// One pair: its head and prompt at once, its completions as soon as they are unpacked.
function pairElement(row) {
  const element = make("article", "pair");
  element.row = row;
  element.tabIndex = -1;
  element.setAttribute("role", "listitem");
  element.setAttribute("aria-label", `record ${records[row]}`);
  const sides = make("div", `sides${SIDES.length > 1 ? "" : " one"}${policies.length > 1 ? " both" : ""}`);
  element.append(make("div", "sheet", head(row), prompt(known("prompt", row) ?? ""), sides));
  const pairs = policies.map((policy) => policy.blocks.peek(row));
  const fill = (all) => sides.append(...SIDES.map((side) => sideElement(side, row, all)));
  if (pairs.every((pair) => pair !== undefined)) fill(pairs);
  else Promise.all(policies.map((policy) => policy.blocks.load(row))).then(fill);
  return element;
}

function head(row) {
  const link = make("a", "", `#${records[row]}`);
  link.href = `#pair=${records[row]}`;
  const header = make("header", "", link);
  for (const name of ["where", "source"]) {
    const text = known(name, row);
    if (!text) continue;
    header.append(make("bdi", name, name === "where" ? text.replace(/^.*\//, "") : text));
    header.lastChild.title = text;
  }
  const noise = known("noise", row);
  if (noise !== null) header.append(make("span", "", `label wrong: ${percent(Math.log(noise))}`));
  const sums = make("span", "sums");
  for (const policy of policies) {
    const margin = known("margin", row, policy.columns);
    if (margin === null) continue;
    const says = margin > 0 ? "prefers chosen" : margin < 0 ? "prefers rejected" : "undecided";
    const name = policies.length > 1 ? `${policy.name} ` : "";
    sums.append(make("span", "", `${name}${says} `, make("b", "", signed(margin))));
  }
  header.append(sums);
  return header;
}

// The prompt from its end, where the question stands, without the blank lines around and in it.
function prompt(text) {
  const element = make("div", "prompt");
  element.dir = "auto";
  const lines = text.trim().replace(/\n\s*\n/g, "\n");
  const put = (part) => part.split("\n").flatMap((line, n) => (n ? ["\n", ...visible(line)] : visible(line)));
  element.append(...put(lines.slice(-LONG)));
  if (lines.length > LONG) {
    const all = make("button", "", "All of the prompt …");
    all.type = "button";
    all.addEventListener("click", () => element.replaceChildren(...put(lines)));
    element.prepend(all, " ");
  }
  return element;
}

// One side of a pair: what each policy makes of the same completion, one above the other.
function sideElement(name, row, pairs) {
  const title = SIDES.length > 1 ? name[0].toUpperCase() + name.slice(1) : "Completion";
  const element = make("section", `side ${name}`);
  pairs.forEach((pair, n) => {
    const side = pair?.[name];
    const policy = policies[n];
    const said = make("div", "said");
    if (n === 0 || policies.length > 1) said.append(sideHead(n ? "" : title, name, row, policy));
    if (!side) said.append(make("p", "soft", "was not scored"));
    else {
      const label = `${title} completion${policies.length > 1 ? `, ${policy.name}` : ""}`;
      said.append(...completion(side, policy, SIDES.length > 1 ? known("shared", row) ?? -1 : -1, label));
      const all = SIDES.map((each) => pair[each]).filter(Boolean);
      if (side.text.length) said.append(spark(side, extent(all)));
    }
    element.append(said);
  });
  return element;
}

function sideHead(title, name, row, policy) {
  const heading = make("h4", "", title);
  if (policies.length > 1) {
    heading.append(make("span", "", make("i", `dot ${policy === policies[0] ? "own" : "theirs"}`), ` ${policy.name}`));
  }
  const tokens = known(`${name}_tokens`, row, policy.columns);
  const moved = known(`${name}_moved`, row, policy.columns);
  const reward = known(`${name}_reward`, row, policy.columns);
  if (tokens !== null) heading.append(make("span", "", `${thousands(tokens)} tokens`));
  if (moved !== null) heading.append(make("span", "", `Δ log π ${signed(moved, 2)} nats`));
  if (reward !== null) heading.append(make("span", "score", `${signed(reward)} ${given.unit}`));
  return heading;
}

addEventListener("scroll", () => (follow(), soon()), { passive: true });
addEventListener("resize", () => {
  rows.forEach((row) => drawn.has(row) || (heights[row] = 0));
  arrange();
  soon();
});
