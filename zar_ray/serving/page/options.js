// The fields of a method's own options, made from the JSON Schema that the service has of them.

import { byId, html } from "./dom.js";

let methods = [];

/** What a property may be: of `anyOf` the branch that is not null. */
function kindOf(property) {
  return (property.anyOf ?? [property]).find(({ type }) => type !== "null") ?? {};
}

function shown(value) {
  if (value === null || value === undefined) return "none";
  return Array.isArray(value) ? value.map(shown).join(", ") || "none" : String(value);
}

function choice(values, attributes, standard) {
  const options = values.map((value) => html("option", { value: JSON.stringify(value) }, shown(value)));
  return html("select", attributes, html("option", { value: "" }, `${shown(standard)} (default)`), options);
}

function inputOf(name, property) {
  const kind = kindOf(property);
  const id = `option-${name}`;
  const attributes = { id, name, "aria-describedby": `${id}-hint ${id}-error` };
  if (kind.enum) return choice(kind.enum, attributes, property.default);
  if (kind.type === "boolean") return choice([true, false], attributes, property.default);
  Object.assign(attributes, { placeholder: shown(property.default), autocomplete: "off" });
  if (kind.type === "integer" || kind.type === "number") {
    return html("input", {
      ...attributes,
      type: "number",
      min: kind.minimum ?? kind.exclusiveMinimum,
      max: kind.maximum ?? kind.exclusiveMaximum,
      step: kind.type === "integer" ? "1" : "any",
      inputmode: kind.type === "integer" ? "numeric" : "decimal",
    });
  }
  return html("input", { ...attributes, type: "text", spellcheck: "false", autocapitalize: "off" });
}

/** The chosen method; where the service is to choose, its first. */
function chosen() {
  return methods.find(({ name }) => name === byId("method").value) ?? methods[0];
}

function properties() {
  return Object.entries(chosen()?.options?.properties ?? {});
}

function show() {
  const fields = properties().map(([name, property]) => {
    const id = `option-${name}`;
    const several = kindOf(property).type === "array" ? " Several, with commas between." : "";
    return html(
      "div",
      {},
      html("label", { for: id }, name.replaceAll("_", " ")),
      inputOf(name, property),
      html("p", { id: `${id}-hint`, class: "hint" }, `${property.description ?? ""}${several}`),
      html("p", { id: `${id}-error`, class: "field-error", hidden: true }),
    );
  });
  byId("own-options").replaceChildren(...fields);
  byId("own-options-field").hidden = fields.length === 0;
  byId("own-options-of").textContent = chosen()?.name ?? "";
}

/** Offers the service's methods, each with its options once it is chosen. */
export function offerMethods(offered) {
  methods = offered;
  const known = [...byId("method").options].map((option) => option.value);
  for (const { name, description } of offered) {
    if (!known.includes(name)) byId("method").append(html("option", { value: name }, `${name}: ${description}`));
  }
  byId("method").onchange = show;
  show();
}

/** One word as JSON has it, where it is JSON. */
function parsed(word) {
  try {
    return JSON.parse(word);
  } catch {
    return word;
  }
}

function valueOf(text, property) {
  const kind = kindOf(property);
  if (kind.type === "string" && !kind.enum) return text;
  if (kind.type === "array") return text.split(",").map((word) => parsed(word.trim()));
  return parsed(text);
}

/** The options that differ from the service's, or null. */
export function readOptions() {
  const given = properties()
    .map(([name, property]) => [name, byId(`option-${name}`).value.trim(), property])
    .filter(([, text]) => text !== "")
    .map(([name, text, property]) => [name, valueOf(text, property)]);
  return given.length ? Object.fromEntries(given) : null;
}

/** The ids of the fields that the browser checks. */
export function checkedOptions() {
  return [...byId("own-options").querySelectorAll("input")].map(({ id }) => id);
}
