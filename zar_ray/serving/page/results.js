// The answer about one video, or one window of it.

import { chart, clock, duration, facts, html, percent, points, svg } from "./dom.js";
import { relevanceSection } from "./relevance.js";
import { viewsSection } from "./views.js";

/**
 * Everything about one Classification, as an article whose heading can take the focus.
 *
 * `whole` is what the views are parts of: the video, or a window of it.
 */
export function resultArticle(result, title, whole = "video") {
  const tuned = result.steps > 0;
  return html(
    "article",
    { class: "result" },
    answer(result, title, tuned),
    labels(result, tuned),
    frames(result),
    result.explanation && relevanceSection(result.explanation, tuned),
    result.explanation_missing &&
      section("What speaks for the answer", html("p", { class: "soft" }, result.explanation_missing)),
    result.views.length > 0 && viewsSection(result.views, result.candidates, whole),
    timings(result.timings),
    details(result),
  );
}

function section(title, ...content) {
  return html("section", { class: "card" }, html("h3", {}, title), content);
}

function notice(...content) {
  return html("p", { class: "notice warn" }, content);
}

function answer(result, title, tuned) {
  const [best] = result.after;
  const [first] = result.before;
  return html(
    "section",
    { class: "card answer" },
    html("h2", { tabindex: "-1" }, html("bdi", { class: "soft" }, title), " ", html("bdi", {}, best.label)),
    html(
      "p",
      {},
      html("strong", { class: "number" }, percent(best.score, best.std)),
      tuned && [" after tuning; ", sentence(first, best)],
      ` Chosen among ${result.candidates} ${result.candidates === 1 ? "label" : "labels"}.`,
    ),
    result.reject &&
      notice(
        html("strong", {}, "None of these: "),
        `the answer is too unsure (${result.certainty.toPrecision(3)}) to take any label for shown.`,
      ),
    result.model.random_weights &&
      notice(html("strong", {}, "Random weights: "), "the model was never trained, and this answer means nothing."),
    result.video.warning && notice(html("strong", {}, "About the file: "), result.video.warning),
  );
}

function sentence(first, best) {
  return first.label === best.label
    ? `before, it was the same label with ${percent(first.score)}.`
    : ["before, it was ", html("bdi", {}, first.label), ` with ${percent(first.score)}.`];
}

function labels(result, tuned) {
  const before = new Map(result.before.map((one) => [one.label, one]));
  const after = new Map(result.after.map((one) => [one.label, one]));
  // Labels that tuning pushed out of the first few are shown too, below those.
  const all = [...new Set([...after.keys(), ...before.keys()])];
  // One scale for both columns; of many labels even the best may score little, so it does not end at 100 %.
  const top = Math.max(...[...before.values(), ...after.values()].map(({ score }) => score));
  const head = tuned ? ["Label", "Before tuning", "After tuning"] : ["Label", "Score"];
  // The roles are the elements' own; some browsers forget them where the style sheet lays the rows out anew.
  const rows = all.map((label) => {
    const cells = [html("th", { scope: "row", role: "rowheader" }, html("bdi", {}, label))];
    if (tuned) cells.push(score(before.get(label), top, "before"));
    const both = tuned && before.has(label) && after.has(label);
    const change = both ? after.get(label).score - before.get(label).score : null;
    cells.push(score(after.get(label), top, "after", change));
    return html("tr", { role: "row" }, cells);
  });
  return section(
    "Scores",
    html(
      "table",
      { class: "scores", role: "table" },
      html("caption", { class: "unseen" }, "Labels with their scores, highest first"),
      html("thead", { role: "rowgroup" }, html("tr", { role: "row" }, head.map(columnHead))),
      html("tbody", { role: "rowgroup" }, rows),
    ),
    html(
      "p",
      { class: "soft small" },
      `Bars end at ${percent(top)}. Entropy of the scores, where 0 is certain and `,
      `${Math.log(result.candidates).toFixed(2)} is a guess: `,
      tuned && [html("span", { class: "number" }, result.entropy_before.toFixed(3)), " before, "],
      html("span", { class: "number" }, result.entropy_after.toFixed(3)),
      tuned ? " after." : ".",
    ),
    html("p", { class: "soft small" }, dependence(result, tuned)),
  );
}

/** What of the scores is the draw of the views. */
function dependence({ seed, seeds }, tuned) {
  if (seeds.length > 1) return `Means ± standard deviations over the seeds ${seeds.join(", ")}.`;
  if (!tuned) return null;
  const way = "several seeds show by how much";
  return `Scores after tuning depend on the views, which are drawn by the file’s name and the seed (${seed}); ${way}.`;
}

