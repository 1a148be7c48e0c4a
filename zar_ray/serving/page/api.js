// The service's REST interface. Everything that goes wrong is thrown as a Problem (RFC 9457), so that it is shown alike.

// Beside this file's folder, wherever a proxy has put the whole service.
const SERVICE = new URL("../", import.meta.url);

// In memory only: whatever is stored could be read by whoever uses this browser next.
let token = "";

export function setToken(value) {
  token = value.trim();
}

export class Problem extends Error {
  /** `body` is a ProblemDocument; `retryAfter` are seconds, where the service named them. */
  constructor(body, retryAfter = null) {
    super(body.detail || body.title);
    Object.assign(this, body);
    this.retryAfter = retryAfter;
  }
}

async function problemOf(response) {
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  const text = await response.text().catch(() => "");
  try {
    const body = JSON.parse(text);
    if (typeof body.title === "string") return new Problem(body, retryAfter);
  } catch {
    // Not the service's words: a proxy's page, most likely.
  }
  const title = `The answer was HTTP ${response.status} ${response.statusText}`.trim();
  return new Problem({ title, status: response.status, code: "http", detail: "", request_id: "" }, retryAfter);
}

async function send(path, options = {}) {
  const headers = new Headers(options.headers);
  if (token) headers.set("Authorization", `Bearer ${token}`);
  let response;
  try {
    response = await fetch(new URL(path, SERVICE), { ...options, headers });
  } catch (error) {
    throw readable(error);
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

/** What fetch threw: an abort stays one, all else is a broken connection. */
export function readable(error) {
  if (error instanceof Problem || error.name === "AbortError") return error;
  return new Problem({
    title: "The service could not be reached",
    status: 0,
    code: "no-connection",
    detail: "The connection failed or was cut before an answer came.",
    request_id: "",
  });
}

async function json(response) {
  try {
    return await response.json();
  } catch (error) {
    throw readable(error);
  }
}

export async function models() {
  return (await json(await send("v1/models"))).models;
}

export async function methods() {
  return (await json(await send("v1/methods"))).methods;
}

export async function labelSets() {
  return (await json(await send("v1/labels"))).label_sets;
}

export async function samples() {
  return (await json(await send("v1/samples"))).samples;
}

/**
 * A request's body: JSON for a video that lies on the server, else a form with the file.
 *
 * The file goes last, so that a service that reads the body as it arrives knows the parameters first.
 */
function body({ file, path, parameters }) {
  const given = Object.entries(parameters).filter(([, value]) => value !== null);
  if (path) {
    return {
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...Object.fromEntries(given), path }),
    };
  }
  const form = new FormData();
  for (const [name, value] of given) {
    // A label that stands alone would be split at its commas.
    const alone = name === "candidate_labels" && value.length === 1 && value[0].includes(",");
    for (const one of alone ? [`"${value[0].replaceAll('"', '""')}"`] : Array.isArray(value) ? value : [value]) {
      form.append(name, typeof one === "object" ? JSON.stringify(one) : String(one));
    }
  }
  form.append("video", file, file.name);
  return { body: form };
}

/** One answer about the whole video. */
export async function classify(request, signal) {
  return json(await send("v1/classify", { method: "POST", signal, ...body(request) }));
}

/** The response whose body is a stream of server-sent events, one a window. */
export async function classifyWindows(request, signal) {
  return send("v1/classify:stream", { method: "POST", signal, ...body(request) });
}
