// Several videos: a row each as its answer comes, the whole answer behind it, and all of them as CSV.

import * as api from "./api.js";
import { html, percent, table } from "./dom.js";
import { resultArticle } from "./results.js";

// Half of what a service works on by default, so that others have room beside it.
const AT_ONCE = 4;
// How often one is sent again to a service that is at capacity.
const RETRIES = 5;
// By the service's codes: what costs one video. All else concerns every one.
const OF_ONE_VIDEO = ["unusable-video", "video-too-large", "body-too-large", "internal-error", "timeout"];

function waited(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    const aborted = () => {
      clearTimeout(timer);
      reject(new DOMException("aborted", "AbortError"));
    };
    if (signal.aborted) aborted();
    else signal.addEventListener("abort", aborted, { once: true });
  });
}

async function answered(request, signal) {
  for (let left = RETRIES; ; left -= 1) {
    try {
      return await api.classify(request, signal);
    } catch (error) {
      if (error.code !== "overloaded" || error.retryAfter === null || left === 0) throw error;
      // Those that were refused together would come back together otherwise.
      await waited(error.retryAfter * (1 + 0.25 * Math.random()), signal);
    }
  }
}

/**
 * Classifies files, some at a time, and tells of each as `{number, result}` or `{number, problem}`.
 *
 * What concerns all of them, and an abort, is thrown, and nothing further is sent.
 */
export async function classifyEach(request, signal, tell) {
  const waiting = [...request.files.entries()];
  const stop = new AbortController();
  const either = AbortSignal.any([signal, stop.signal]);
  const parameters = { ...request.parameters, explain: false };
  const work = async () => {
    for (let next = waiting.shift(); next; next = waiting.shift()) {
      const [number, file] = next;
      try {
        tell({ number, result: await answered({ ...request, file, parameters }, either) });
      } catch (error) {
        if (!OF_ONE_VIDEO.includes(error.code)) throw error;
        tell({ number, problem: error });
      }
    }
  };
  try {
    await Promise.all(Array.from({ length: AT_ONCE }, work));
  } finally {
    waiting.length = 0;
    stop.abort();
  }
}

const FORMULA = /^(?:\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\n])/;

/** A text that no spreadsheet takes for a formula, in quotes where a CSV wants them. */
function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = value.replace(/\r\n?/g, "\n");
  const harmless = FORMULA.test(text) ? `'${text}` : text;
  return /[",\n]/.test(harmless) ? `"${harmless.replaceAll('"', '""')}"` : harmless;
}

/** A table as `zar predict --csv` writes it; videos without an outcome are left out. */
function csvOf(files, outcomes) {
  const ranks = Math.max(1, ...outcomes.map((one) => one?.result?.after.length ?? 0));
  const named = Array.from({ length: ranks }, (_, at) => ["label", "score", "std"].map((what) => `${what}_${at + 1}`));
  const head = ["video", "method", ...named.flat(), "label_before", "score_before", "std_before"];
  const rows = outcomes.map(({ result, problem } = {}, number) => {
    if (!result && !problem) return null;
    const scored = [...Array.from({ length: ranks }, (_, at) => result?.after[at]), result?.before[0]];
    const seeds = result && (result.seeds.length ? result.seeds : [result.seed]).join(" ");
    return [
      files[number].name,
      result?.method,
      ...scored.flatMap((one) => [one?.label, one?.score, one?.std]),
      seeds,
      result?.video.warning,
      problem && (problem.detail || problem.title),
    ];
  });
  const lines = [[...head, "seeds", "warning", "error"], ...rows.filter(Boolean)];
  return `${lines.map((line) => line.map(cell).join(",")).join("\n")}\n`;
}

export class VideoTable {
  constructor(files) {
    this.files = files;
    this.outcomes = Array.from({ length: files.length }, () => undefined);
    this.heading = html("h2", { tabindex: "-1" });
    this.cells = files.map(() => ["", ""].map(() => html("span", {}, "…")));
    this.details = html("div", { class: "output" });
    const rows = files.map((file, number) => [html("bdi", {}, file.name), ...this.cells[number]]);
    const columns = [{ name: "Video" }, { name: "Label" }, { name: "Score", number: true }];
    this.element = html(
      "div",
      {},
      html(
        "section",
        { class: "card" },
        this.heading,
        table("Videos with their labels", columns, rows),
        html("p", {}, html("button", { type: "button", class: "quiet", onclick: () => this.save() }, "Save as CSV")),
      ),
      this.details,
    );
    this.count();
  }

  get done() {
    return this.outcomes.filter(Boolean).length;
  }

  get failed() {
    return this.outcomes.filter((one) => one?.problem).length;
  }

  count() {
    const failed = this.failed ? `, ${this.failed} failed` : "";
    this.heading.textContent = `${this.done} of ${this.files.length} videos${failed}`;
  }

  add({ number, ...outcome }) {
    this.outcomes[number] = outcome;
    const [label, score] = this.cells[number];
    if (outcome.problem) {
      label.replaceChildren(`Failed: ${outcome.problem.detail || outcome.problem.title}`);
      score.replaceChildren("");
    } else {
      const [best] = outcome.result.after;
      const open = () => this.open(outcome.result, this.files[number].name);
      label.replaceChildren(html("button", { type: "button", class: "quiet", onclick: open }, best.label));
      score.replaceChildren(percent(best.score, best.std));
    }
    this.count();
  }

  open(result, name) {
    this.details.replaceChildren(resultArticle(result, name));
    this.details.querySelector("h2").focus();
  }

  /** Those that were not asked about have a dash in place of an answer. */
  finish() {
    for (const [number, cells] of this.cells.entries()) {
      if (!this.outcomes[number]) cells.forEach((one) => one.replaceChildren("–"));
    }
  }

  save() {
    const address = URL.createObjectURL(new Blob([csvOf(this.files, this.outcomes)], { type: "text/csv" }));
    html("a", { href: address, download: "zar-ray.csv" }).click();
    URL.revokeObjectURL(address);
  }
}
