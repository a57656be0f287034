// The page of report.html. Whatever a row holds was written by strangers: it becomes text nodes and nothing else (see `make`).

const PAGE_ROWS = 25;
const CACHED_BLOCKS = 12;
const SLICE = 30; // milliseconds of work between two looks at the keyboard
const REDRAW = 250; // milliseconds between two looks at what a search has found so far
const CELLS = 16_000_000; // of the table with which two texts are compared word by word: some 2,000 words against as many
const SHOWN_CHARACTERS = 50_000; // of one text, until more is asked for
const NOTHING = "–";
const NONE = "(none)";
const NUMBERS = [
  ["ifd", "IFD"],
  ["r_ifd", "r-IFD"],
  ["words", "words"],
];
const LOSSES = [
  ["ifd", "IFD"],
  ["r_ifd", "r-IFD"],
  ["nll_y", "loss of the response (tokens)"],
  ["nll_y_given_x", "loss of the response, given the instruction (tokens)"],
  ["nll_x", "loss of the instruction (tokens)"],
  ["nll_x_given_y", "loss of the instruction, given the response (tokens)"],
];
// Each filter with the values that a row has for it.
const FACETS = [
  ["kept", "Decision", (row) => [row.kept ? "kept" : "left out"]],
  ["origin", "What was chosen", (row) => [row.origin]],
  ["reason", "Reason", (row) => [row.reason]],
  ["flag", "Flag", (row) => (row.flags.length ? row.flags : [NONE])],
  ["error", "Error of a candidate", (row) => (row.errors.length ? row.errors : [NONE])],
];
const UNFILTERED = { kept: "", origin: "", reason: "", flag: "", error: "" };
const DEFAULTS = { q: "", ...UNFILTERED, sort: "", down: "", page: "1", row: "", texts: "" };

const at = (id) => document.getElementById(id);
const words = JSON.parse(at("words").textContent);
const rows = []; // an index entry each, and `place`, `block`, `offset`
const state = { ...DEFAULTS }; // what the address says after its #
const blocks = new Map(); // the latest used, unpacked: number -> promise of JSON text
let view = []; // the places of the rows that fit, in their order
let found = null; // Uint8Array: whether the search found the row at this place; null without a search
let searches = 0; // how many were begun: an older one stops when it sees a newer
let drawn = ""; // which rows are on the screen
let opened = null; // { place, row, candidate, whole }
let wanted = ""; // the id of a row to open once it is found

// Elements ----------------------------------------------------------------------------------------------------------------------

/** An element; strings among the children become text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.map((child) => (typeof child === "string" ? visible(child) : child)));
  return element;
}

/** Text with the characters that would hide or turn around what stands beside them written as their numbers. */
function visible(text) {
  const spelled = (char) => `⟦U+${char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟧`;
  return text.replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, spelled);
}

const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
const fixed = (value, digits) => (typeof value === "number" ? value.toFixed(digits) : NOTHING);
const meaning = (kind, code) => (Object.hasOwn(words[kind], code) ? words[kind][code] : "");
const pause = () => new Promise((done) => setTimeout(done));

// Blocks ------------------------------------------------------------------------------------------------------------------------

async function unpack(id) {
  const packed = atob(at(id).textContent);
  const bytes = new Uint8Array(packed.length);
  for (let n = 0; n < packed.length; n++) bytes[n] = packed.charCodeAt(n);
  return new Response(new Response(bytes).body.pipeThrough(new DecompressionStream("gzip"))).text();
}

function textOfBlock(number) {
  const text = blocks.get(number) ?? unpack(`block-${number}`);
  blocks.delete(number);
  blocks.set(number, text); // last in the order: used last
  if (blocks.size > CACHED_BLOCKS) blocks.delete(blocks.keys().next().value);
  return text;
}

async function readIndexes() {
  let rest = performance.now();
  for (let block = 0; at(`index-${block}`); block++) {
    const entries = JSON.parse(await unpack(`index-${block}`));
    entries.forEach((entry, offset) => rows.push({ ...entry, place: rows.length, block, offset }));
    if (performance.now() - rest > SLICE) {
      progress(`Reading: ${count(rows.length, "row")} so far`);
      await pause();
      rest = performance.now();
    }
  }
}

