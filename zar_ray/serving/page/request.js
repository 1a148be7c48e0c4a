// From the form's fields to a request, and the mistakes in them next to the field they are in.

import { byId } from "./dom.js";
import { checkedOptions, readOptions } from "./options.js";

// A label between commas, or one in quotation marks, which may hold commas; two of the marks stand for one.
const BETWEEN_COMMAS = /\s*(?:"((?:[^"]|"")*)"|([^,]*))\s*(?:,|$)/gy;

/**
 * Labels as typed: one a line, or on a single line with commas between, as the service reads them.
 *
 * With several lines commas belong to the labels, some of which have them. Doubles are dropped: they cannot both win.
 */
export function parseLabels(text) {
  const lines = text.split("\n").map((line) => line.trim()).filter(Boolean);
  const parts =
    lines.length === 1
      ? [...lines[0].matchAll(BETWEEN_COMMAS)].map(([, quoted, plain]) => quoted?.replaceAll('""', '"') ?? plain)
      : lines.map((line) => line.replace(/,$/, ""));
  return [...new Set(parts.map((label) => label.trim()).filter(Boolean))];
}

/** The chosen files. */
export function chosenFiles() {
  return [...byId("video").files];
}

function text(id) {
  return byId(id).value.trim() || null;
}

function number(id) {
  const value = byId(id).value;
  return value === "" ? null : Number(value);
}

/** What the form says: `{files, file, path, parameters, windowed}`; `file` is the first one, or null. */
export function readForm() {
  const windowed = byId("windowed").checked;
  const labelSet = text("label-set");
  const seeds = byId("seed").value.split(/[\s,]+/).filter(Boolean).map(Number);
  const parameters = {
    candidate_labels: labelSet ? null : parseLabels(byId("labels").value),
    label_set: labelSet,
    hypothesis_template: text("template"),
    method: text("method"),
    top_k: number("top-k"),
    options: readOptions(),
    seed: seeds.length === 1 ? seeds[0] : null,
    seeds: seeds.length > 1 ? seeds : null,
    reject_below: number("reject-below"),
    reject_score: byId("reject-below").value === "" ? null : "max_probability",
    explain: byId("explain").checked,
  };
  if (windowed) Object.assign(parameters, { window: number("window"), stride: number("stride") });
  const files = chosenFiles();
  return { files, file: files[0] ?? null, path: text("sample"), parameters, windowed };
}

// Fields that the browser checks by their attributes; the others are checked below.
const CHECKED = ["window", "stride", "template", "seed", "top-k", "reject-below"];

function mistake(input) {
  const { validity } = input;
  if (validity.valid) return null;
  if (validity.patternMismatch) {
    const what = { seed: "Whole numbers, please, as in: 0 1 2." };
    return what[input.id] ?? "Put {} where the label goes, as in: a video of a {}.";
  }
  if (validity.stepMismatch) return "A whole number, please.";
  if (validity.badInput || validity.valueMissing) return "A number, please.";
  if (input.max === "") return `At least ${input.min}, please.`;
  return `Between ${input.min} and ${input.max}, please.`;
}

/** Mistakes as `[id of the field, message]`, in the order of the form. */
export function mistakes({ files, path, parameters, windowed }) {
  const found = [];
  const empty = files.find(({ size }) => size === 0);
  if (!files.length && !path) found.push(["video", "Choose a video, or a sample where there are any."]);
  else if (empty) found.push(["video", files.length > 1 ? `${empty.name} is empty.` : "This file is empty."]);
  else if (files.length > 1 && windowed) found.push(["video", "One video, please: windows are those of one."]);
  if (parameters.candidate_labels?.length === 0) found.push(["labels", "Type some labels to choose among."]);
  for (const id of [...CHECKED, ...checkedOptions()]) {
    const message = !windowed && ["window", "stride"].includes(id) ? null : mistake(byId(id));
    if (message) found.push([id, message]);
  }
  if (windowed && parameters.seeds) found.push(["seed", "One seed, please: windows take no more."]);
  return found;
}

/** Writes the mistakes beside their fields, takes away older ones, and goes to the first. */
export function showMistakes(found) {
  const messages = new Map(found);
  for (const id of ["video", "labels", "token", ...CHECKED, ...checkedOptions()]) {
    const input = byId(id);
    const line = byId(`${id}-error`);
    line.textContent = messages.get(id) ?? "";
    line.hidden = !messages.has(id);
    if (messages.has(id)) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
  }
  if (!found.length) return;
  const first = byId(found[0][0]);
  for (let around = first.closest("details"); around; around = around.parentElement.closest("details")) around.open = true;
  first.focus();
}
