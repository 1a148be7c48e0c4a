"use strict";
// All videos of a run, of which only the rows in sight are in the document.
const data = JSON.parse(document.getElementById("data").textContent);
const ROW = 40; // pixels, as the style has it
const SPARE = 8; // rows drawn above and below those in sight
const PRINTED = 200; // rows on paper
const TOP_CONFUSIONS = 12;
const MARGIN = 132; // pixels for the names beside the confusion picture
const KINDS = ["wrong", "changed", "helped", "hurt", "failed", "warned"];
const $ = (id) => document.getElementById(id);
const box = $("box"), grid = $("grid"), body = $("rows"), dialog = $("video"), canvas = $("confusion");

const fresh = () => ({ show: "all", right: -1, predicted: -1, least: "", most: "", text: "" });
let filter = fresh(), sort = { column: "id", down: false };
let shown, names, order = [], current = 0, printing = false;
let flags, confusion, totals; // of the case: bits of KINDS, videos by right * classes + predicted, videos by right class
let view = { top: 0, left: 0, span: 1 }, cursor = { right: 0, predicted: 0 };

function make(tag, values, ...children) {
  const element = Object.assign(document.createElement(tag), values);
  element.append(...children);
  return element;
}

const percent = (value) => (value < 0 ? "" : (value / 100).toFixed(1));
const nats = (value) => (value < 0 ? "" : (value / 1000).toFixed(2));
const name = (id) => (id < 0 ? "" : names[id]);
const label = (row) => (shown.several ? (shown.label[row] ?? []).map(name).join(", ") : name(shown.label[row]));
const reason = (row) => data.texts[shown.reason[row]] ?? data.texts[shown.warning[row]] ?? "";
const kinds = (row) => KINDS.filter((_, bit) => flags[row] & (1 << bit));

// What each column shows, and the number that it sorts by; negative ones are unknown and come last.
let ranks;
const COLUMNS = {
  id: [(row) => data.ids[shown.video[row]], (row) => shown.video[row]],
  label: [label, (row) => (shown.several ? (shown.label[row]?.length ? ranks[shown.label[row][0]] : -1) : rank(shown.label[row]))],
  before: [(row) => name(shown.before[row]), (row) => rank(shown.before[row])],
  after: [(row) => name(shown.after[row]), (row) => rank(shown.after[row])],
  confidence_before: [(row) => percent(shown.confidence_before[row]), (row) => shown.confidence_before[row]],
  confidence_after: [(row) => percent(shown.confidence_after[row]), (row) => shown.confidence_after[row]],
  entropy_after: [(row) => nats(shown.entropy_after[row]), (row) => shown.entropy_after[row]],
  flags: [(row) => kinds(row).join(" "), (row) => flags[row] || -1],
  reason: [reason, (row) => (shown.reason[row] < 0 ? shown.warning[row] : shown.reason[row])],
};
const rank = (id) => (id < 0 ? -1 : ranks[id]);

function openCase(number) {
  shown = data.cases[number];
  names = data.classes[shown.classes];
  const compare = new Intl.Collator().compare;
  ranks = new Int32Array(names.length);
  names.map((_, id) => id).sort((a, b) => compare(names[a], names[b])).forEach((id, place) => { ranks[id] = place; });
  flags = new Uint8Array(shown.video.length);
  confusion = new Map();
  totals = new Int32Array(names.length);
  const counts = new Array(KINDS.length).fill(0);
  for (let row = 0; row < flags.length; row++) {
    const right = shown.several ? -1 : shown.label[row], before = shown.before[row], after = shown.after[row];
    const failed = shown.reason[row] >= 0, known = right >= 0 && !failed;
    const true_of = [
      known && after !== right, !failed && before !== after, known && before !== right && after === right,
      known && before === right && after !== right, failed, shown.warning[row] >= 0,
    ];
    true_of.forEach((holds, bit) => { if (holds) { flags[row] |= 1 << bit; counts[bit]++; } });
    if (known) {
      const cell = right * names.length + after;
      confusion.set(cell, (confusion.get(cell) ?? 0) + 1);
      totals[right]++;
    }
  }
  $("show").replaceChildren(...["all", ...KINDS].map((kind, at) =>
    make("button", { type: "button", value: kind, textContent: `${kind} ${(at ? counts[at - 1] : flags.length).toLocaleString("en")}` })));
  for (const id of ["right", "predicted"]) {
    $(id).replaceChildren(make("option", { value: -1, textContent: "any class" }),
      ...ranked().map((one) => make("option", { value: one, textContent: names[one] })));
  }
  $("left_out").hidden = !shown.left_out;
  $("left_out").querySelector("strong").textContent =
    `${shown.left_out.toLocaleString("en")} of this case's ${(shown.left_out + flags.length).toLocaleString("en")} videos are left out`;
  view = { top: 0, left: 0, span: names.length };
  cursor = { right: 0, predicted: 0 };
  filter = fresh();
  listConfusions();
  apply();
}