function progress(label, share) {
  const bar = at("progress");
  bar.hidden = share === 1;
  if (share === undefined) bar.removeAttribute("value");
  else bar.value = share;
  if (label) at("count").textContent = label;
}

// Search ------------------------------------------------------------------------------------------------------------------------

/** What must occur: words, and phrases in double quotes. */
function terms(query) {
  const parts = query.toLowerCase().matchAll(/"([^"]*)"?|[^\s"]+/g);
  return [...parts].map((part) => part[1] ?? part[0]).filter((term) => term.trim());
}

/** The offsets of the rows of a block in which every term occurs. */
function findIn(json, wanting) {
  const lower = json.toLowerCase(); // stays JSON: its escapes and names are in lower case
  const plain = wanting.filter((term) => !/["\\\u0000-\u001f]/.test(term)); // these stand in JSON as they are
  if (!plain.every((term) => lower.includes(term))) return [];
  const texts = JSON.parse(lower).map((row) =>
    [row.id, ...row.candidates.flatMap((one) => [one.instruction, one.input, one.output, one.critique])].join("\n"),
  );
  return texts.flatMap((text, offset) => (wanting.every((term) => text.includes(term)) ? [offset] : []));
}

/** Search block by block, show what comes, and stop where another search has begun. */
async function search() {
  const number = ++searches;
  const wanting = terms(state.q);
  found = wanting.length ? new Uint8Array(rows.length) : null;
  at("count").setAttribute("aria-busy", String(found !== null)); // the number is read out when it is final
  let rest = performance.now();
  let redraw = rest;
  for (let place = 0; found && place < rows.length; ) {
    const { block } = rows[place];
    const hits = findIn(await textOfBlock(block), wanting);
    if (number !== searches) return;
    for (const offset of hits) found[place + offset] = 1;
    while (rows[place]?.block === block) place++;
    if (performance.now() - rest < SLICE) continue;
    if (performance.now() - redraw > REDRAW) {
      refresh();
      redraw = performance.now();
    }
    progress("", place / rows.length);
    await pause();
    if (number !== searches) return;
    rest = performance.now();
  }
  progress("", 1);
  at("count").setAttribute("aria-busy", "false");
  refresh();
  wanted = "";
}

// Filters and order -------------------------------------------------------------------------------------------------------------

function makeFilters() {
  for (const [name, label, values] of FACETS) {
    const known = new Map();
    for (const row of rows) for (const value of values(row)) known.set(value, (known.get(value) ?? 0) + 1);
    const select = make("select", { id: `filter-${name}` }, make("option", { value: "" }, "all"));
    const common = [...known].sort(([, a], [, b]) => b - a);
    for (const [value] of common) select.append(make("option", { value }, value));
    select.addEventListener("change", () => change({ [name]: select.value }));
    at("filters").append(make("div", { class: "filter" }, make("label", { for: select.id }, label), select));
  }
}

function makeSorters() {
  const select = make("select", { id: "sort" }, make("option", { value: "" }, "as in the file"));
  for (const [name, label] of NUMBERS) {
    for (const when of ["before", "after", "change"]) {
      select.append(make("option", { value: `${name}-${when}` }, `${label}, ${when}`));
      if (when !== "change") at("sorters").append(sorter(name, label, when));
    }
  }
  select.addEventListener("change", () => change({ sort: select.value }));
  const down = make("button", { type: "button", id: "down", "aria-pressed": "false" }, "Highest first");
  down.addEventListener("click", () => change({ down: state.down ? "" : "1" }));
  at("filters").append(make("div", { class: "filter order" }, make("label", { for: "sort" }, "Order"), select, down));
}

/** A column's head: a click sorts by it, another turns the order around. */
function sorter(name, label, when) {
  const key = `${name}-${when}`;
  const button = make("button", { type: "button", "aria-label": `Sort by ${label}, ${when}` }, when);
  button.addEventListener("click", () => change({ sort: key, down: state.sort === key && !state.down ? "1" : "" }));
  return make("th", { scope: "col", "data-key": key }, button);
}

/** The places of the rows that fit, and how many rows each filter's values would leave beside the other filters. */
function fitting() {
  const fits = [];
  const counts = FACETS.map(() => new Map());
  for (const row of rows) {
    if (found && !found[row.place]) continue;
    const values = FACETS.map(([, , valuesOf]) => valuesOf(row));
    const failing = FACETS.flatMap(([name], n) => (state[name] && !values[n].includes(state[name]) ? [n] : []));
    if (failing.length > 1) continue;
    if (failing.length === 0) fits.push(row.place);
    for (const n of failing.length ? failing : counts.keys()) {
      for (const value of values[n]) counts[n].set(value, (counts[n].get(value) ?? 0) + 1);
    }
  }
  return { fits, counts };
}

function showCounts(counts) {
  FACETS.forEach(([name], n) => {
    for (const option of at(`filter-${name}`).options) {
      const left = (counts[n].get(option.value) ?? 0).toLocaleString("en");
      if (option.value) option.textContent = `${visible(option.value)} (${left})`;
    }
  });
}

/** Sort places by a number of their rows; rows without it come last in either direction. */
function sortPlaces(places) {
  const [name, when] = state.sort.split("-");
  if (!NUMBERS.some(([known]) => known === name)) return;
  const sign = state.down ? -1 : 1;
  const number = ({ [name]: [before, after] }) => {
    if (when !== "change") return when === "after" ? after : before;
    return before === null || after === null ? null : after - before;
  };
  const keyed = places.map((place) => [number(rows[place]), place]);
  keyed.sort(([a, first], [b, second]) => (a === null) - (b === null) || sign * (a - b) || first - second);
  keyed.forEach(([, place], n) => (places[n] = place));
}

// The table ---------------------------------------------------------------------------------------------------------------------

const pageCount = () => Math.max(1, Math.ceil(view.length / PAGE_ROWS));
const pageNow = () => Math.min(Math.max(1, Number.parseInt(state.page, 10) || 1), pageCount());

/** Take search, filters and order to the table. */
function refresh() {
  const { fits, counts } = fitting();
  sortPlaces(fits);
  view = fits;
  showCounts(counts);
  const all = count(rows.length, "row");
  at("count").textContent = view.length === rows.length ? all : `${view.length.toLocaleString("en")} of ${all}`;
  const position = wanted ? view.findIndex((place) => rows[place].id === wanted) : -1;
  if (position >= 0) {
    state.page = String(Math.floor(position / PAGE_ROWS) + 1);
    opened = { place: view[position] };
    wanted = "";
  }
  draw();
}

function draw() {
  const page = pageNow();
  const places = view.slice((page - 1) * PAGE_ROWS, page * PAGE_ROWS);
  if (opened && !places.includes(opened.place)) opened = null;
  if (places.join() !== drawn) {
    const focused = document.activeElement?.closest?.("#rows") && document.activeElement.dataset.place;
    at("rows").replaceChildren(...places.map((place) => line(rows[place])));
    drawn = places.join();
    if (focused) (opener(focused) ?? openers()[0])?.focus();
  }
  if (opened && !at("detail")) showDetail();
  at("nothing").hidden = places.length > 0;
  showPages(page);
  showControls();
  writeAddress();
}

function showPages(page) {
  at("page").value = page;
  at("page").max = at("pages").textContent = pageCount();
  for (const id of ["first-page", "previous-page"]) at(id).disabled = page === 1;
  for (const id of ["last-page", "next-page"]) at(id).disabled = page === pageCount();
}

function showControls() {
  if (document.activeElement !== at("search")) at("search").value = state.q;
  for (const name of [...FACETS.map(([facet]) => facet), "sort"]) {
    const select = at(name === "sort" ? name : `filter-${name}`);
    select.value = state[name];
    select.classList.toggle("set", state[name] !== "");
  }
  at("down").setAttribute("aria-pressed", String(state.down !== ""));
  for (const head of at("sorters").children) {
    const sorted = head.dataset.key === state.sort;
    head.setAttribute("aria-sort", sorted ? (state.down ? "descending" : "ascending") : "none");
  }
}

function line(row) {
  const attributes = { type: "button", class: "open", "aria-expanded": "false", "data-place": row.place, dir: "auto" };
  const button = make("button", attributes, row.excerpt || "(no instruction)");
  button.addEventListener("click", () => toggle(row.place));
  const verdict = make("span", { class: row.kept ? "kept" : "out" }, row.kept ? "kept" : "left out");
  const decision = make("td", { "data-label": "Decision" }, verdict, " ", make("span", { class: "code" }, row.reason));
  const numbers = NUMBERS.flatMap(([name, label]) =>
    row[name].map((value, n) =>
      make("td", { class: "number", "data-label": `${label} ${n ? "after" : "before"}` }, fixed(value, name === "words" ? 0 : 3)),
    ),
  );
  const notes = make("td", { "data-label": "Notes", class: "notes" });
  for (const flag of row.flags) notes.append(make("span", { class: "flag", title: meaning("flags", flag) }, flag), " ");
  for (const error of row.errors) notes.append(make("span", { class: "error", title: meaning("errors", error) }, error), " ");
  return make("tr", { class: "line" }, make("th", { scope: "row" }, button), decision, ...numbers, notes);
}

const openers = () => [...at("rows").querySelectorAll("button.open")];
const opener = (place) => at("rows").querySelector(`button.open[data-place="${Number(place)}"]`);

// An opened row -----------------------------------------------------------------------------------------------------------------

function toggle(place) {
  const close = opened?.place === place;
  hideDetail();
  opened = close ? null : { place };
  if (opened) showDetail();
  writeAddress();
}

function hideDetail() {
  at("detail")?.remove();
  for (const button of openers()) {
    button.setAttribute("aria-expanded", "false");
    button.removeAttribute("aria-controls");
  }
}

function showDetail() {
  fillDetail(opened).catch(complain);
}

async function fillDetail(mine) {
  const { block, offset } = rows[mine.place];
  mine.row ??= JSON.parse(await textOfBlock(block))[offset];
  mine.candidate ??= shownFirst(mine.row);
  const button = opener(mine.place);
  if (opened !== mine || !button) return;
  const focused = document.activeElement?.closest?.("#detail") && document.activeElement.dataset.does;
  hideDetail();
  const cell = make("td", { colspan: "9" }, detail(mine));
  button.closest("tr").after(make("tr", { id: "detail" }, cell));
  button.setAttribute("aria-expanded", "true");
  button.setAttribute("aria-controls", "detail");
  if (focused) [...cell.querySelectorAll("button")].find((one) => one.dataset.does === focused)?.focus();
}

/** The choice; where that is the original, the most advanced candidate without an error, else with one. */
function shownFirst({ candidates, choice }) {
  if (candidates[choice].origin !== "original") return choice;
  const others = [...candidates.keys()].filter((n) => candidates[n].origin !== "original");
  const order = ["instruction", "response", "both"];
  const rank = (n) => (candidates[n].error ? -9 : 0) + order.indexOf(candidates[n].origin);
  return others.sort((a, b) => rank(b) - rank(a))[0] ?? choice;
}

function detail(shown) {
  const { row, candidate } = shown;
  const before = row.candidates.find((one) => one.origin === "original");
  const after = row.candidates[candidate];
  const box = make("section", { class: "detail", "aria-label": "The opened row" }, heading(rows[shown.place]), switches(shown));
  if (after.error) box.append(make("p", { class: "notice" }, make("b", {}, after.error), `: ${meaning("errors", after.error)}`));
  for (const [name, label] of [["instruction", "Instruction"], ["input", "Input"], ["output", "Response"]]) {
    if (name !== "input" || before.input || after.input) box.append(make("h3", {}, label), compared(before, after, name, shown));
  }
  if (after.critique) box.append(make("h3", {}, "Critique by the teacher"), passage(after.critique, shown));
  box.append(make("h3", {}, "Scores"), scoreTable(row, before, candidate), facts(after));
  return box;
}

function heading(row) {
  const decision = make("p", {}, make("b", {}, row.reason), ` ${meaning("reasons", row.reason)}`);
  const head = make("header", {}, make("p", { class: "id" }, "id ", make("code", { dir: "auto" }, row.id)), decision);
  for (const flag of row.flags) head.append(make("p", {}, make("b", {}, flag), ` ${meaning("flags", flag)}`));
  return head;
}

/** The candidates to put beside the original, and how. */
function switches({ row, candidate }) {
  const group = make("div", { class: "switches", role: "group", "aria-label": "Beside the original" });
  group.append(make("span", {}, "Beside the original:"));
  row.candidates.forEach((one, n) => {
    if (one.origin === "original") return;
    const draw = one.sample ? `, draw ${one.sample + 1}` : "";
    const label = `${one.origin}${draw}${n === row.choice ? ", chosen" : ""}${one.error ? `, ${one.error}` : ""}`;
    group.append(switchButton(`candidate ${n}`, label, n === candidate, () => showCandidate(n)));
  });
  if (group.children.length === 1) group.append("there is no other candidate");
  group.append(make("span", { class: "gap" }));
  group.append(switchButton("beside", "Side by side", state.texts === "beside", switchTexts));
  return group;
}

/** does: the name by which the button is found again, and keeps the focus, when the row is drawn anew. */
function switchButton(does, label, pressed, act) {
  const button = make("button", { type: "button", "aria-pressed": String(pressed), "data-does": does }, label);
  button.addEventListener("click", act);
  return button;
}

function showCandidate(n) {
  opened.candidate = n;
  showDetail();
}

function nextCandidate() {
  const others = [...opened.row.candidates.keys()].filter((n) => opened.row.candidates[n].origin !== "original");
  if (others.length) showCandidate(others[(others.indexOf(opened.candidate) + 1) % others.length]);
}

function switchTexts() {
  state.texts = state.texts ? "" : "beside";
  showDetail();
  writeAddress();
}

/** A text of the original and of the candidate: marked changes, or side by side. */
function compared(before, after, name, shown) {
  if (before === after) return passage(before[name], shown);
  if (state.texts === "beside" || after[name] === undefined || before[name] === undefined) {
    const columns = [["original", before], [after.origin, after]];
    const sides = columns.map(([label, one]) => make("div", {}, make("p", { class: "side" }, label), passage(one[name], shown)));
    return make("div", { class: "sides" }, ...sides);
  }
  const { hunks, exact } = diff(visible(before[name]), visible(after[name]));
  const box = make("div", {});
  if (!exact) box.append(make("p", { class: "help" }, "Too long to compare word by word: what differs is marked as a whole."));
  const text = marked(hunks, shown);
  if (!hunks.some((hunk) => hunk.del || hunk.ins)) box.append(make("p", { class: "help" }, "unchanged"));
  box.append(text);
  return box;
}

function passage(text, shown) {
  if (!text?.trim()) return make("p", { class: "help" }, "(no text)");
  const part = shown.whole ? text : text.slice(0, SHOWN_CHARACTERS);
  return withMore(make("div", { class: "text", dir: "auto" }, part), text.length - part.length, shown);
}

function marked(hunks, shown) {
  const box = make("div", { class: "text", dir: "auto" });
  let room = shown.whole ? Infinity : SHOWN_CHARACTERS;
  let left = 0;
  for (const hunk of hunks) {
    for (const kind of ["del", "ins", "same"]) {
      const part = hunk[kind].slice(0, room);
      left += hunk[kind].length - part.length;
      room -= part.length;
      if (part) box.append(kind === "same" ? part : make(kind, {}, part));
    }
  }
  return withMore(box, left, shown);
}

/** A text, and where characters of it are left, how many, with a button that shows them. */
function withMore(box, left, shown) {
  if (!left) return box;
  const button = make("button", { type: "button", "data-does": "whole" }, "Show all of it");
  button.addEventListener("click", () => {
    shown.whole = true;
    showDetail();
  });
  return make("div", {}, box, make("p", { class: "help" }, `… and ${count(left, "character")} more. `, button));
}

function scoreTable(row, before, candidate) {
  const columns = [...new Set([row.candidates.indexOf(before), candidate])];
  const heads = columns.map((n) => make("th", { scope: "col" }, row.candidates[n].origin));
  const body = LOSSES.map(([name, label]) => {
    const cells = columns.map((n) => make("td", { class: "number" }, scoreText(row.scores[n] ?? {}, name)));
    return make("tr", {}, make("th", { scope: "row" }, label), ...cells);
  });
  const head = make("thead", {}, make("tr", {}, make("td"), ...heads));
  const box = make("div", {}, make("table", { class: "numbers" }, head, make("tbody", {}, ...body)));
  for (const code of new Set(columns.map((n) => row.scores[n]?.missing).filter(Boolean))) {
    box.append(make("p", { class: "help" }, `Not scored, ${code}: ${meaning("missing", code)}`));
  }
  return box;
}

function scoreText(score, name) {
  const tokens = score[name.replace("nll", "n")];
  return fixed(score[name], 4) + (name.startsWith("nll") && tokens ? ` (${tokens.toLocaleString("en")})` : "");
}

/** Where a candidate comes from. */
function facts(candidate) {
  const tokens = [["prompt_tokens", "in"], ["completion_tokens", "out"]].filter(([name]) => candidate[name] !== undefined);
  const cut = candidate.answer_cut ? `${count(candidate.answer_cut, "character")} of the original response` : "";
  const known = [
    ["Teacher", candidate.teacher],
    ["Reply ended with", candidate.finish_reason],
    ["Tokens", tokens.map(([name, way]) => `${candidate[name].toLocaleString("en")} ${way}`).join(", ")],
    ["Not shown to the teacher", cut],
  ];
  const list = make("dl", { class: "facts" });
  for (const [name, value] of known) if (value) list.append(make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  return list;
}

// Word-level diff ---------------------------------------------------------------------------------------------------------------

// A word, a stretch of white space, or one other character; of scripts without spaces, one character.
const TOKEN = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]|[\p{L}\p{M}\p{N}_]+|\s+|[^]/gu;

/** What was taken out, put in and left, as hunks { del, ins, same } in their order. exact: whether it is word by word. */
function diff(before, after) {
  const a = before.match(TOKEN) ?? [];
  const b = after.match(TOKEN) ?? [];
  const shorter = Math.min(a.length, b.length);
  let start = 0;
  while (start < shorter && a[start] === b[start]) start++;
  let end = 0;
  while (end < shorter - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  const old = a.slice(start, a.length - end);
  const fresh = b.slice(start, b.length - end);
  const hunks = [{ del: "", ins: "", same: a.slice(0, start).join("") }];
  const exact = (old.length + 1) * (fresh.length + 1) <= CELLS;
  if (exact) alignTokens(old, fresh, hunks);
  else hunks.push({ del: old.join(""), ins: fresh.join(""), same: "" });
  hunks.at(-1).same += a.slice(a.length - end).join("");
  return { hunks, exact };
}

/** Align two lists of tokens along a longest common subsequence. */
function alignTokens(old, fresh, hunks) {
  const numbers = new Map([...new Set([...old, ...fresh])].map((token, number) => [token, number])); // quicker to compare
  const [a, b] = [old, fresh].map((tokens) => Int32Array.from(tokens, (token) => numbers.get(token)));
  const width = b.length + 1;
  const common = new Uint16Array((a.length + 1) * width); // [i, j]: tokens in common of a from i and b from j
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      const cell = i * width + j;
      common[cell] = a[i] === b[j] ? common[cell + width + 1] + 1 : Math.max(common[cell + width], common[cell + 1]);
    }
  }
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      hunks.at(-1).same += old[i++];
      j++;
    } else if (j === b.length || (i < a.length && common[(i + 1) * width + j] >= common[i * width + j + 1])) {
      changing(hunks).del += old[i++];
    } else {
      changing(hunks).ins += fresh[j++];
    }
  }
}

