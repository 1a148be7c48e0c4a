// A long video's windows, a row each as soon as it is known; a row opens the whole answer about its window.

import { clock, html, percent } from "./dom.js";
import { resultArticle } from "./results.js";

export class WindowTimeline {
  constructor(name) {
    this.windows = [];
    this.list = html("ol", { class: "windows" });
    this.detail = html("div", {});
    this.summary = html("p", { class: "soft" }, "Waiting for the first window…");
    this.heading = html("h2", { tabindex: "-1" }, html("span", { class: "soft" }, name), " Window by window");
    this.banner = html("p", { class: "notice warn", hidden: true }, "Random weights: these answers mean nothing.");
    this.element = html(
      "div",
      { class: "result" },
      html("section", { class: "card" }, this.heading, this.banner, this.summary, this.list),
      this.detail,
    );
  }

  add(one) {
    const { result } = one;
    const [best] = result.after;
    const track = html("span", { class: "place" });
    const button = html(
      "button",
      { type: "button", "aria-pressed": "false", onclick: () => this.open(one, button) },
      html("span", { class: "when number" }, `${clock(one.start)}–${clock(one.end)}`),
      html("bdi", { class: "what" }, best.label),
      html("span", { class: "score number" }, scores(result)),
      html("span", { class: "track", "aria-hidden": "true" }, track),
    );
    this.banner.hidden = !result.model.random_weights;
    this.windows.push({ ...one, track });
    this.list.append(html("li", {}, button));
    this.arrange();
    this.summary.textContent = `${counted(this.windows.length)} so far.`;
  }

  /** Places every window's mark anew, since the video may turn out longer with each. */
  arrange() {
    const total = Math.max(...this.windows.map(({ end, result }) => Math.max(end, result.video.duration)));
    for (const { start, end, track } of this.windows) {
      track.style.setProperty("margin-left", `${(100 * start) / total}%`);
      track.style.setProperty("width", `${(100 * (end - start)) / total}%`);
    }
  }

  open(one, button) {
    for (const other of this.list.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
    this.detail.replaceChildren(resultArticle(one.result, `Window ${clock(one.start)}–${clock(one.end)}`, "window"));
    this.detail.querySelector("h2").focus();
  }

  /** The last words: all windows are there, or how it ended instead. */
  finish(how) {
    const hint = this.windows.length ? " Choose one to see all about it." : "";
    this.summary.textContent = `${counted(this.windows.length)}${how}.${hint}`;
  }
}

function counted(count) {
  return `${count} ${count === 1 ? "window" : "windows"}`;
}

function scores(result) {
  const [best] = result.after;
  const before = result.before.find(({ label }) => label === best.label);
  if (!result.steps || !before) return percent(best.score);
  return [html("span", { class: "soft" }, `${percent(before.score)} → `), percent(best.score)];
}
