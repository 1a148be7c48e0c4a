// The page: what its fields do, and one run at a time from the form to the answer.

import * as api from "./api.js";
import { byId, bytes, clock, html, percent } from "./dom.js";
import { classifyEach, VideoTable } from "./many.js";
import { offerMethods } from "./options.js";
import { problemCard } from "./problem.js";
import { chosenFiles, mistakes, parseLabels, readForm, showMistakes } from "./request.js";
import { resultArticle } from "./results.js";
import { events } from "./stream.js";
import { WindowTimeline } from "./windows.js";

const output = byId("output");

/** Said by screen readers. */
function say(text) {
  byId("status").textContent = text;
}

// ---- What the service offers -------------------------------------------------------------------------------------

const labelSets = new Map();

function offerModel([model]) {
  byId("model").textContent = `${model.name} · zar-ray ${model.version}`;
  byId("random").hidden = !model.random_weights;
}

function offerLabelSets(sets) {
  for (const { name, labels } of sets) {
    if (!labelSets.has(name)) {
      byId("label-set").append(html("option", { value: name }, `${name} (${labels.length} labels)`));
    }
    labelSets.set(name, labels);
  }
  byId("label-set-field").hidden = labelSets.size === 0;
}

function offerSamples(samples) {
  const known = [...byId("sample").options].map((option) => option.value);
  for (const { name, path } of samples) {
    if (!known.includes(path)) byId("sample").append(html("option", { value: path }, name));
  }
  byId("sample-field").hidden = samples.length === 0;
}

/** Fills the lists. They are conveniences: without them the form still works, and an error then shows in its answer. */
async function loadOffers() {
  const loads = [
    [api.models, offerModel],
    [api.methods, offerMethods],
    [api.labelSets, offerLabelSets],
    [api.samples, offerSamples],
  ];
  const outcomes = await Promise.allSettled(loads.map(async ([ask, offer]) => offer(await ask())));
  const reasons = outcomes.filter(({ status }) => status === "rejected").map(({ reason }) => reason);
  return { unauthorized: reasons.some(({ status }) => status === 401) };
}

// ---- Access ------------------------------------------------------------------------------------------------------

function askForToken(message) {
  byId("access").hidden = false;
  showMistakes([["token", message]]);
}

async function useToken() {
  api.setToken(byId("token").value);
  byId("problem").replaceChildren();
  const { unauthorized } = await loadOffers();
  if (unauthorized) {
    askForToken("The service does not take this token.");
    return;
  }
  showMistakes([]);
  say("The service takes this token.");
  byId("video").focus();
}

byId("use-token").addEventListener("click", useToken);
byId("token").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  // The form would be sent otherwise, which may not be filled in yet.
  event.preventDefault();
  useToken();
});

// ---- Video -------------------------------------------------------------------------------------------------------

let previewed = null;

function showVideo() {
  const files = chosenFiles();
  const [file] = files.length === 1 ? files : [];
  const preview = byId("preview");
  if (previewed) URL.revokeObjectURL(previewed);
  previewed = file ? URL.createObjectURL(file) : null;
  // Shown once it turns out that the browser can play it; the service reads more kinds of files.
  preview.hidden = true;
  if (previewed) preview.src = previewed;
  else preview.removeAttribute("src");
  const promise =
    files.length > 1
      ? "They are sent to this service and deleted after the answers."
      : "It is sent to this service and deleted after the answer.";
  const size = bytes(files.reduce((sum, one) => sum + one.size, 0));
  const count = files.length > 1 ? `${files.length} videos, ` : "";
  byId("video-hint").textContent = files.length ? `${count}${size}. ${promise}` : promise;
}

byId("preview").addEventListener("loadeddata", (event) => {
  event.target.hidden = event.target.videoWidth === 0;
});
byId("video").addEventListener("change", () => {
  byId("sample").value = "";
  showVideo();
});
byId("sample").addEventListener("change", () => {
  byId("video").value = "";
  showVideo();
});

// Anywhere on the page: a drop that misses would make the browser leave the page for the file.
addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("drop").classList.add("over");
});
addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) byId("drop").classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  if (!event.dataTransfer.files.length) return;
  byId("video").files = event.dataTransfer.files;
  byId("video").dispatchEvent(new Event("change"));
});

// ---- Labels and options ------------------------------------------------------------------------------------------

function showLabels() {
  const chosen = labelSets.get(byId("label-set").value);
  byId("own-labels").hidden = Boolean(chosen);
  byId("label-set-hint").hidden = !chosen;
  byId("edit-labels").hidden = !chosen;
  if (chosen) {
    byId("label-set-hint").textContent = chosen.length > 4 ? `${chosen.slice(0, 4).join(", ")}, …` : chosen.join(", ");
  }
  const count = parseLabels(byId("labels").value).length;
  byId("labels-hint").textContent = count
    ? `${count} ${count === 1 ? "label" : "labels"}.`
    : "One a line, or on a single line with commas between.";
}

