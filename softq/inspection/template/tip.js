// What is known of a token, beside the token that the pointer is on or that has the focus.

const tip = document.getElementById("tip");
let told = null; // the token that it tells of

function tell(span) {
  const element = span.closest(".completion");
  const of = shown.get(element);
  const unit = of.units[Number(span.dataset.at)];
  hush();
  told = span;
  tip.replaceChildren(heading(unit, of), numbers(unit, of), ...members(unit, of), alternatives(unit, of));
  tip.hidden = false;
  span.setAttribute("aria-describedby", "tip");
  place(span.getClientRects()[0]);
  here(element, `M${unit.to} 0V100`);
}

function hush() {
  if (!told) return;
  told.removeAttribute("aria-describedby");
  here(told.closest(".completion"), "");
  told = null;
  tip.hidden = true;
}

// After scrolling: beside its token again, or away with the token.
function follow() {
  const box = told?.getClientRects()[0];
  if (box && box.bottom > 0 && box.top < innerHeight) place(box);
  else hush();
}

// Marks a place on the curve of the running sum.
function here(element, path) {
  element?.closest(".said")?.querySelector(".here")?.setAttribute("d", path);
}

// Below the token or above it, inside the window; on a narrow screen the style sheet puts it at the bottom.
function place(box) {
  const { width, height } = tip.getBoundingClientRect();
  const below = box.bottom + 8;
  const top = below + height < innerHeight || box.top - 8 - height < 0 ? below : box.top - 8 - height;
  if (matchMedia("(max-width: 640px)").matches) return tip.removeAttribute("style");
  tip.style.top = `${Math.max(4, Math.min(top, innerHeight - height - 4))}px`;
  tip.style.left = `${Math.max(8, Math.min(box.left - 12, document.documentElement.clientWidth - width - 8))}px`;
}

function heading(unit, { side }) {
  const text = literal(unit.text);
  const count = unit.to - unit.from;
  const place = count > 1 ? `tokens ${unit.from + 1} to ${unit.to}` : `token ${unit.to}`;
  return make("p", "text", text, make("span", "", `${place} of ${side.text.length}`));
}

function numbers(unit, { side, running }) {
  const list = make("dl");
  const put = (name, text) => list.append(make("div", "", make("dt", "", name), make("dd", "", text)));
  put("log π", number(sum(side.logp, unit)));
  if (side.ref_logp) put("log π_ref", number(sum(side.ref_logp, unit)));
  if (side.reward) put("reward", signed(sum(side.reward, unit), 4));
  put(side.reward ? "sum so far" : "log π so far", signed(running[unit.to - 1] / UNITS, side.reward ? 4 : 3));
  put("entropy", number(sum(side.entropy, unit)));
  if (side.kl) put("KL", number(sum(side.kl, unit)));
  put("likelier ones", unit.to - unit.from > 1 ? "–" : thousands(side.rank[unit.from]));
  return list;
}

// Of a character that several tokens make, each of them.
function members(unit, { side }) {
  if (unit.to - unit.from < 2) return [];
  const rows = [];
  for (let at = unit.from; at < unit.to; at++) {
    rows.push([`token ${at + 1}`, number(side.logp[at] / UNITS), ...(side.reward ? [signed(side.reward[at] / UNITS, 4)] : [])]);
  }
  return [table(["One character", "log π", ...(side.reward ? ["reward"] : [])], rows)];
}

function alternatives(unit, { side, policy }) {
  const strings = policy.blocks.strings;
  const from = unit.from;
  const both = (logp, ref) => [percent(logp / UNITS), ...(ref === undefined ? [] : [percent(ref / UNITS), advantage(logp - ref)])];
  const advantage = (ratio) => (Number.isFinite(ratio) ? signed((policy.beta * ratio) / UNITS, 2) : "–");
  const rows = side.top[from].map((index, n) => [literal(strings[index]), ...both(side.top_logp[from][n], side.top_ref_logp?.[from][n])]);
  const most = side.top[from].indexOf(side.text[from]);
  if (most < 0) rows.push([literal(unit.text), ...both(side.logp[from], side.ref_logp?.[from])]);
  return table(["Likeliest here", "π", ...(side.top_ref_logp ? ["π_ref", "A"] : [])], rows, most < 0 ? rows.length - 1 : most);
}

// A token's text letter by letter, its spaces as dots.
function literal(text) {
  return make("bdi", "", ...(text === "" ? ["∅"] : visible(text.replace(/ /g, "·"))));
}

function table(names, rows, own = -1) {
  const cells = (values, tag) => values.map((value, n) => make(n ? tag : "th", n ? "right" : "", value));
  const body = rows.map((row, n) => make("tr", n === own ? "it" : "", ...cells(row, "td")));
  return make("table", "", make("thead", "", make("tr", "", ...cells(names, "th"))), make("tbody", "", ...body));
}

// The token to which an arrow key leads, or null: in the direction of reading, or in the line above or below.
function neighbour(span, key) {
  const element = span.closest(".completion");
  const spans = [...element.querySelectorAll(".tok")];
  const at = spans.indexOf(span);
  const forward = element.matches(":dir(rtl)") ? "ArrowLeft" : "ArrowRight";
  if (key === "Home") return spans[0];
  if (key === "End") return spans.at(-1);
  if (key === "ArrowLeft" || key === "ArrowRight") return spans[at + (key === forward ? 1 : -1)] ?? null;
  const from = span.getClientRects()[0];
  const ahead = key === "ArrowDown" ? spans.slice(at + 1) : spans.slice(0, at).reverse();
  let [best, line, nearest] = [null, null, Infinity];
  for (const each of ahead) {
    const box = each.getClientRects()[0];
    if (!box || Math.abs(box.top - from.top) < from.height / 2) continue;
    line ??= box.top;
    if (Math.abs(box.top - line) > from.height / 2) break;
    const distance = Math.abs(box.left + box.width / 2 - from.left - from.width / 2);
    if (distance < nearest) [best, nearest] = [each, distance];
  }
  return best;
}

function focusOn(span) {
  span.closest(".completion").querySelector("[tabindex='0']")?.setAttribute("tabindex", "-1");
  span.tabIndex = 0;
  span.focus();
}

document.addEventListener("pointerover", (event) => {
  const span = event.target.closest?.(".tok");
  if (span && event.pointerType !== "touch") tell(span);
});
document.addEventListener("pointerout", (event) => {
  const span = event.target.closest?.(".tok");
  if (!span || span.contains(event.relatedTarget)) return;
  if (document.activeElement?.matches(".tok:focus-visible")) tell(document.activeElement);
  else hush();
});
document.addEventListener("click", (event) => {
  const span = event.target.closest?.(".tok");
  if (!span) return hush();
  focusOn(span);
  tell(span);
});
document.addEventListener("focusin", (event) => (event.target.matches(".tok") ? tell(event.target) : hush()));
document.addEventListener("focusout", hush);
