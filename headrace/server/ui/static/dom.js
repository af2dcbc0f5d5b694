// Elements without ceremony.

/** An element with properties; a property that is null or undefined is left out. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value !== null && value !== undefined) element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** One of the icons that the page itself brings. */
export function icon(name) {
  return svg("svg", { "aria-hidden": "true" }, svg("use", { href: `#icon-${name}` }));
}

/** A button that shows an icon and tells its name to those who can't see it. */
export function iconButton(name, label, onclick) {
  return h("button", { type: "button", className: "icon", title: label, ariaLabel: label, onclick }, icon(name));
}

export const $ = (id) => document.getElementById(id);

const grouped = new Intl.NumberFormat("en");
export const count = (number) => grouped.format(number);

/** Seconds with three digits that matter, in the unit that suits them. */
export function duration(seconds) {
  if (seconds < 1) return `${Number((seconds * 1000).toPrecision(3))} ms`;
  if (seconds < 120) return `${Number(seconds.toPrecision(3))} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 120 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export const rate = (number) => (number >= 100 ? count(Math.round(number)) : number.toFixed(1));