const ranked = () => names.map((_, id) => id).sort((a, b) => ranks[a] - ranks[b]);

function matches(words) {
  const bit = 1 << KINDS.indexOf(filter.show);
  const least = filter.least === "" ? -Infinity : 100 * filter.least, most = filter.most === "" ? Infinity : 100 * filter.most;
  const bounded = filter.least !== "" || filter.most !== "";
  return (row) => {
    if (filter.show !== "all" && !(flags[row] & bit)) return false;
    if (filter.right >= 0 && (shown.several ? !shown.label[row]?.includes(filter.right) : shown.label[row] !== filter.right)) return false;
    if (filter.predicted >= 0 && shown.after[row] !== filter.predicted) return false;
    const confidence = shown.confidence_after[row];
    if (bounded && (confidence < 0 || confidence < least || confidence > most)) return false;
    if (!words.length) return true;
    const text = `${data.ids[shown.video[row]]}\n${label(row)}`.toLowerCase();
    return words.every((word) => text.includes(word));
  };
}

// Filters, sorts and shows, from the first row on.
function apply() {
  const key = COLUMNS[sort.column][1], sign = sort.down ? -1 : 1;
  const keys = Float64Array.from(flags, (_, row) => { const value = key(row); return value < 0 ? sign * Infinity : value; });
  order = Array.from(flags.keys()).filter(matches(filter.text.toLowerCase().split(/\s+/).filter(Boolean)));
  order.sort((a, b) => sign * (keys[a] - keys[b]) || a - b);
  current = 0;
  box.scrollTop = 0;
  for (const one of $("show").children) one.setAttribute("aria-pressed", one.value === filter.show);
  for (const id of ["right", "predicted", "least", "most"]) $(id).value = filter[id];
  if ($("text").value !== filter.text) $("text").value = filter.text;
  for (const head of grid.querySelectorAll("th")) {
    const sorted = head.dataset.column === sort.column;
    head.setAttribute("aria-sort", sorted ? (sort.down ? "descending" : "ascending") : "none");
  }
  for (const one of $("confusions").children) {
    one.setAttribute("aria-pressed", Number(one.dataset.right) === filter.right && Number(one.dataset.predicted) === filter.predicted);
  }
  $("count").textContent = `${order.length.toLocaleString("en")} of ${flags.length.toLocaleString("en")} videos`;
  grid.setAttribute("aria-rowcount", order.length + 1);
  paint();
  drawConfusion();
}

function paint() {
  const first = printing ? 0 : Math.max(0, Math.min(Math.floor(box.scrollTop / ROW) - SPARE, order.length - 1));
  const count = printing ? PRINTED : Math.ceil(box.clientHeight / ROW) + 2 * SPARE;
  const last = Math.min(order.length, first + count);
  $("above").style.height = `${first * ROW}px`;
  $("below").style.height = `${printing ? 0 : (order.length - last) * ROW}px`;
  body.replaceChildren(...order.slice(first, last).map((row, at) => line(row, first + at)));
  $("unprinted").textContent = order.length > PRINTED ? `The first ${PRINTED} of ${order.length.toLocaleString("en")} videos.` : "";
  grid.setAttribute("aria-activedescendant", order.length ? `row-${current}` : "");
}

