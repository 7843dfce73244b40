// What the page was given. Blocks of pairs are unpacked when one of their pairs is asked for; a few stay unpacked.

const given = JSON.parse(document.getElementById("report").textContent);
const columns = given.pairs.columns;
const records = columns.record ?? [];
const rowOf = new Map(records.map((record, row) => [record, row]).reverse()); // the first row of each
const BLOCK = given.block; // pairs in a block
const KEPT = 48; // blocks that stay unpacked
const UNITS = 1e4; // of the numbers in a block: 12345 is 1.2345
const SIDES = given.kind === "pairs" ? ["chosen", "rejected"] : ["chosen"];

class Blocks {
  constructor(packed, strings) {
    this.packed = packed;
    this.strings = strings;
    this.open = new Map(); // number -> pairs, the latest used last
    this.coming = new Map(); // number -> promise of them
  }

  // The pair of a row if its block is unpacked, else undefined.
  peek(row) {
    const number = Math.floor(row / BLOCK);
    const pairs = this.open.get(number);
    if (!pairs) return undefined;
    this.open.delete(number);
    this.open.set(number, pairs);
    return pairs[row % BLOCK];
  }

  // A promise of the pair of a row.
  async load(row) {
    const number = Math.floor(row / BLOCK);
    if (!this.open.has(number)) {
      if (!this.coming.has(number)) this.coming.set(number, unpacked(this.packed[number]));
      this.open.set(number, await this.coming.get(number));
      this.coming.delete(number);
      for (const old of [...this.open.keys()].slice(0, -KEPT)) this.open.delete(old);
    }
    return this.peek(row) ?? this.load(row);
  }
}

async function unpacked(text) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let at = 0; at < letters.length; at++) bytes[at] = letters.charCodeAt(at);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

// The policies that the page shows, the other one second.
const policies = [{ name: given.names[0], beta: given.betas[0], blocks: new Blocks(given.blocks, given.strings), columns }];
if (given.other) {
  const strings = given.other.strings ?? given.strings;
  policies.push({ name: given.names[1], beta: given.betas[1], blocks: new Blocks(given.other.blocks, strings), columns: given.other.pairs.columns });
}

// A column's number of a row, or null.
function known(name, row, of = columns) {
  return of[name]?.[row] ?? null;
}

function thousands(value) {
  return value.toLocaleString("en");
}

// The rows of the data that stand behind these rows of the page, as a file: where they are, or their record numbers.
function save(name, chosen) {
  const lines = chosen.map((record) => known("where", rowOf.get(record)) || `record ${record}`);
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([`${lines.join("\n")}\n`], { type: "text/plain" }));
  link.download = `${name.replace(/[^a-z0-9]+/gi, "-").replace(/^-|-$/g, "") || "rows"}.txt`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
