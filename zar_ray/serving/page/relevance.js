// What in the frames speaks for the answer: relevance by patch, drawn over the frame, before and after tuning.

import { clock, freshId, html } from "./dom.js";

// Matplotlib's viridis, as in the project's reports: of even lightness steps, and told apart by colour-blind people.
const VIRIDIS = [
  [0x44, 0x01, 0x54], [0x48, 0x1a, 0x6c], [0x47, 0x2f, 0x7d], [0x41, 0x44, 0x87],
  [0x39, 0x56, 0x8c], [0x31, 0x68, 0x8e], [0x2a, 0x78, 0x8e], [0x23, 0x88, 0x8e],
  [0x1f, 0x98, 0x8b], [0x22, 0xa8, 0x84], [0x35, 0xb7, 0x79], [0x54, 0xc5, 0x68],
  [0x7a, 0xd1, 0x51], [0xa5, 0xdb, 0x36], [0xd2, 0xe2, 0x1b], [0xfd, 0xe7, 0x25],
];
const OPACITY = 60; // percent, at first

/** A value from 0 to 1 as red, green and blue. */
function colour(value) {
  const place = Math.min(Math.max(value, 0), 1) * (VIRIDIS.length - 1);
  const low = VIRIDIS[Math.floor(place)];
  const high = VIRIDIS[Math.ceil(place)];
  return low.map((one, channel) => one + (high[channel] - one) * (place % 1));
}

/** A canvas of one pixel a patch; the style sheet makes it as large as the frame and leaves the patches' edges sharp. */
function overlay(rows) {
  const canvas = html("canvas", { width: rows[0].length, height: rows.length, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  rows.flat().forEach((value, at) => image.data.set([...colour(value), 255], 4 * at));
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Where the strongest patch is, for those who do not see the map. */
function strongest(rows) {
  const values = rows.flat();
  const top = Math.max(...values);
  const at = values.indexOf(top);
  const third = (place, size, names) => names[Math.min(2, Math.floor((3 * (place + 0.5)) / size))];
  const down = third(Math.floor(at / rows[0].length), rows.length, ["top", "middle", "bottom"]);
  const right = third(at % rows[0].length, rows[0].length, ["left", "centre", "right"]);
  return `strongest (${top.toFixed(2)}) at the ${down} ${right}`;
}

function picture(frame, rows, when) {
  return html(
    "figure",
    {},
    html(
      "div",
      { class: "layers" },
      html("img", { src: frame.image, alt: `Frame ${frame.frame}, relevance ${when}: ${strongest(rows)}.` }),
      overlay(rows),
    ),
    html("figcaption", { class: "small soft" }, when),
  );
}

function frameItem(frame, tuned) {
  const time = frame.seconds === null ? "" : ` · ${clock(frame.seconds)}`;
  return html(
    "li",
    {},
    html("p", { class: "small" }, html("strong", {}, `Frame ${frame.frame}`), html("span", { class: "soft number" }, time)),
    html(
      "div",
      { class: "beside" },
      tuned && picture(frame, frame.before, "before"),
      picture(frame, frame.after, tuned ? "after" : "untuned"),
    ),
  );
}

export function relevanceSection(explanation, tuned) {
  const list = html("ul", { class: "frames" }, explanation.frames.map((frame) => frameItem(frame, tuned)));
  const slider = html("input", { type: "range", id: freshId("opacity"), min: 0, max: 100, step: 5, value: OPACITY });
  // No output element: that would be a live region, and the slider already says its value.
  const shown = html("span", { class: "value number small", "aria-hidden": "true" });
  const toggle = html("input", { type: "checkbox", checked: true });
  const update = () => {
    shown.textContent = `${slider.value} %`;
    slider.setAttribute("aria-valuetext", shown.textContent);
    slider.disabled = !toggle.checked;
    list.style.setProperty("--overlay", toggle.checked ? String(slider.value / 100) : "0");
  };
  slider.addEventListener("input", update);
  toggle.addEventListener("change", update);
  update();
  const gradient = VIRIDIS.map((one) => `rgb(${one.join(" ")})`).join(", ");
  return html(
    "section",
    { class: "card relevance" },
    html("h3", {}, "What speaks for the answer"),
    html(
      "p",
      {},
      "Parts of frames that speak for ",
      html("strong", {}, html("bdi", {}, explanation.label)),
      tuned ? ", under the prompt before and after tuning. All pictures have one scale." : ". All pictures have one scale.",
    ),
    html(
      "div",
      { class: "controls" },
      html("label", { class: "check" }, toggle, " Overlay"),
      html("span", { class: "slider" }, html("label", { for: slider.id }, "Opacity"), slider, shown),
      html(
        "span",
        { class: "colours small soft" },
        "none",
        html("span", { class: "ramp", "aria-hidden": "true", style: { "background-image": `linear-gradient(to right, ${gradient})` } }),
        "strong",
      ),
    ),
    list,
  );
}