function line(row, place) {
  const cells = Object.entries(COLUMNS).map(([column, [text]]) => {
    const said = text(row);
    const cell = make("td", { title: said, className: column }, said);
    if (column === "flags") cell.replaceChildren(...kinds(row).map((kind) => make("span", { className: `flag ${kind}`, textContent: kind })));
    const pictures = column === "id" && data.pictures[shown.video[row]];
    if (pictures) cell.prepend(make("img", { src: pictures[0], alt: "", className: "thumb" }));
    return cell;
  });
  const made = make("tr", { id: `row-${place}` }, ...cells);
  made.setAttribute("aria-rowindex", place + 2);
  made.setAttribute("aria-selected", place === current);
  return made;
}

function moveTo(place) {
  current = Math.max(0, Math.min(order.length - 1, place));
  const top = current * ROW, room = box.clientHeight - grid.tHead.offsetHeight - ROW; // the heading covers rows
  box.scrollTop = Math.max(Math.min(box.scrollTop, top), top - room);
  paint();
}

function openVideo(row) {
  const video = shown.video[row], file = data.files[video], pictures = data.pictures[video] ?? [];
  const facts = [["right", label(row) || "no label"]];
  if (shown.after[row] >= 0) {
    for (const when of shown.adapts ? ["before", "after"] : ["after"]) {
      facts.push([shown.adapts ? when : "decision", `${name(shown[when][row])}, confidence ${percent(shown[`confidence_${when}`][row])} %, entropy ${nats(shown[`entropy_${when}`][row])} nats`]);
    }
  }
  if (flags[row]) facts.push(["flags", kinds(row).join(", ")]);
  if (reason(row)) facts.push([shown.reason[row] >= 0 ? "failed" : "warning", reason(row)]);
  const content = [make("dl", {}, ...facts.flatMap(([term, text]) => [make("dt", { textContent: term }), make("dd", { textContent: text })]))];
  if (file) {
    const player = make("video", { controls: true, preload: "metadata", src: file });
    const problem = make("p", { className: "weak", hidden: true, textContent: `Not to be played here: there is no ${decodeURI(file)} beside this page, or the browser lacks its codec.` });
    player.addEventListener("error", () => { problem.hidden = false; player.hidden = true; });
    content.push(player, problem);
  } else content.push(make("p", { className: "weak", textContent: "The video is no local file beside this page." }));
  if (pictures.length) {
    content.push(make("div", { className: "strip" }, ...pictures.map((uri, at) => {
      const button = make("button", { type: "button", title: "larger or smaller" },
        make("img", { src: uri, alt: `${data.ids[video]}, picture ${at + 1} of ${pictures.length}` }));
      button.addEventListener("click", () => button.classList.toggle("large"));
      return button;
    })));
  }
  $("video-title").textContent = data.ids[video];
  $("video-content").replaceChildren(...content);
  dialog.showModal();
}

// The confusion picture: a window of it, so that of hundreds of classes each can be seen.

function listConfusions() {
  const there = confusion.size > 0;
  $("confusion-part").hidden = !there;
  $("no-confusion").hidden = there;
  const wrong = [...confusion].filter(([cell]) => Math.floor(cell / names.length) !== cell % names.length);
  wrong.sort(([a, count], [b, other]) => other - count || a - b);
  $("confusions").replaceChildren(...wrong.slice(0, TOP_CONFUSIONS).map(([cell, count]) => {
    const right = Math.floor(cell / names.length), predicted = cell % names.length;
    const button = make("button", { type: "button", textContent: `${names[right]} → ${names[predicted]} (${count} of ${totals[right]})` });
    button.dataset.right = right;
    button.dataset.predicted = predicted;
    return button;
  }));
}

