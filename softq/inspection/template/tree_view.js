// The tree as a picture that can be moved, and what stands beside it.

const [stage, world] = ["tree", "world"].map(field);
let tree; // a Grown
let drawn = []; // its chips
let spots = []; // of each node its element
let view = { x: 0, y: 0, scale: 1 };
let called = null; // the answer that is asked for

const scales = {
  reward: { name: "implicit reward", of: (node) => tree.reward?.[node] ?? null, names: ["n", "p"] },
  surprise: { name: "surprise, −log π", of: (node) => (tree.known("logp", node) === null ? null : -tree.known("logp", node)), names: ["s", "s"] },
};
let colour = "reward";
let most = 1; // what the strongest colour stands for

function strongest() {
  const values = spots.map((_, node) => scales[colour].of(node)).filter((value) => value !== null).map(Math.abs);
  values.sort((a, b) => a - b);
  return values[Math.floor(0.98 * (values.length - 1))] || 1;
}

function shade(node) {
  const value = scales[colour].of(node);
  const step = value === null ? 0 : Math.min(given.shades, Math.round((given.shades * Math.abs(value)) / most));
  return step ? `${scales[colour].names[value < 0 ? 0 : 1]}${step}` : "";
}

// How thick the way to a chip is: by visits where there are any, else by how likely its first token is.
function weight(node) {
  if (!tree.of.columns.visits) return 0.8 + 5.2 * Math.exp(tree.known("logp", node) ?? -9);
  const visits = tree.known("visits", node) ?? 0;
  const beside = tree.behind(tree.of.parent[node]).map((each) => tree.known("visits", each) ?? 0);
  return 0.8 + 5.2 * (visits / Math.max(1, ...beside));
}

function show(number) {
  tree = new Grown(given.trees[number]);
  called = null;
  aside();
  render();
  home();
}

function render() {
  canvas.font = `13px ${getComputedStyle(stage).fontFamily}`;
  const root = chips(tree, field("pruned").checked);
  const asked = tree.of.prompt.replace(/\s+/g, " ").trim();
  fill(root, (asked.length > 90 ? `…${asked.slice(-90)}` : asked).split(/(?= )/).map(seen), 0);
  const order = [root];
  for (const chip of order) order.push(...chip.behind);
  for (const chip of order.slice(1)) {
    fill(chip, chip.nodes.map((node) => seen(tree.of.piece[node])), tree.ends.has(chip.nodes.at(-1)) ? SIGN : 0);
  }
  drawn = arrange(root);
  spots = new Array(tree.size).fill(null);
  const elements = drawn.map(element);
  most = strongest();
  const edges = drawn.slice(1).map(edge);
  world.replaceChildren(...edges.reverse(), ...elements); // the best way on top
  tint();
  const first = drawn[1]?.nodes[0];
  if (first !== undefined) spots[first].tabIndex = 0;
  point(called);
}

function state(chip) {
  const last = chip.nodes.at(-1);
  if (last === undefined) return "root";
  const rank = tree.rank[last];
  const end = tree.ends.get(last);
  const cut = end !== undefined && !tree.of.answers[end].ended;
  return `${rank === Infinity ? "given-up" : rank === 0 ? "best" : ""}${end === undefined ? "" : " end"}${cut ? " cut" : ""}`;
}

function element(chip) {
  const group = draw("g", { class: `chip ${state(chip)}`, transform: `translate(${chip.x.toFixed(1)} ${chip.y.toFixed(1)})` });
  group.append(draw("rect", { class: "box", width: chip.width.toFixed(1), height: chip.height, rx: 6 }));
  chip.spots.forEach((spot, at) => {
    const words = draw("text", { x: (spot.x + 1.5).toFixed(1), y: spot.y + 15 });
    words.append(spot.text);
    if (!chip.nodes.length) return group.append(words);
    const node = chip.nodes[at];
    const box = draw("rect", { class: "t", x: spot.x.toFixed(1), y: spot.y, width: spot.width.toFixed(1), height: LINE - 2, rx: 3 });
    const token = draw("g", { class: "tk", tabindex: -1, role: "img", "aria-label": spot.text, "data-node": node }, box, words);
    spots[node] = token;
    group.append(token);
  });
  const rank = tree.ends.get(chip.nodes.at(-1));
  if (rank !== undefined) {
    const badge = draw("g", { class: `badge${rank ? "" : " first"}`, transform: `translate(${(chip.width - 13).toFixed(1)} ${chip.height / 2})` });
    badge.append(draw("circle", { r: 9 }), draw("text", { y: 4 }, `${rank + 1}`));
    group.append(badge);
  }
  chip.element = group;
  return group;
}

function edge(chip) {
  const [from, middle] = [chip.above.x + chip.above.width, chip.above.middle];
  const [bend, down] = [LINK / 2, (chip.middle - middle).toFixed(1)];
  const path = `M${from.toFixed(1)} ${middle.toFixed(1)}H${chip.above.reach.toFixed(1)}c${bend} 0 ${bend} ${down} ${LINK} ${down}`;
  chip.edge = draw("path", { d: path, "stroke-width": weight(chip.nodes[0]).toFixed(2) });
  return chip.edge;
}

