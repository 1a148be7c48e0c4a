// How unsure the untuned model is about each view of the video, and which views took part in the tuning.

import { chart, freshId, html, svg, table } from "./dom.js";

const LANE = 13; // pixels between the crops of a rate
const TITLE = 20;
const GAP = 10;
const AXIS = 36;
const SIDE = 20; // half the width of a number at an end of the axis

export function viewsSection(views, candidates, whole) {
  const selected = views.filter((view) => view.selected).length;
  const crops = [...new Set(views.map((view) => view.crop))];
  const caption = freshId("views");
  return html(
    "section",
    { class: "card" },
    html("h3", {}, "Entropy of the views"),
    html(
      "p",
      { id: caption },
      `A dot is a view: a stretch of the ${whole} under one crop. The further left, the surer the untuned model is about `,
      `it (0 is certain, ${Math.log(candidates).toFixed(2)} a guess). `,
      html("strong", {}, `${selected} of ${views.length} views were selected`),
      " for the tuning.",
    ),
    chart((width) => plot(views, crops, width, caption, whole)),
    html(
      "ul",
      { class: "legend small" },
      html("li", {}, key("selected"), "selected"),
      selected < views.length && html("li", {}, key("left-out"), "left out"),
      limit(views) !== null && html("li", {}, key("cut"), "where the selection ends"),
      crops.length > 1 && html("li", { class: "soft" }, `crops from top to bottom: ${crops.join(", ")}`),
    ),
    html("details", {}, html("summary", {}, "The views as a table"), viewsTable(views, whole)),
  );
}

function key(kind) {
  const mark = kind === "cut" ? svg("line", { class: "cut", x1: 7, x2: 7, y1: 0, y2: 14 }) : dot(kind, 7, 7);
  return svg("svg", { width: 14, height: 14, "aria-hidden": "true" }, mark);
}

// Told apart by shape as well as by colour.
function dot(kind, x, y, ...inside) {
  return svg("circle", { class: `dot ${kind}`, cx: x, cy: y, r: kind === "selected" ? 4.5 : 3.5 }, inside);
}

function share(rate, whole) {
  return rate === 1 ? `the whole ${whole}` : `${Number((100 * rate).toPrecision(3))} % of the ${whole}`;
}

function plot(views, crops, width, caption, whole) {
  const rates = [...new Set(views.map((view) => view.rate))].sort((one, other) => other - one);
  const row = TITLE + LANE * crops.length + GAP;
  const height = row * rates.length + AXIS;
  const { ticks, from, to } = scale(views.map((view) => view.entropy), width < 420 ? 3 : 6);
  const x = (entropy) => SIDE + ((width - 2 * SIDE) * (entropy - from)) / (to - from);
  const bottom = height - AXIS;
  const digits = Math.max(0, Math.min(4, -Math.floor(Math.log10(ticks[1] - ticks[0]))));
  const cut = limit(views);
  return svg(
    "svg",
    { width, height, role: "img", "aria-labelledby": caption },
    ticks.map((tick) => [
      svg("line", { class: "grid", x1: x(tick), x2: x(tick), y1: 0, y2: bottom }),
      svg("text", { x: x(tick), y: bottom + 14, "text-anchor": "middle" }, tick.toFixed(digits)),
    ]),
    svg("text", { x: width / 2, y: bottom + 31, "text-anchor": "middle" }, "entropy, nats"),
    cut !== null && svg("line", { class: "cut", x1: x(cut), x2: x(cut), y1: 0, y2: bottom }),
    rates.map((rate, at) => [
      svg("text", { class: "halo", x: 0, y: row * at + 13 }, share(rate, whole)),
      views
        .filter((view) => view.rate === rate)
        .map((view) =>
          dot(
            view.selected ? "selected" : "left-out",
            x(view.entropy),
            row * at + TITLE + LANE * (crops.indexOf(view.crop) + 0.5),
            svg("title", {}, `frames ${stretch(view)}, ${view.crop}: ${view.entropy.toFixed(3)}`),
          ),
        ),
    ]),
  );
}

/** Between the last selected and the first left out view, where the entropy alone tells them apart. */
function limit(views) {
  const last = Math.max(...views.filter((view) => view.selected).map((view) => view.entropy));
  const first = Math.min(...views.filter((view) => !view.selected).map((view) => view.entropy));
  return Number.isFinite(last) && Number.isFinite(first) && last <= first ? (last + first) / 2 : null;
}

/** Round numbers that enclose the values: dots need no zero, and entropies often lie close together. */
function scale(values, wanted) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const raw = Math.max(high - low, 1e-3) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((one) => one * power >= raw);
  const first = Math.floor(low / step);
  const last = Math.max(Math.ceil(high / step), first + 1);
  const ticks = Array.from({ length: last - first + 1 }, (_, at) => (first + at) * step);
  return { ticks, from: first * step, to: last * step };
}

function stretch(view) {
  return `${view.start}–${view.start + view.length - 1}`;
}

function viewsTable(views, whole) {
  const columns = [
    { name: "Covers" },
    { name: "Sample", number: true },
    { name: "Crop" },
    { name: "Frames", number: true },
    { name: "Entropy", number: true },
    { name: "Selected" },
  ];
  const rows = views.map((view) => [
    share(view.rate, whole),
    String(view.sample),
    view.crop,
    stretch(view),
    view.entropy.toFixed(4),
    view.selected ? "yes" : "no",
  ]);
  return table("Views with their entropy", columns, rows);
}