function drawConfusion() {
  const width = canvas.clientWidth;
  if (!width || $("confusion-part").hidden) return;
  const scale = window.devicePixelRatio || 1, style = getComputedStyle(document.documentElement);
  const colour = (one) => style.getPropertyValue(one);
  canvas.width = canvas.height = width * scale;
  const pen = canvas.getContext("2d"), cell = (width - MARGIN) / view.span;
  pen.scale(scale, scale);
  pen.fillStyle = colour("--pale");
  pen.fillRect(MARGIN, MARGIN, width - MARGIN, width - MARGIN);
  const corner = (right, predicted) => [MARGIN + (predicted - view.left) * cell, MARGIN + (right - view.top) * cell];
  const inside = (right, predicted) => right >= view.top && right < view.top + view.span && predicted >= view.left && predicted < view.left + view.span;
  for (const [at, count] of confusion) {
    const right = Math.floor(at / names.length), predicted = at % names.length;
    if (!inside(right, predicted)) continue;
    const [x, y] = corner(right, predicted);
    const share = count / totals[right];
    // Where cells are a pixel or two, a frequent mistake is drawn larger than its cell.
    const side = right === predicted ? Math.max(cell, 1) : Math.max(cell - (cell > 6 ? 1 : 0), 1.5 + 6 * share);
    pen.globalAlpha = 0.3 + 0.7 * Math.min(1, cell < 6 ? 2 * share : share);
    pen.fillStyle = colour(right === predicted ? "--accent" : "--wrong");
    pen.fillRect(x + Math.min(0, (cell - side) / 2), y + Math.min(0, (cell - side) / 2), side, side);
    pen.globalAlpha = 1;
    if (cell >= 22) {
      pen.fillStyle = colour("--ink");
      pen.font = "11px sans-serif";
      pen.textAlign = "center";
      pen.fillText(count, x + cell / 2, y + cell / 2 + 4);
    }
  }
  pen.fillStyle = colour("--soft");
  pen.font = "11px sans-serif";
  const every = Math.ceil(12 / cell), short = (text) => (text.length > 20 ? `${text.slice(0, 19)}…` : text);
  for (let step = 0; step < view.span; step += every) {
    pen.textAlign = "right";
    pen.fillText(short(names[view.top + step]), MARGIN - 6, MARGIN + step * cell + Math.min(cell, 12) / 2 + 4);
    pen.save();
    pen.translate(MARGIN + step * cell + Math.min(cell, 12) / 2 + 4, MARGIN - 6);
    pen.rotate(-Math.PI / 2);
    pen.textAlign = "left";
    pen.fillText(short(names[view.left + step]), 0, 0);
    pen.restore();
  }
  pen.strokeStyle = colour("--ink");
  pen.lineWidth = 2;
  if (inside(cursor.right, cursor.predicted)) {
    const [x, y] = corner(cursor.right, cursor.predicted);
    pen.strokeRect(x - 1, y - 1, Math.max(cell, 4) + 1, Math.max(cell, 4) + 1);
  }
  const count = confusion.get(cursor.right * names.length + cursor.predicted) ?? 0;
  $("readout").textContent = `${names[cursor.right]} → ${names[cursor.predicted]}: ${count} of ${totals[cursor.right]} videos`;
}

// The cell under a pointer, or the nearest that holds videos where cells are smaller than a finger's tip.
function cellAt(event) {
  const cell = (canvas.clientWidth - MARGIN) / view.span, reach = Math.ceil(4 / cell) - 1;
  const right = Math.floor(view.top + (event.offsetY - MARGIN) / cell), predicted = Math.floor(view.left + (event.offsetX - MARGIN) / cell);
  if (event.offsetX < MARGIN || event.offsetY < MARGIN || right >= names.length || predicted >= names.length) return null;
  let best = { right, predicted }, least = Infinity;
  for (let down = -reach; down <= reach; down++) {
    for (let along = -reach; along <= reach; along++) {
      const distance = down * down + along * along, column = predicted + along;
      if (column < 0 || column >= names.length || distance >= least) continue;
      if (confusion.has((right + down) * names.length + column)) { best = { right: right + down, predicted: column }; least = distance; }
    }
  }
  return best;
}