/** The hunk that takes the next change. A space between two words that were both replaced is no place to stop: it goes along. */
function changing(hunks) {
  const last = hunks.at(-1);
  if (!last.same) return last;
  if (!last.same.trim() && last.del.trim() && last.ins.trim()) {
    last.del += last.same;
    last.ins += last.same;
    last.same = "";
    return last;
  }
  hunks.push({ del: "", ins: "", same: "" });
  return hunks.at(-1);
}

// The address -------------------------------------------------------------------------------------------------------------------

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(DEFAULTS)) state[name] = given.get(name) ?? DEFAULTS[name];
  wanted = state.row;
  opened = null;
  drawn = "";
}

let writing;

/** Soon, and once for many changes: browsers count how often a page does this. */
function writeAddress() {
  clearTimeout(writing);
  writing = setTimeout(() => {
    if (!wanted) state.row = opened ? rows[opened.place].id : "";
    state.page = wanted || searching() ? state.page : String(pageNow());
    const set = Object.entries(state).filter(([name, value]) => value !== DEFAULTS[name]);
    history.replaceState(null, "", `#${new URLSearchParams(set)}`);
  }, 200);
}

const searching = () => at("count").getAttribute("aria-busy") === "true";

// What a person does ------------------------------------------------------------------------------------------------------------

