// Elements and numbers, the same way everywhere. Text only ever becomes text nodes: labels and file names are foreign.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) {
      node.addEventListener(name.slice(2), value);
    } else if (name === "style") {
      // Set one by one: the page's Content-Security-Policy forbids style attributes, not the style object.
      for (const [property, one] of Object.entries(value)) node.style.setProperty(property, one);
    } else if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? "" : value);
    }
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** An HTML element; `on…` attributes are listeners, `style` is an object, children that are null are left out. */
export function html(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An SVG element, likewise. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

export function byId(id) {
  return document.getElementById(id);
}

// Between a number and its unit, which must not end up on two lines.
const GLUE = "\u00a0";

/** A probability as people read it, with its deviation where there is one. */
export function percent(score, std = null) {
  const spread = std === null ? "" : `${GLUE}±${GLUE}${(100 * std).toFixed(1)}`;
  return `${(100 * score).toFixed(1)}${spread}${GLUE}%`;
}

/** A difference of two probabilities, in points, with its sign. */
export function points(difference) {
  const text = Math.abs(100 * difference).toFixed(1);
  if (text === "0.0") return "±0.0";
  return `${difference < 0 ? "−" : "+"}${text}`;
}

/** Seconds of work: milliseconds while they are few. */
export function duration(seconds) {
  if (seconds < 1) return `${Math.round(1000 * seconds)}${GLUE}ms`;
  if (seconds < 100) return `${seconds.toFixed(1)}${GLUE}s`;
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)}${GLUE}min ${whole % 60}${GLUE}s`;
}

/** A place in a video: 1:02.5. */
export function clock(seconds) {
  const tenths = Math.round(10 * seconds);
  const minutes = Math.floor(tenths / 600);
  const rest = ((tenths % 600) / 10).toFixed(tenths % 10 ? 1 : 0);
  return `${minutes}:${rest.padStart(tenths % 10 ? 4 : 2, "0")}`;
}

export function bytes(count) {
  if (count < 1e3) return `${count}${GLUE}bytes`;
  if (count < 1e6) return `${(count / 1e3).toFixed(0)}${GLUE}kB`;
  return `${(count / 1e6).toFixed(1)}${GLUE}MB`;
}

/** A list of terms and what they are. */
export function facts(pairs) {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined);
  return html("dl", { class: "facts" }, known.map(([term, value]) => [html("dt", {}, term), html("dd", {}, value)]));
}

/** A table that scrolls sideways by itself, also by keyboard, rather than widening the page. */
export function table(caption, columns, rows) {
  const head = columns.map(({ name, number }) => html("th", { scope: "col", class: number && "number" }, name));
  const body = rows.map((row) =>
    html("tr", {}, row.map((cell, at) => html("td", { class: columns[at].number && "number" }, cell))),
  );
  return html(
    "div",
    { class: "wide", tabindex: "0", role: "region", "aria-label": caption },
    html(
      "table",
      {},
      html("caption", { class: "unseen" }, caption),
      html("thead", {}, html("tr", {}, head)),
      html("tbody", {}, body),
    ),
  );
}

let count = 0;

/** An id for an element that another one names. */
export function freshId(stem) {
  count += 1;
  return `${stem}-${count}`;
}

/** Draws a chart for the room it has, and again whenever that changes: scaled text would be too small on a phone. */
export function chart(draw) {
  const holder = html("div", { class: "chart" });
  let drawn = 0;
  const watch = new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width > 0 && width !== drawn) {
      drawn = width;
      holder.replaceChildren(draw(width));
    }
  });
  watch.observe(holder);
  return holder;
}
