// Elements built from text: nothing a server or a file says is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...children);
  return made;
}

const COMPACT = new Intl.NumberFormat("en", { notation: "compact" });

export const compact = (value) => COMPACT.format(value);

export function number(value, digits = 3) {
  if (value === null) return "–";
  const rounded = Math.abs(value) >= 100 ? Math.round(value) : Number(value.toPrecision(digits));
  return rounded.toLocaleString("en");
}