function zoom(factor) {
  const span = Math.max(Math.min(8, names.length), Math.min(names.length, Math.round(view.span * factor)));
  const begin = (at) => Math.max(0, Math.min(names.length - span, at - Math.floor(span / 2)));
  view = { span, top: begin(cursor.right), left: begin(cursor.predicted) };
  drawConfusion();
}

function point(right, predicted) {
  const limit = (at) => Math.max(0, Math.min(names.length - 1, at));
  const follow = (start, at) => (at < start ? at : at >= start + view.span ? at - view.span + 1 : start);
  cursor = { right: limit(right), predicted: limit(predicted) };
  view.top = follow(view.top, cursor.right);
  view.left = follow(view.left, cursor.predicted);
  drawConfusion();
}

function filterCell({ right, predicted }) {
  if (!confusion.has(right * names.length + predicted)) return;
  cursor = { right, predicted };
  filter = { ...fresh(), right, predicted };
  apply();
}

const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

canvas.addEventListener("pointermove", (event) => {
  const cell = cellAt(event);
  if (cell) point(cell.right, cell.predicted);
});
canvas.addEventListener("click", (event) => { const cell = cellAt(event); if (cell) filterCell(cell); });
canvas.addEventListener("keydown", (event) => {
  const step = event.shiftKey ? 10 : 1, move = MOVES[event.key];
  if (move) point(cursor.right + step * move[0], cursor.predicted + step * move[1]);
  else if (event.key === "Enter") filterCell(cursor);
  else if (event.key === "+") zoom(0.5);
  else if (event.key === "-") zoom(2);
  else return;
  event.preventDefault();
});
$("closer").addEventListener("click", () => zoom(0.5));
$("farther").addEventListener("click", () => zoom(2));
$("confusions").addEventListener("click", ({ target }) => {
  if (target.dataset.right) filterCell({ right: Number(target.dataset.right), predicted: Number(target.dataset.predicted) });
});

$("case").replaceChildren(...data.cases.map((one, at) => make("option", { value: at, textContent: one.title })));
$("case").addEventListener("change", () => openCase($("case").value));
$("show").addEventListener("click", ({ target }) => { if (target.value) { filter.show = target.value; apply(); } });
for (const id of ["right", "predicted"]) $(id).addEventListener("change", () => { filter[id] = Number($(id).value); apply(); });
for (const id of ["least", "most", "text"]) $(id).addEventListener("input", () => { filter[id] = $(id).value; apply(); });
$("reset").addEventListener("click", () => { filter = fresh(); apply(); });
grid.tHead.addEventListener("click", ({ target }) => {
  const column = target.closest("th")?.dataset.column;
  if (!column) return;
  sort = { column, down: sort.column === column && !sort.down };
  apply();
});
body.addEventListener("click", ({ target }) => {
  const row = target.closest("tr");
  if (!row) return;
  moveTo(Number(row.id.slice(4)));
  grid.focus({ preventScroll: true });
  openVideo(order[current]);
});
grid.addEventListener("keydown", (event) => {
  if (event.target !== grid || !order.length) return;
  const page = Math.max(1, Math.floor(box.clientHeight / ROW) - 2);
  const to = { ArrowUp: current - 1, ArrowDown: current + 1, PageUp: current - page, PageDown: current + page, Home: 0, End: order.length - 1 }[event.key];
  if (to !== undefined) moveTo(to);
  else if (event.key === "Enter") openVideo(order[current]);
  else return;
  event.preventDefault();
});
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "ArrowDown" && event.key !== "Enter") return;
  grid.focus({ preventScroll: true });
  event.preventDefault();
});
document.addEventListener("keydown", (event) => {
  if (dialog.open) return;
  if (event.key === "/" && !event.target.matches("input, select")) {
    $("text").focus();
    event.preventDefault();
  } else if (event.key === "Escape") {
    filter = fresh();
    apply();
  }
});
$("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => $("video-content").replaceChildren()); // a video stops
box.addEventListener("scroll", paint, { passive: true });
new ResizeObserver(() => { paint(); drawConfusion(); }).observe(box);
matchMedia("print").addEventListener("change", ({ matches: now }) => { printing = now; paint(); drawConfusion(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawConfusion);
openCase(0);
