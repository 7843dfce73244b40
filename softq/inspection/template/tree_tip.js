// What is known of a token, beside the token that the pointer is on or that has the focus; and the keys.

const tip = field("tip");
const MOST = 8; // tokens beside it that are told of
const NAMES = { score: "score", visits: "visits", value: "value", drawn_logp: "log-prob drawn" };
let told = null;

function tell(token) {
  hush();
  told = token;
  token.classList.add("told");
  const node = Number(token.dataset.node);
  const path = tree.path(node);
  const heading = make("p", "text", make("bdi", "", seen(tree.of.piece[node]).replace(/ /g, "·")), make("span", "", `token ${path.length}`));
  tip.replaceChildren(heading, numbers(node, path), ...ending(node), beside(node));
  tip.hidden = false;
  token.setAttribute("aria-describedby", "tip");
  beneath(token.getBoundingClientRect());
}

function hush() {
  told?.classList.remove("told");
  told?.removeAttribute("aria-describedby");
  told = null;
  tip.hidden = true;
}

function beneath(box) {
  const { width: w, height: h } = tip.getBoundingClientRect();
  if (matchMedia("(max-width: 640px)").matches) return tip.removeAttribute("style");
  const below = box.bottom + 10;
  const top = below + h < innerHeight || box.top - 10 - h < 0 ? below : box.top - 10 - h;
  tip.style.top = `${Math.max(4, Math.min(top, innerHeight - h - 4))}px`;
  tip.style.left = `${Math.max(8, Math.min(box.left - 12, document.documentElement.clientWidth - w - 8))}px`;
}

function total(values, path) {
  return path.reduce((sum, node) => sum + (values[node] ?? NaN), 0);
}

function numbers(node, path) {
  const list = make("dl");
  const put = (name, text) => list.append(make("div", "", make("dt", "", name), make("dd", "", text)));
  const { logp, ref_logp: ref, ...others } = tree.of.columns;
  put("log π", number(logp[node]));
  if (ref) put("log π_ref", number(ref[node]));
  if (tree.reward) put("reward", signed(tree.reward[node], 4));
  if (tree.reward) put("reward so far", signed(total(tree.reward, path), 4));
  put("log π so far", number(total(logp, path)));
  for (const name of Object.keys(others)) {
    const value = others[name][node];
    if (value !== null) put(NAMES[name] ?? name.replaceAll("_", " "), name === "value" ? signed(value, 4) : plain(value));
  }
  return list;
}

// Where a path ends: as an answer, or given up.
function ending(node) {
  const rank = tree.ends.get(node);
  const lead = tree.rank[node];
  if (rank !== undefined) return [make("p", "", make("b", "", `Answer ${rank + 1}`), tree.of.answers[rank].ended ? "" : ", cut at the limit")];
  return lead === Infinity ? [make("p", "soft", tree.behind(node).length ? "leads to no answer that was given" : "given up here")] : [];
}

// What else was thought of in its place, the likeliest first.
function beside(node) {
  const nodes = [...tree.behind(tree.of.parent[node])].sort((a, b) => (tree.known("logp", b) ?? 0) - (tree.known("logp", a) ?? 0));
  const some = nodes.slice(0, MOST);
  if (!some.includes(node)) some.splice(-1, 1, node);
  const { visits, value } = tree.of.columns;
  const heads = [`Thought of here${nodes.length > MOST ? ` (${nodes.length})` : ""}`, "π", ...(tree.reward ? ["π_ref", "reward"] : []), ...(value ? ["value"] : []), ...(visits ? ["visits"] : [])];
  const row = (each) => {
    const cells = [percent(tree.known("logp", each))];
    if (tree.reward) cells.push(percent(tree.known("ref_logp", each)), signed(tree.reward[each], 2));
    if (value) cells.push(signed(value[each], 2));
    if (visits) cells.push(visits[each] === null ? "–" : plain(visits[each]));
    const name = make("th", "", make("bdi", "", seen(tree.of.piece[each]).replace(/ /g, "·")));
    return make("tr", each === node ? "it" : "", name, ...cells.map((cell) => make("td", "right", cell)));
  };
  const head = make("tr", "", ...heads.map((name, n) => make("th", n ? "right" : "", name)));
  return make("table", "", make("thead", "", head), make("tbody", "", ...some.map(row)));
}

function focusOn(node) {
  const token = spots[node];
  if (!token) return;
  world.querySelector("[tabindex='0']")?.setAttribute("tabindex", "-1");
  token.setAttribute("tabindex", "0");
  token.focus({ preventScroll: true });
  seek(token);
  tell(token);
}

// The token to which an arrow key leads: along its path, or to the nearest one above or below it in the picture.
function towards(node, key) {
  if (key === "ArrowLeft") return tree.of.parent[node];
  if (key === "ArrowRight") return tree.behind(node).find((each) => spots[each]);
  const here = spots[node].getBoundingClientRect();
  let [best, nearest] = [undefined, Infinity];
  spots.forEach((token, each) => {
    if (!token) return;
    const box = token.getBoundingClientRect();
    const [down, across] = [box.top - here.top, Math.max(box.left - here.right, here.left - box.right, 0)];
    if (key === "ArrowDown" ? down <= here.height / 2 : down >= -here.height / 2) return;
    const distance = Math.abs(down) + 3 * across;
    if (distance < nearest) [best, nearest] = [each, distance];
  });
  return best;
}

stage.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { key } = event;
  const arrow = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[key];
  const node = document.activeElement?.dataset?.node;
  if (key === "+" || key === "=") zoom(1.25);
  else if (key === "-" || key === "−") zoom(0.8);
  else if (key === "0") home(true);
  else if (key === "Escape") hush(), point(null);
  else if (/^[1-9]$/.test(key) && tree.of.answers[key - 1]) choose(Number(key) - 1);
  else if (arrow && event.shiftKey) (view = { ...view, x: view.x + arrow[0], y: view.y + arrow[1] }), place();
  else if (arrow && node === undefined) focusOn(drawn[1]?.nodes[0]);
  else if (arrow) focusOn(towards(Number(node), key) ?? Number(node));
  else return;
  event.preventDefault();
});
stage.addEventListener("pointerover", (event) => {
  const token = event.target.closest?.(".tk");
  if (token && event.pointerType !== "touch" && !held) tell(token);
});
stage.addEventListener("pointerout", (event) => {
  const token = event.target.closest?.(".tk");
  if (!token || token.contains(event.relatedTarget)) return;
  if (document.activeElement?.matches(".tk:focus-visible")) tell(document.activeElement);
  else hush();
});
stage.addEventListener("click", (event) => {
  const token = event.target.closest?.(".tk");
  if (token) focusOn(Number(token.dataset.node));
  else hush();
});
stage.addEventListener("focusin", (event) => event.target.matches(".tk") && tell(event.target));
stage.addEventListener("focusout", hush);

field("which").addEventListener("change", (event) => show(Number(event.target.value)));
field("pruned").addEventListener("change", () => (render(), home()));
field("colour").addEventListener("change", (event) => ((colour = event.target.value), tint(), point(called)));
field("in").addEventListener("click", () => zoom(1.3));
field("out").addEventListener("click", () => zoom(1 / 1.3));
field("fit").addEventListener("click", () => home(true));
document.querySelector(".zoom").hidden = false;
field("theme").hidden = false;
field("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark" || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});
show(0);
