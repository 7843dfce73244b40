// What the page was given, and where it stands: a tree's nodes in chips, from left to right.

const field = (id) => document.getElementById(id);
const given = JSON.parse(field("data").textContent);
const LINE = 21; // px of a line of tokens
const WIDE = 340; // px after which a chip begins a new line
const PAD = 4; // px around the tokens of a chip
const BELOW = 9; // px between a chip and the next one below
const LINK = 44; // px between a chip and those behind it
const COLUMN = 12; // px: how exactly it is known what stands where
const SHORT = 130; // px of a chip that ways on from those beside it go around
const SIGN = 22; // px that an answer's number takes

// A count whole, another number with three digits behind the point.
function plain(value) {
  return Number.isInteger(value) ? value.toLocaleString("en").replace("-", "−") : number(value);
}

// A token's text with signs for what can not be seen. Nothing of it is ever markup.
function seen(text) {
  if (text === "") return "∅";
  const marked = text.replace(UNSEEN, (sign) => MARKS[sign] ?? `U+${sign.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}`);
  return /^ +$/.test(marked) ? marked.replaceAll(" ", "·") : marked;
}

const canvas = document.createElement("canvas").getContext("2d");
const widths = new Map();
function width(text) {
  if (!widths.has(text)) widths.set(text, canvas.measureText(text).width + 3);
  return widths.get(text);
}

// A tree as the page needs it: below[n] are the nodes behind n, best answers first, then the likeliest; root is -1.
class Grown {
  constructor(of) {
    this.of = of;
    this.size = of.parent.length;
    this.rank = new Array(this.size).fill(Infinity); // of the best answer that a node leads to
    of.answers.forEach(({ node }, rank) => {
      for (let at = node; at >= 0 && this.rank[at] === Infinity; at = of.parent[at]) this.rank[at] = rank;
    });
    this.ends = new Map(of.answers.map(({ node }, rank) => [node, rank]).reverse());
    this.below = Array.from({ length: this.size + 1 }, () => []);
    of.parent.forEach((above, node) => this.behind(above).push(node));
    const logp = of.columns.logp;
    for (const nodes of this.below) nodes.sort((a, b) => this.rank[a] - this.rank[b] || (logp[b] ?? 0) - (logp[a] ?? 0) || a - b);
    const ref = of.columns.ref_logp;
    this.reward = ref && logp.map((value, node) => (value === null || ref[node] === null ? null : given.beta * (value - ref[node])));
  }

  behind(node) {
    return this.below[node < 0 ? this.size : node];
  }

  path(node) {
    const nodes = [];
    for (let at = node; at >= 0; at = this.of.parent[at]) nodes.push(at);
    return nodes.reverse();
  }

  // An action that was thought of and never tried: it is told of beside its token, and not drawn.
  untried(node) {
    return this.of.columns.visits?.[node] === 0 && this.rank[node] === Infinity;
  }

  known(name, node) {
    return this.of.columns[name]?.[node] ?? null;
  }
}

// Chips: runs of nodes without a choice between them, each with the chips behind it. `all`: with what was given up.
function chips(tree, all) {
  const visible = (node) => tree.behind(node).filter((each) => (all || tree.rank[each] < Infinity) && !tree.untried(each));
  const from = (node) => {
    const run = [node];
    for (;;) {
      const next = visible(run.at(-1));
      if (next.length !== 1 || tree.ends.has(run.at(-1)) || (tree.rank[next[0]] === Infinity) !== (tree.rank[node] === Infinity)) break;
      run.push(next[0]);
    }
    return run;
  };
  const root = { nodes: [], behind: [], above: null };
  const open = [[root, visible(-1)]];
  while (open.length) {
    const [chip, nodes] = open.pop();
    for (const node of nodes) {
      const run = from(node);
      const one = { nodes: run, behind: [], above: chip };
      chip.behind.push(one);
      open.push([one, visible(run.at(-1))]);
    }
  }
  return root;
}

