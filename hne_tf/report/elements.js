"use strict";

// Elements, and numbers as text. All text goes in as text nodes, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null));
  return node;
}

function html(tag, attributes = {}, ...children) {
  return build(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return build(document.createElementNS(SVG, tag), attributes, children);
}

function svgText(x, y, text, attributes = {}) {
  return svg("text", { x, y, ...attributes }, text);
}

const NONE = "\u2013";
const UNITS = [["G", 1e9], ["M", 1e6], ["k", 1e3], ["", 1]];

// Three digits, without zeros at their end.
function rounded(value) {
  return String(Number(value.toPrecision(3)));
}

// 12345678 as "12.3 M".
function short(value) {
  const [unit, scale] = UNITS.find(([, each]) => value >= each * 0.9995) || ["", 1];
  return rounded(value / scale) + (unit ? `\u2009${unit}` : "");
}

function percent(value, digits = 1) {
  return value === null ? NONE : `${(100 * value).toFixed(digits)}\u2009%`;
}

function signedPercent(value) {
  return value === null ? NONE : (value < 0 ? "\u2212" : "+") + percent(Math.abs(value), 2);
}

function fixed(value) {
  return value === null ? NONE : value.toFixed(4);
}

function whole(value) {
  return value.toLocaleString("en-US");
}

function milliseconds(value) {
  return value === null ? NONE : `${rounded(value)}\u2009ms`;
}

// Columns are [heading, what a row shows there]; the first cell of a row is its heading.
function table(caption, columns, rows, rowAttributes = () => ({})) {
  const head = columns.map(([heading]) => html("th", { scope: "col" }, heading));
  const body = rows.map((row) =>
    html("tr", rowAttributes(row), columns.map(([, show], column) =>
      column ? html("td", {}, show(row)) : html("th", { scope: "row" }, show(row)))));
  return html("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    html("table", {}, html("caption", {}, caption),
      html("thead", {}, html("tr", {}, head)), html("tbody", {}, body)));
}
