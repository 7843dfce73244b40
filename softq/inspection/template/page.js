// What the reader does: order, filter, search, open one pair, save row numbers, light or dark.

const [order, source, search, status, more] = ["order", "source", "search", "status", "more"].map(field);
const orders = given.pairs.orders;
const texts = []; // of each row, small letters: what is searched
let asked = 0; // which search is the latest

function sorted() {
  const { by, descending } = orders[Number(order.value)] ?? {};
  const every = records.map((_, row) => row);
  const values = columns[by];
  if (!values) return every;
  const sign = descending ? -1 : 1;
  return every.sort((a, b) => {
    if (values[a] === null || values[b] === null) return (values[a] === null) - (values[b] === null) || a - b;
    return sign * (values[a] < values[b] ? -1 : values[a] > values[b] ? 1 : 0) || a - b;
  });
}

// Puts the rows that fit into the list. Searching reads all completions, block by block, and says how far it is.
async function update() {
  const mine = ++asked;
  const words = search.value.trim().toLowerCase();
  const every = sorted().filter(
    (row) => (source.value === "" || String(known("source", row) ?? "unnamed") === source.value) && (!only || only.records.has(records[row])),
  );
  show(words ? every.filter((row) => fits(row, words)) : every, every.length, words && "searching…");
  if (!words) return;
  let paused = performance.now();
  for (const row of [...every].sort((a, b) => a - b)) {
    if (texts[row] !== undefined) continue;
    texts[row] = await textOf(row);
    if (mine !== asked) return;
    if (performance.now() - paused < 60) continue;
    show(every.filter((each) => fits(each, words)), every.length, `searching… ${Math.round((100 * row) / records.length)}%`);
    await new Promise((resolve) => setTimeout(resolve));
    if (mine !== asked) return;
    paused = performance.now();
  }
  show(every.filter((row) => fits(row, words)), every.length);
}

function fits(row, words) {
  return (texts[row] ?? `${known("prompt", row) ?? ""}`.toLowerCase()).includes(words);
}

async function textOf(row) {
  const { blocks } = policies[0];
  const pair = blocks.peek(row) ?? (await blocks.load(row));
  const sides = Object.values(pair ?? {}).map((side) => side.text.map((index) => blocks.strings[index]).join(""));
  return [known("prompt", row), known("where", row), ...sides].join("\n").toLowerCase();
}

function show(found, of, going = "") {
  const same = found.length === matching.length && found.every((row, n) => row === matching[n]);
  matching = found;
  const what = given.kind === "pairs" ? "pairs" : "completions";
  const from = of < records.length ? ` of ${thousands(of)}` : "";
  status.replaceChildren(`${thousands(found.length)}${search.value.trim() ? from || ` of ${thousands(records.length)}` : ""} ${what}`);
  if (!search.value.trim() && orders[Number(order.value)]) status.append(`, ${orders[Number(order.value)].told}`);
  if (given.pairs.of > records.length) status.append(`; the page carries ${thousands(records.length)} of ${thousands(given.pairs.of)}`);
  if (going) status.append(`; ${going}`);
  if (only) {
    const all = make("button", "", `Not only those of ${only.name}`);
    all.type = "button";
    all.addEventListener("click", () => ((only = null), update()));
    status.append(" ", all);
  }
  if (!same || !rows.length) cut();
}

let matching = [];
function cut() {
  rows = matching.slice(0, limit);
  placeOf = new Map(rows.map((row, n) => [row, n]));
  more.hidden = matching.length <= FEW;
  more.textContent = limit === FEW ? `Show all ${thousands(matching.length)}` : "Show a few";
  arrange();
  paint();
}

function all(yes) {
  limit = yes ? Infinity : FEW;
  cut();
}

// Opens the pair of a record, wherever it stands.
async function open(record) {
  const row = rowOf.get(record);
  if (row === undefined) {
    status.textContent = `Record ${record} is not among the ${given.kind} of this page.`;
    return field("pairs").scrollIntoView();
  }
  if (!matching.includes(row)) {
    only = null;
    search.value = source.value = "";
    await update();
  }
  if (!placeOf.has(row)) all(true);
  go(row);
  for (const element of list.children) element.classList.toggle("called", element.row === row);
}

function go(row) {
  scrollTo(0, top() + offsets[placeOf.get(row)] - edge() - 8);
  paint();
  drawn.get(row)?.focus({ preventScroll: true });
}

function followed() {
  const record = location.hash.match(/^#pair=(-?\d+)$/)?.[1];
  if (record !== undefined) open(Number(record));
}

// From a pair to the next one or the one before, and to its first token.
function step(by) {
  const current = document.activeElement?.closest(".pair");
  const row = rows[current ? placeOf.get(current.row) + by : 0];
  if (row === undefined) return;
  go(row);
  const first = drawn.get(row)?.querySelector(".tok");
  if (first) focusOn(first);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
  if (event.key === "Escape") hush();
  const inside = field("pairs").contains(document.activeElement);
  if (inside && (event.key === "j" || event.key === "k")) return step(event.key === "j" ? 1 : -1);
  if (!event.target.matches(".tok") || !/^(Arrow|Home|End)/.test(event.key)) return;
  event.preventDefault();
  const next = neighbour(event.target, event.key);
  if (next) focusOn(next);
});

for (const finding of document.querySelectorAll(".finding")) {
  const wanted = finding.dataset.records.split(",").filter(Boolean).map(Number);
  const does = finding.querySelector(".does");
  if (!does) continue;
  does.hidden = false;
  does.querySelector(".save").addEventListener("click", () => save(finding.dataset.name, wanted));
  does.querySelector(".show").addEventListener("click", async () => {
    only = { name: finding.dataset.name, records: new Set(wanted) };
    search.value = source.value = "";
    await update();
    field("pairs").scrollIntoView();
    field("pairs").focus({ preventScroll: true });
  });
}

field("theme").hidden = false;
field("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark" || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});

orders.forEach(({ name }, n) => order.append(new Option(name, n)));
const sources = [...new Set(records.map((_, row) => String(known("source", row) ?? "unnamed")))].sort();
source.append(new Option("all", ""), ...sources.map((name) => new Option(name, name)));
field("source-label").hidden = sources.length < 2;
field("tools").hidden = false;
field("tools").addEventListener("submit", (event) => event.preventDefault());
for (const element of [order, source]) element.addEventListener("change", update);
search.addEventListener("input", update);
more.addEventListener("click", () => {
  all(limit === FEW);
  if (limit === FEW) field("pairs").scrollIntoView();
});
field("save").addEventListener("click", () => save("rows", matching.map((row) => records[row])));
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => (each.open = true)));
addEventListener("hashchange", followed);
update().then(followed);