// The colours of tokens and ways, and what they mean.
function tint() {
  most = strongest();
  spots.forEach((token, node) => token?.firstChild.setAttribute("class", `t ${shade(node)}`));
  for (const chip of drawn.slice(1)) {
    chip.edge.setAttribute("class", `edge ${shade(chip.nodes[0])}${tree.rank[chip.nodes[0]] === Infinity ? " given-up" : ""}`);
  }
  const steps = Array.from({ length: given.shades }, (_, n) => n + 1);
  const bar = make("div", "steps");
  const signs = colour === "reward" ? [...steps.map((n) => `n${n}`).reverse(), "", ...steps.map((n) => `p${n}`)] : ["", ...steps.map((n) => `s${n}`)];
  bar.append(...signs.map((name) => make("i", name)));
  const unit = colour === "reward" ? given.unit : "nats";
  const ends = make("div", "ends");
  const least = colour === "reward" ? [make("span", "", signed(-most, 2)), make("span", "", "0")] : [make("span", "", "0")];
  ends.append(...least, make("span", "", `${colour === "reward" ? signed(most, 2) : number(most, 2)} ${unit}`));
  field("legend").replaceChildren(bar, ends);
  const thick = tree.of.columns.visits ? "the more it was visited" : "the likelier its first token is to the policy";
  field("told").textContent = `A way is the thicker ${thick}; colour is the ${scales[colour].name} of a token.${tree.of.columns.visits ? " What was never visited is told of beside a token, and not drawn." : ""}`;
}

// One answer's path, and the rest pale; null: all alike.
function point(rank) {
  called = rank;
  world.classList.toggle("quiet", rank !== null);
  const path = new Set(rank === null ? [] : tree.path(tree.of.answers[rank].node));
  for (const chip of drawn.slice(1)) {
    const on = path.has(chip.nodes[0]);
    chip.element.classList.toggle("called", on);
    chip.edge.classList.toggle("called", on);
  }
  [...field("answers").children].forEach((item, n) => item.firstChild.setAttribute("aria-pressed", n === rank));
}

function aside() {
  const { of } = tree;
  field("prompt").textContent = of.prompt;
  const rows = [["nodes", of.thought_of], ["evaluations", Math.round(of.evaluations)], ["seconds", of.seconds]];
  if (of.thought_of > tree.size) rows.splice(1, 0, ["on this page", tree.size]);
  field("counts").replaceChildren(...rows.map(([name, value]) => make("div", "", make("dt", "", name), make("dd", "", plain(value)))));
  const items = of.answers.map((answer, rank) => {
    const worth = [`log π ${number(answer.logp, 2)}`];
    if (answer.reward !== null) worth.push(`reward ${signed(answer.reward, 2)}`);
    if (answer.score !== null && Math.abs(answer.score - answer.logp) > 0.005) worth.push(`score ${number(answer.score, 2)}`);
    if (!answer.ended) worth.push("cut");
    const button = make("button", "", make("span", "rank", `${rank + 1}`), make("span", "said", answer.text.trim() || "∅"), make("span", "worth", worth.join(" · ")));
    button.type = "button";
    button.addEventListener("click", () => choose(called === rank ? null : rank));
    return make("li", "", button);
  });
  field("answers").replaceChildren(...items);
  const names = Object.keys(scales).filter((name) => name !== "reward" || tree.reward);
  if (!names.includes(colour)) colour = names[0];
  field("colour").replaceChildren(...names.map((name) => new Option(scales[name].name, name, false, name === colour)));
}

function choose(rank) {
  point(rank);
  if (rank !== null) seek(spots[tree.of.answers[rank].node]);
}

function place() {
  world.setAttribute("transform", `translate(${view.x.toFixed(2)} ${view.y.toFixed(2)}) scale(${view.scale.toFixed(4)})`);
}

// All of the tree, if it can be read then; else from its prompt on, as large as it can be read.
function home(whole = false) {
  const { width: w, height: h } = stage.getBoundingClientRect();
  const [right, bottom] = [Math.max(...drawn.map((chip) => chip.x + chip.width)), drawn[0].bottom];
  const fits = Math.min((w - 40) / right, (h - 90) / bottom, 1.25);
  const scale = whole ? fits : Math.max(fits, 0.72);
  view = { x: Math.max(20, (w - scale * right) / 2), y: Math.max(24, (h - 70 - scale * bottom) / 2), scale };
  place();
}

function zoom(by, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
  const scale = Math.min(4, Math.max(0.02, view.scale * by));
  const ratio = scale / view.scale;
  view = { x: x - ratio * (x - view.x), y: y - ratio * (y - view.y), scale };
  place();
}

// Move a token into sight.
function seek(token) {
  if (!token) return;
  const [box, frame] = [token.getBoundingClientRect(), stage.getBoundingClientRect()];
  const over = (low, high, from, to) => (low < from ? from - low : high > to ? to - high : 0);
  const [dx, dy] = [over(box.left, box.right, frame.left + 40, frame.right - 40), over(box.top, box.bottom, frame.top + 40, frame.bottom - 70)];
  if (dx || dy) (view = { ...view, x: view.x + dx, y: view.y + dy }), place();
}

let held = null; // where the pointer is while it moves the tree
stage.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  held = { x: event.clientX, y: event.clientY };
});
addEventListener("pointermove", (event) => {
  if (!held) return;
  stage.classList.add("moving");
  view = { ...view, x: view.x + event.clientX - held.x, y: view.y + event.clientY - held.y };
  held = { x: event.clientX, y: event.clientY };
  place();
});
for (const name of ["pointerup", "pointercancel"]) addEventListener(name, () => ((held = null), stage.classList.remove("moving")));
stage.addEventListener(
  "wheel",
  (event) => {
    event.preventDefault();
    const frame = stage.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), event.clientX - frame.left, event.clientY - frame.top);
  },
  { passive: false },
);
