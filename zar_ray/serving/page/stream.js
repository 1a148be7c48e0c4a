// Server-sent events from the body of a fetch: EventSource can neither POST nor send a token.

import { readable } from "./api.js";

/** Yields `{event, data}` (data is parsed JSON) as they arrive; breaks of chunks may lie anywhere, within characters too. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = "message";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      // The last line may go on in the next chunk.
      rest = lines.pop();
      for (const ended of lines) {
        const line = ended.replace(/\r$/, "");
        if (line === "") {
          if (data.length) yield { event, data: JSON.parse(data.join("\n")) };
          event = "message";
          data = [];
        } else if (!line.startsWith(":")) {
          const [, name, text] = /^([^:]*)(?:: ?(.*))?$/s.exec(line);
          if (name === "event") event = text ?? "";
          if (name === "data") data.push(text ?? "");
        }
      }
    }
  } catch (error) {
    throw readable(error);
  } finally {
    // Also when the consumer stops early: the service then stops working on the rest.
    reader.cancel().catch(() => {});
  }
}
