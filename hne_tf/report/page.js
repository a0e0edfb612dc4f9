"use strict";
// Okabe and Ito's palette, which colour-blind readers can tell apart, and marks besides.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b08a00", "#56b4e9"];
const { runs } = JSON.parse(document.getElementById("data").textContent);
const page = document.getElementById("page");

const percent = (share, digits = 1) => (100 * share).toFixed(digits) + "%";
const millions = (count) => (count / 1e6).toFixed(count < 1e6 ? 2 : 1) + " M";
const number = (value) => value.toLocaleString("en");
const COSTS = {
  multiply_adds: { title: "multiply-adds", axis: "multiply-adds per image (millions)", tick: (v) => (v / 1e6).toPrecision(3), say: (v) => millions(v) + " multiply-adds" },
  latency_ms: { title: "measured latency", axis: "median latency of one image (ms)", tick: (v) => v.toPrecision(3), say: (v) => v.toFixed(2) + " ms" },
};

function element(parent, name, attributes = {}, text = "") {
  const space = parent.namespaceURI.endsWith("svg") || name === "svg" ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
  const made = document.createElementNS(space, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  parent.append(made);
  return made;
}

function card(parent, title, caption = "", wide = false) {
  const figure = element(parent, "figure", { class: wide ? "card wide" : "card" });
  element(figure, "h3", {}, title);
  const body = element(figure, "div", { class: "scroll" });
  if (caption) element(figure, "figcaption", {}, caption);
  return body;
}

// Axes of a chart; returns the drawing and what maps values to places.
function axes(parent, label, xs, ys, xTitle, yTitle, xTick, yTick) {
  const [width, height, left, bottom] = [460, 300, 68, 44];
  const svg = element(parent, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const span = (values, pad) => {
    const low = Math.min(...values), high = Math.max(...values), room = pad * (high - low || high || 1);
    return [low - room, high + room];
  };
  const [x0, x1] = span(xs, 0.06), [y0, y1] = span(ys, 0.12);
  const x = (v) => left + ((v - x0) / (x1 - x0)) * (width - left - 16);
  const y = (v) => height - bottom - ((v - y0) / (y1 - y0)) * (height - bottom - 12);
  for (let i = 0; i <= 4; i++) {
    const xv = x0 + ((x1 - x0) * (i + 0.5)) / 5, yv = y0 + ((y1 - y0) * (i + 0.5)) / 5;
    element(svg, "line", { class: "grid", x1: left, x2: width - 16, y1: y(yv), y2: y(yv) });
    element(svg, "text", { x: left - 8, y: y(yv) + 4, "text-anchor": "end" }, yTick(yv));
    element(svg, "text", { x: x(xv), y: height - bottom + 18, "text-anchor": "middle" }, xTick(xv));
  }
  element(svg, "text", { x: (left + width) / 2, y: height - 6, "text-anchor": "middle" }, xTitle);
  element(svg, "text", { transform: `translate(12 ${(height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, yTitle);
  return { svg, x, y };
}

function mark(svg, index, x, y, colour, attributes = {}) {
  const shapes = ["M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0", "M-4.5,-4.5h9v9h-9z", "M0,-6l5.5,10h-11z", "M0,-6l6,6l-6,6l-6,-6z"];
  return element(svg, "path", { d: shapes[index % shapes.length], transform: `translate(${x} ${y})`, fill: colour, ...attributes });
}

const rowsWith = (run, cost) => run.sizes.filter((row) => row[cost] !== null);
const points = [];

function curves(parent, cost) {
  const shown = runs.filter((run) => rowsWith(run, cost).length);
  const { title, axis, tick } = COSTS[cost];
  const hardware = [...new Set(shown.map((run) => run.latency && `${run.latency.hardware}, threads: ${run.latency.threads || "all"}`))];
  const body = card(parent, `Accuracy against ${title}`, cost === "latency_ms" && shown.length ? `Measured on ${hardware.join("; ")}.` : "");
  if (!shown.length) {
    element(body, "p", { class: "quiet" }, "Not measured: export the run and name the version with --models.");
    return;
  }
  const all = shown.flatMap((run) => rowsWith(run, cost));
  const early = cost === "multiply_adds" ? shown.flatMap((run) => run.early_stopping) : [];
  const { svg, x, y } = axes(body, `Accuracy against ${title}`, [...all, ...early].map((row) => row[cost]), [...all, ...early].map((row) => row.accuracy), axis, "accuracy", tick, (v) => percent(v));
  for (const run of shown) {
    const index = runs.indexOf(run), colour = COLOURS[index % COLOURS.length], rows = rowsWith(run, cost);
    const line = (some) => some.map((row) => `${x(row[cost])},${y(row.accuracy)}`).join(" ");
    if (cost === "multiply_adds") element(svg, "polyline", { points: line(run.early_stopping), fill: "none", stroke: colour, "stroke-dasharray": "2 4" });
    element(svg, "polyline", { points: line(rows), fill: "none", stroke: colour, "stroke-width": 2 });
    for (const row of rows) {
      const point = mark(svg, index, x(row[cost]), y(row.accuracy), colour, { "data-size": row.size });
      element(point, "title", {}, `${run.name}, ${row.size}: ${percent(row.accuracy, 2)}`);
      points.push({ run, size: row.size, place: [x(row[cost]), y(row.accuracy)], point });
    }
  }
}

function legend(parent) {
  const list = element(parent, "ul", { class: "legend" });
  runs.forEach((run, index) => {
    const item = element(list, "li");
    element(item, "i", { style: `background:${COLOURS[index % COLOURS.length]}` });
    item.append(run.name);
  });
}

function drawTree(parent, run) {
  const { blocks, leaves, nodes } = run.tree;
  const gap = Math.max(18, Math.min(40, 360 / leaves)), width = 470, right = 150, height = gap * leaves + 40;
  const svg = element(parent, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Tree of ${leaves} networks in ${blocks} blocks` });
  const x = (block) => 24 + (block * (width - right - 48)) / Math.max(1, blocks - 1), y = (row) => 34 + gap * (row + 0.2);
  for (let block = 0; block < blocks; block++) element(svg, "text", { x: x(block), y: 14, "text-anchor": "middle" }, `block ${block}`);
  const parts = [];
  for (const node of nodes) {
    if (node.parent === null) continue;
    const from = nodes[node.parent], middle = (x(from.block) + x(node.block)) / 2;
    parts.push([node, element(svg, "path", { class: "edge", d: `M${x(from.block)},${y(from.row)}C${middle},${y(from.row)} ${middle},${y(node.row)} ${x(node.block)},${y(node.row)}` })]);
  }
  for (const node of nodes) {
    const circle = element(svg, "circle", { class: "node", cx: x(node.block), cy: y(node.row), r: Math.min(8, gap / 2.6) });
    element(circle, "title", {}, `${millions(node.multiply_adds)} multiply-adds, needed from size ${node.size} on`);
    parts.push([node, circle]);
  }
  for (const row of run.sizes) {
    const leaf = nodes.find((node) => node.leaf && node.size === row.size);
    element(svg, "text", { class: "note", x: x(leaf.block) + 16, y: y(leaf.row) + 4 }, `${row.size}: ${millions(row.multiply_adds)}, ${percent(row.accuracy)}`);
  }
  return (size) => parts.forEach(([node, part]) => part.classList.toggle("on", node.size <= size));
}

function table(parent, header, rows) {
  const made = element(parent, "table");
  const head = element(element(made, "thead"), "tr");
  for (const name of header) element(head, "th", { scope: "col" }, name);
  const body = element(made, "tbody");
  return rows.map((cells) => {
    const line = element(body, "tr");
    for (const cell of cells) element(line, "td", {}, cell);
    return line;
  });
}

function sizesTable(parent, run) {
  const lines = table(
    card(parent, "Every ensemble size", `${run.split} split, ${number(run.examples)} images. gain: over the mean accuracy of the leaves that answer; disagreement and variance: between leaves.`, true),
    ["size", "accuracy", "gain", "NLL", "ECE", "Brier", "disagreement", "variance", "multiply-adds", "parameters", "latency (ms)"],
    run.sizes.map((row) => [
      row.size, percent(row.accuracy, 2), (row.gain < 0 ? "" : "+") + percent(row.gain, 2), row.nll.toFixed(3), row.ece.toFixed(3), row.brier.toFixed(3),
      row.disagreement.toFixed(3), row.variance.toFixed(3), number(row.multiply_adds), number(row.parameters), row.latency_ms === null ? "–" : row.latency_ms.toFixed(2),
    ]),
  );
  return (size) => lines.forEach((line, index) => line.classList.toggle("on", run.sizes[index].size === size));
}

function reliability(parent, run) {
  const body = card(parent, "Reliability of the answers", "Accuracy of answers by their confidence; on the dotted line they deserve it. The area of a mark grows with the number of images.");
  return (size) => {
    body.textContent = "";
    const { count, confidence, accuracy } = run.sizes.find((row) => row.size === size).reliability;
    const { svg, x, y } = axes(body, `Reliability of the ensemble of ${size}`, [0, 1], [0, 1], "confidence", "accuracy", (v) => percent(v, 0), (v) => percent(v, 0));
    element(svg, "line", { x1: x(0), y1: y(0), x2: x(1), y2: y(1), stroke: "var(--quiet)", "stroke-dasharray": "2 4" });
    count.forEach((images, bin) => {
      if (!images) return;
      const circle = element(svg, "circle", { cx: x(confidence[bin]), cy: y(accuracy[bin]), r: 3 + 11 * Math.sqrt(images / run.examples), fill: "var(--accent)", "fill-opacity": 0.65 });
      element(circle, "title", {}, `${images} images, confidence ${percent(confidence[bin])}, accuracy ${percent(accuracy[bin])}`);
    });
  };
}

function gallery(parent, run) {
  const list = element(card(parent, "What it gets right", "Half of the pictures are chosen because their answer changes with the size.", true), "ul", { class: "gallery" });
  const { classes, images } = run.gallery;
  const items = images.map((image) => {
    const item = element(list, "li");
    element(item, "img", { src: image.png, alt: `picture of ${classes[image.label]}` });
    return [image, item, element(item, "b"), element(item, "div")];
  });
  return (size) => {
    for (const [image, item, verdict, text] of items) {
      const answer = image.answers[size], right = answer.label === image.label;
      item.classList.toggle("wrong", !right);
      verdict.textContent = right ? "✓ right" : "✗ wrong";
      text.textContent = `${classes[answer.label]} ${percent(answer.confidence, 0)}` + (right ? "" : `, is ${classes[image.label]}`);
    }
  };
}

function corruptions(parent, run) {
  if (!run.corruptions) return;
  const { examples, severities, accuracy, mean } = run.corruptions, sizes = Object.keys(mean);
  const average = (rows, size) => rows.reduce((sum, row) => sum + row[size], 0) / rows.length;
  table(
    card(parent, "Corrupted pictures", `Accuracy on ${number(examples)} test images, mean over severities ${severities.join(", ")}.`, true),
    ["corruption", ...sizes],
    [...Object.entries(accuracy).map(([name, rows]) => [name.replaceAll("_", " "), ...sizes.map((size) => percent(average(Object.values(rows), size)))]), ["mean", ...sizes.map((size) => percent(mean[size]))]],
  );
}

// The slider: the largest ensemble within the budget answers, and everything shows it.
function budget(parent, run, index, show) {
  const box = element(element(parent, "figure", { class: "card wide" }), "div", { class: "budget" });
  const label = element(box, "label", { for: `budget${index}` }, "Budget ");
  const output = element(label, "output", { for: `budget${index}` });
  const choice = element(box, "select", { "aria-label": "What the budget is of" });
  for (const [cost, { title }] of Object.entries(COSTS)) if (rowsWith(run, cost).length) element(choice, "option", { value: cost }, title);
  const slider = element(box, "input", { type: "range", id: `budget${index}`, min: 0, max: 1000, value: 1000, style: "grid-column:1/-1" });
  const verdict = element(box, "p", { class: "verdict", id: `verdict${index}`, "aria-live": "polite" });
  const ends = () => {
    const values = rowsWith(run, choice.value).map((row) => row[choice.value]);
    return [0.9 * Math.min(...values), 1.05 * Math.max(...values)];
  };
  const update = () => {
    const cost = choice.value, [low, high] = ends(), allowed = low + ((high - low) * slider.value) / slider.max;
    const fitting = rowsWith(run, cost).filter((row) => row[cost] <= allowed);
    const row = fitting[fitting.length - 1] || run.sizes[0];
    output.textContent = COSTS[cost].say(allowed);
    verdict.textContent = "";
    if (!fitting.length) verdict.append("Nothing fits; the smallest would be: ");
    element(verdict, "b", {}, row.size === 1 ? "1 leaf" : `the first ${row.size} leaves`);
    verdict.append(` for ${COSTS[cost].say(row[cost])}: ${percent(row.accuracy, 2)} right.`);
    show(row.size);
  };
  slider.addEventListener("input", update);
  choice.addEventListener("change", update);
  const set = (multiplyAdds) => {
    choice.value = "multiply_adds";
    const [low, high] = ends();
    slider.value = Math.round((slider.max * (multiplyAdds - low)) / (high - low));
    update();
  };
  update();
  return set;
}

function section(run, index) {
  const part = element(page, "section");
  element(part, "h2", {}, run.name);
  element(part, "p", { class: "quiet" }, `${run.tree.leaves} networks in ${run.tree.blocks} blocks, weights of step ${number(run.step)}.`);
  const cards = element(part, "div", { class: "cards" }), shows = [];
  const highlight = (size) => points.filter((point) => point.run === run).forEach(({ size: own, place: [x, y], point }) => point.setAttribute("transform", `translate(${x} ${y}) scale(${own === size ? 1.8 : 1})`));
  const set = budget(cards, run, index, (size) => [highlight, ...shows].forEach((show) => show(size)));
  shows.push(drawTree(card(cards, "The tree", "What is filled is computed. Beside each leaf: multiply-adds and accuracy of the ensemble that it completes."), run));
  shows.push(reliability(cards, run), gallery(cards, run), sizesTable(cards, run));
  corruptions(cards, run);
  const details = element(part, "details");
  element(details, "summary", {}, "Settings that differ from the defaults");
  for (const setting of run.settings) element(element(details, "div"), "code", {}, setting);
  return set;
}

if (runs.length > 1) legend(page);
const overview = element(page, "div", { class: "cards" });
curves(overview, "multiply_adds");
curves(overview, "latency_ms");
const sets = runs.map(section);
// A link may name a budget: page.html#budget=12000000, in multiply-adds.
function followLink() {
  const named = /^#budget=(\d+)$/.exec(location.hash);
  sets.forEach((set, index) => set(named ? Number(named[1]) : runs[index].sizes.at(-1).multiply_adds));
}
addEventListener("hashchange", followLink);
followLink();