byId("labels").addEventListener("input", showLabels);
byId("label-set").addEventListener("change", showLabels);
byId("edit-labels").addEventListener("click", () => {
  byId("labels").value = labelSets.get(byId("label-set").value).join("\n");
  byId("label-set").value = "";
  showLabels();
  byId("labels").focus();
});
byId("windowed").addEventListener("change", () => {
  byId("window-fields").hidden = !byId("windowed").checked;
});

// ---- A run -------------------------------------------------------------------------------------------------------

/** What of the run in progress is needed to end it; null while there is none. */
let running = null;

function begin() {
  const started = performance.now();
  const elapsed = byId("elapsed");
  const show = () => {
    elapsed.textContent = `${((performance.now() - started) / 1000).toFixed(1)} s`;
  };
  show();
  running = { controller: new AbortController(), timer: setInterval(show, 100) };
  output.replaceChildren();
  byId("nothing-yet").hidden = true;
  byId("progress").hidden = false;
  byId("progress-text").textContent = "Sending the video and waiting for the answer…";
  byId("classify").hidden = true;
  byId("abort").hidden = false;
  byId("abort").focus();
  say("Classifying.");
  return running.controller.signal;
}

function end() {
  clearInterval(running.timer);
  running = null;
  byId("progress").hidden = true;
  byId("abort").hidden = true;
  byId("classify").hidden = false;
}

/** Takes the reader to an answer, which on a phone is far below the form. */
function goTo(heading) {
  heading.focus({ preventScroll: true });
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  heading.scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
}

async function classifyWhole(request, name, signal) {
  const result = await api.classify(request, signal);
  end();
  output.replaceChildren(resultArticle(result, name));
  const [best] = result.after;
  say(`The answer is ${best.label}, ${percent(best.score)}.`);
  goTo(output.querySelector("h2"));
}

async function classifySeveral(request, name, signal) {
  const several = new VideoTable(request.files);
  output.replaceChildren(several.element);
  try {
    await classifyEach(request, signal, (outcome) => {
      several.add(outcome);
      byId("progress-text").textContent = `${several.done} of ${request.files.length} videos…`;
    });
    end();
    say(`All ${request.files.length} videos are done, ${several.failed} failed.`);
    goTo(several.heading);
  } finally {
    several.finish();
    if (!several.done) output.replaceChildren();
  }
}

async function classifyByWindow(request, name, signal) {
  const timeline = new WindowTimeline(name);
  output.replaceChildren(timeline.element);
  let how = ", then the service stopped";
  try {
    const response = await api.classifyWindows(request, signal);
    byId("progress-text").textContent = "Window by window…";
    for await (const { event, data } of events(response)) {
      if (event === "error") throw new api.Problem(data);
      if (event === "end") {
        how = "";
        break;
      }
      if (event === "window") {
        timeline.add(data);
        say(`${clock(data.start)} to ${clock(data.end)}: ${data.result.after[0].label}.`);
      }
    }
    if (how) {
      throw new api.Problem({
        title: "The stream ended early",
        status: 0,
        code: "stream-cut",
        detail: "The connection closed before the last window.",
        request_id: "",
      });
    }
    const reached = document.activeElement === byId("abort");
    end();
    say(`All ${timeline.windows.length} windows are there.`);
    // Whoever already looks into a window is not torn away from it.
    if (reached) goTo(timeline.heading);
  } catch (error) {
    if (error.name === "AbortError") how = ", then aborted";
    throw error;
  } finally {
    timeline.finish(how);
    if (!timeline.windows.length) output.replaceChildren();
  }
}

async function run() {
  const request = readForm();
  const found = mistakes(request);
  byId("problem").replaceChildren();
  showMistakes(found);
  if (found.length || running) return;
  const sample = byId("sample").selectedOptions[0];
  const name = request.file ? request.file.name : sample.textContent;
  const signal = begin();
  try {
    const classify = request.files.length > 1 ? classifySeveral : request.windowed ? classifyByWindow : classifyWhole;
    await classify(request, name, signal);
  } catch (error) {
    if (running) end();
    show(error);
  }
}

function show(error) {
  if (error.name === "AbortError") {
    say("Aborted.");
    byId("nothing-yet").hidden = output.childElementCount > 0;
    byId("classify").focus();
    return;
  }
  const problem = error instanceof api.Problem ? error : failure(error);
  byId("problem").replaceChildren(problemCard(problem, run));
  if (problem.status === 401) {
    const known = byId("token").value.trim() !== "";
    askForToken(known ? "The service does not take this token." : "The service asks for a token.");
  } else {
    goTo(byId("problem").querySelector("h2"));
  }
}

/** A mistake of this page, as when the service is newer than the page in the browser's cache. */
function failure(error) {
  console.error(error);
  return new api.Problem({
    title: "This page failed to show the answer",
    status: 0,
    code: "page",
    detail: String(error),
    request_id: "",
  });
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
byId("abort").addEventListener("click", () => running?.controller.abort());

// ---- Start -------------------------------------------------------------------------------------------------------

// A reload keeps fields as they were; what depends on them follows.
showVideo();
showLabels();
byId("windowed").dispatchEvent(new Event("change"));
const { unauthorized } = await loadOffers();
if (unauthorized) byId("access").hidden = false;