// Lines of tokens: where each stands in its chip, and how large the chip is.
function fill(chip, texts, sign) {
  chip.spots = [];
  let [x, line, most] = [PAD, 0, 0];
  for (const text of texts) {
    const wide = width(text);
    if (x > PAD && x + wide > WIDE) [x, line] = [PAD, line + 1];
    chip.spots.push({ x, y: PAD + line * LINE, width: wide, text });
    x += wide + 1;
    most = Math.max(most, x);
  }
  chip.width = most + PAD + sign;
  chip.height = (line + 1) * LINE + 2 * PAD - 2;
}

// Where a part of a picture ends above and below, in columns of COLUMN px: what may not be drawn upon.
class Outline {
  constructor() {
    [this.top, this.bottom, this.from] = [[], [], Infinity];
  }

  // A box takes its place; y is from the middle of the chip whose outline this is.
  add(left, right, top, bottom) {
    const [first, last] = [Math.floor(left / COLUMN), Math.floor(right / COLUMN)];
    this.reach(first, last);
    for (let at = first - this.from; at <= last - this.from; at++) {
      this.top[at] = Math.min(this.top[at] ?? Infinity, top);
      this.bottom[at] = Math.max(this.bottom[at] ?? -Infinity, bottom);
    }
  }

  // Another outline, so far below.
  join(other, down) {
    this.reach(other.from, other.from + other.top.length - 1);
    const by = other.from - this.from;
    other.top.forEach((top, at) => {
      this.top[at + by] = Math.min(this.top[at + by] ?? Infinity, top + down);
      this.bottom[at + by] = Math.max(this.bottom[at + by] ?? -Infinity, other.bottom[at] + down);
    });
  }

  reach(first, last) {
    if (first < this.from) {
      const more = this.top.length ? this.from - first : 0;
      this.top.unshift(...new Array(more).fill(Infinity));
      this.bottom.unshift(...new Array(more).fill(-Infinity));
      this.from = first;
    }
    while (this.top.length <= last - this.from) this.top.push(Infinity), this.bottom.push(-Infinity);
  }

  // How far down another one must be to stand below this one.
  below(other) {
    let down = 0;
    other.top.forEach((top, at) => {
      const bottom = this.bottom[at + other.from - this.from];
      if (bottom !== undefined) down = Math.max(down, bottom - top);
    });
    return down;
  }
}

// The first way on goes straight; the others stand below it, each as high as there is room. `y` is a chip's upper side.
function arrange(root) {
  const order = [root];
  root.x = 0;
  root.reach = root.width; // where the ways on from a chip, and from the short ones beside it, begin to part
  for (const chip of order) {
    const beside = chip.behind.filter((each) => !each.behind.length && each.width <= SHORT).map((each) => each.width);
    for (const each of chip.behind) {
      each.x = chip.reach + LINK;
      each.reach = each.x + Math.max(each.width, ...beside);
    }
    order.push(...chip.behind);
  }
  for (const chip of [...order].reverse()) {
    const around = new Outline();
    for (const each of chip.behind) {
      each.down = each === chip.behind[0] ? 0 : around.below(each.outline);
      around.join(each.outline, each.down);
      each.outline = null;
    }
    const right = chip.x + chip.width;
    if (chip.behind.length) {
      around.add(chip.reach, chip.reach + LINK - COLUMN, 0, chip.behind.at(-1).down);
      around.add(right, chip.reach, 0, 0);
    }
    around.add(chip.x, right + COLUMN / 2, -(chip.height + BELOW) / 2, (chip.height + BELOW) / 2);
    chip.outline = around;
  }
  root.middle = -Math.min(...root.outline.top);
  for (const chip of order) {
    chip.y = chip.middle - chip.height / 2;
    for (const each of chip.behind) each.middle = chip.middle + each.down;
  }
  root.bottom = root.middle + Math.max(...root.outline.bottom);
  return order;
}