/** Take over new filters or another order, from the first page. */
function change(changes) {
  Object.assign(state, changes, { page: "1" });
  if ("q" in changes) search().catch(complain);
  else refresh();
}

function clearAll() {
  at("search").value = "";
  change({ q: "", ...UNFILTERED });
}

function turn(page) {
  state.page = String(page);
  draw();
  const table = at("rows").closest("table");
  if (table.getBoundingClientRect().top < 0) table.scrollIntoView();
}

/** Focus the next row, or the previous one; at the end of a page, turn it. */
function step(by) {
  const buttons = openers();
  const focused = document.activeElement?.closest?.("#rows tr");
  const current = focused?.id === "detail" ? focused.previousElementSibling : focused;
  const now = buttons.findIndex((button) => button.closest("tr") === current);
  const next = now < 0 ? 0 : now + by;
  if (buttons[next]) buttons[next].focus();
  else if (pageNow() + by >= 1 && pageNow() + by <= pageCount()) {
    turn(pageNow() + by);
    openers().at(by > 0 ? 0 : -1)?.focus();
  }
}

/** Close the opened row; without one, or from within the search, clear the search. */
function escape(inSearch) {
  if (opened && !(inSearch && at("search").value)) {
    const { place } = opened;
    toggle(place);
    opener(place)?.focus();
  } else if (state.q || at("search").value) {
    at("search").value = "";
    change({ q: "" });
  }
}