function columnHead(name) {
  return html("th", { scope: "col", role: "columnheader" }, name);
}

function score(ranked, top, kind, change = null) {
  if (ranked === undefined) return html("td", { class: "soft small", role: "cell" }, "lower");
  return html(
    "td",
    { role: "cell" },
    html("span", { class: "number" }, percent(ranked.score, ranked.std)),
    change !== null && html("span", { class: "change soft number" }, ` ${points(change)}`),
    html(
      "span",
      { class: "bar", "aria-hidden": "true" },
      html("span", { class: `fill ${kind}`, style: { width: `${(100 * ranked.score) / top}%` } }),
    ),
  );
}

function frames({ video }) {
  const used = video.evaluation_frames;
  const last = Math.max(video.frames - 1, 1);
  const picture = (width) =>
    svg(
      "svg",
      { width, height: 22, "aria-hidden": "true" },
      svg("rect", { class: "track", x: 0, y: 8, width, height: 6, rx: 3 }),
      used.map((frame) =>
        svg("rect", { class: "tick", x: 1 + ((width - 5) * frame) / last, y: 1, width: 3, height: 20, rx: 1.5 }),
      ),
    );
  return section(
    "Frames used",
    html(
      "p",
      {},
      `The view that is classified has ${used.length} of the video’s ${video.frames} frames. `,
      `${video.frames_decoded} different frames were decoded for all views together.`,
    ),
    chart(picture),
    html(
      "details",
      {},
      html("summary", {}, "Their numbers"),
      html("p", { class: "number" }, used.join(", ")),
    ),
  );
}

const STAGES = [
  ["receive", "Receiving the video"],
  ["decode", "Decoding"],
  ["encode", "Encoding frames"],
  ["adapt", "Tuning and scoring"],
  ["explain", "Explaining"],
];

function timings(spent) {
  const known = STAGES.reduce((sum, [stage]) => sum + spent[stage], 0);
  const rows = [
    ...STAGES.map(([stage, name]) => [name, spent[stage]]),
    ["Waiting and transport", Math.max(0, spent.total - known)],
  ];
  return section(
    "Time",
    html(
      "table",
      { class: "times" },
      html("caption", { class: "unseen" }, "Seconds of each stage"),
      html("thead", { class: "unseen" }, html("tr", {}, ["Stage", "Time"].map((name) => html("th", { scope: "col" }, name)))),
      html(
        "tbody",
        {},
        rows.map(([name, seconds]) =>
          html(
            "tr",
            {},
            html("th", { scope: "row" }, name),
            html(
              "td",
              {},
              html(
                "span",
                { class: "bar", "aria-hidden": "true" },
                html("span", { class: "fill after", style: { width: `${(100 * seconds) / (spent.total || 1)}%` } }),
              ),
              html("span", { class: "number" }, duration(seconds)),
            ),
          ),
        ),
        html(
          "tr",
          { class: "total" },
          html("th", { scope: "row" }, "Total"),
          html("td", {}, html("span", { class: "number" }, duration(spent.total))),
        ),
      ),
    ),
  );
}

function details(result) {
  const { model, video } = result;
  const seeds = result.seeds.length > 1 ? `seeds ${result.seeds.join(", ")}` : `seed ${result.seed}`;
  return section(
    "Details",
    facts([
      ["Model", model.name],
      ["Weights", html("code", {}, model.fingerprint)],
      ["Input", `${model.input_size} × ${model.input_size} pixels`],
      ["Method", `${result.method}, ${result.steps} ${result.steps === 1 ? "step" : "steps"}, ${seeds}`],
      ["Images encoded", String(result.images_encoded)],
      ["Video", `${video.width} × ${video.height}, ${video.fps.toFixed(2)} frames/s, ${clock(video.duration)}`],
      ["Decoder", video.decoder],
      ["Service", `zar-ray ${model.version}`],
      ["Request", html("code", {}, result.request_id)],
    ]),
    html("button", { type: "button", class: "quiet", onclick: () => save(result) }, "Save the answer as JSON"),
  );
}

function save(result) {
  const address = URL.createObjectURL(new Blob([JSON.stringify(result, null, 2)], { type: "application/json" }));
  html("a", { href: address, download: `zar-ray-${result.request_id}.json` }).click();
  URL.revokeObjectURL(address);
}
