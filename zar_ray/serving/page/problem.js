// An error as people need it: what happened, what they can do, and the id that the service's log has for it.

import { html } from "./dom.js";

// By the service's stable codes; what a person at this page can do about it.
const ADVICE = {
  "bad-request": "Reload the page and try again; if it stays, tell whoever runs the service.",
  unauthorized: "Enter the bearer token that you were given, then try again.",
  forbidden: "Open the service by the address that whoever runs it gave you, or have them allow this one.",
  "not-found": "The page and the service do not fit together. Reload the page.",
  "method-not-allowed": "The page and the service do not fit together. Reload the page.",
  "slow-head": "Check the connection, then try again.",
  "body-too-large": "Take a shorter piece of the video, or save it with a smaller picture.",
  "unsupported-media-type": "Choose a video file.",
  "invalid-parameters": "Change what the message names, then try again.",
  "path-not-allowed": "Choose one of the samples, or upload the file.",
  "unusable-video": "Check that the file plays; saving it anew as MP4 (H.264) often helps.",
  "video-too-large": "Take a shorter or smaller piece of the video; for a long one, try window by window.",
  "head-too-large": "Delete this site's cookies, then try again.",
  "internal-error": "Try again; if it stays, tell whoever runs the service, with the request id.",
  "not-ready": "The service is loading its model. Try again in a moment.",
  overloaded: "Others are using the service right now. Try again in a moment.",
  "replica-lost": "Nothing is wrong with your video. Try again.",
  timeout: "Try again; with a long video or many labels, take fewer of both.",
  page: "Reload the page and try again; if it stays, tell whoever runs the service.",
  "no-connection":
    "Check the connection and that the service is running. A file that is far too large is also refused this way.",
  "stream-cut": "The windows above are complete. Try again for the rest.",
};

function advice(problem) {
  const words = ADVICE[problem.code] ?? "Try again; if it stays, tell whoever runs the service.";
  return problem.retryAfter ? `${words} The service suggests to wait ${problem.retryAfter} s.` : words;
}

/** The error's card; `again` is called by its button. */
export function problemCard(problem, again) {
  const status = problem.status ? `${problem.status} ${problem.code}` : problem.code;
  return html(
    "section",
    { class: "card problem", "aria-label": "Error" },
    html("h2", { tabindex: "-1" }, problem.title),
    // The service's own words may repeat the title.
    problem.detail && problem.detail !== problem.title && html("p", { class: "detail" }, problem.detail),
    html("p", {}, html("strong", {}, "What to do: "), advice(problem)),
    html("p", {}, html("button", { type: "button", class: "quiet", onclick: again }, "Try again")),
    html(
      "p",
      { class: "soft small" },
      html("code", {}, status),
      problem.request_id && [" · request ", html("code", {}, problem.request_id)],
    ),
  );
}