const KEYS = {
  "/": () => at("search").focus(),
  j: () => step(1),
  k: () => step(-1),
  n: () => turn(Math.min(pageNow() + 1, pageCount())),
  p: () => turn(Math.max(pageNow() - 1, 1)),
  c: () => opened?.row && nextCandidate(),
  s: () => opened?.row && switchTexts(),
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.key === "Escape" && !event.target.matches("select")) {
    event.preventDefault();
    escape(event.target === at("search"));
  }
  if (event.target.matches("input:not([type=checkbox]), select") || !at("keys").checked) return;
  const arrows = event.target.matches("button.open") ? { ArrowDown: "j", ArrowUp: "k" } : {};
  const key = Object.hasOwn(arrows, event.key) ? arrows[event.key] : event.key;
  if (!Object.hasOwn(KEYS, key)) return;
  event.preventDefault();
  KEYS[key]();
}

function listen() {
  let typing;
  at("search").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => change({ q: at("search").value }), 150);
  });
  at("clear").addEventListener("click", clearAll);
  at("first-page").addEventListener("click", () => turn(1));
  at("previous-page").addEventListener("click", () => turn(pageNow() - 1));
  at("next-page").addEventListener("click", () => turn(pageNow() + 1));
  at("last-page").addEventListener("click", () => turn(pageCount()));
  at("page").addEventListener("change", () => turn(at("page").value));
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", () => {
    readAddress();
    search().catch(complain);
  });
}

async function start() {
  if (typeof DecompressionStream === "undefined") {
    throw new Error("This browser lacks DecompressionStream: Chrome or Edge 93, Firefox 113, Safari 16.4 or later have it.");
  }
  at("viewer").hidden = false;
  await readIndexes();
  makeFilters();
  makeSorters();
  readAddress();
  listen();
  await search();
  document.documentElement.dataset.ready = "yes";
}

function complain(error) {
  at("trouble").hidden = false;
  at("trouble").textContent = `The rows cannot be read. ${error.message}`;
}

start().catch(complain);
