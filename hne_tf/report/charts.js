// Charts, drawn anew for every width and budget.

const MARKERS = [
  (r) => `M${-r},0a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0z`,
  (r) => `M${-r},${-r}h${2 * r}v${2 * r}h${-2 * r}z`,
  (r) => `M0,${-1.25 * r}L${1.2 * r},${r}H${-1.2 * r}z`,
  (r) => `M0,${-1.4 * r}L${1.4 * r},0L0,${1.4 * r}L${-1.4 * r},0z`,
];

function marker(number, x, y, attributes = {}, radius = 4.5) {
  const path = MARKERS[number % MARKERS.length](radius);
  return svg("path", { d: path, transform: `translate(${x},${y})`, ...attributes });
}

// The number of a run's colour; more runs than colours differ by their markers.
function colour(number) {
  return `run-${number % 6}`;
}

function key(number) {
  return svg("svg", { class: `key ${colour(number)}`, viewBox: "-8 -8 16 16", "aria-hidden": "true" },
    marker(number, 0, 0, { class: "mark" }, 5));
}

function niceStep(span, count) {
  const rough = span / count;
  const scale = 10 ** Math.floor(Math.log10(rough));
  return scale * [1, 2, 5, 10].find((factor) => factor * scale >= rough);
}

function linearTicks(low, high, count) {
  const step = niceStep(high - low, count);
  const ticks = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + 1e-9 * step; index++) {
    ticks.push(index * step);
  }
  return ticks;
}

// 1, 2 and 5 times powers of ten.
function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++) {
    ticks.push(...[1, 2, 5].map((factor) => factor * 10 ** power));
  }
  return ticks.filter((tick) => tick >= low && tick <= high);
}

// A point's label, off a rising line: below it, or above for every other run and where room ends.
function besides(number, x, y, text, right) {
  const above = number % 2 === 1 || x > right - 44;
  return above ? svgText(x - 8, y - 10, text, { "text-anchor": "end" }) : svgText(x + 8, y + 18, text);
}

// Accuracy against a cost. A series has `run` (its number), `name`, `points` of x, y and
// label, `dashed` of x and y, and `chosen`, the index of the point that answers, or -1.
function costChart(width, { series, budget, show, axis, label }) {
  const height = Math.min(340, Math.max(240, width * 0.62));
  const left = 52, right = width - 16, top = 20, bottom = height - 44;
  const points = series.flatMap((each) => [...each.points, ...each.dashed]);
  const xs = points.map((point) => point.x), ys = points.map((point) => point.y);
  const low = Math.min(...xs) * 0.85, high = Math.max(...xs) * 1.18;
  const margin = Math.max(0.002, 0.1 * (Math.max(...ys) - Math.min(...ys)));
  const floor = Math.max(0, Math.min(...ys) - 2 * margin);
  const ceiling = Math.min(1, Math.max(...ys) + margin);
  const x = (value) => left + (right - left) * Math.log(value / low) / Math.log(high / low);
  const y = (value) => bottom - (bottom - top) * (value - floor) / (ceiling - floor);
  const yTicks = linearTicks(floor, ceiling, 5);
  const digits = Math.max(0, Math.ceil(-Math.log10(100 * (yTicks[1] - yTicks[0]) || 1) - 1e-9));
  const grid = [
    ...yTicks.map((tick) => svg("g", {},
      svg("line", { class: "grid", x1: left, x2: right, y1: y(tick), y2: y(tick) }),
      svgText(left - 8, y(tick) + 4, percent(tick, digits), { "text-anchor": "end" }))),
    ...logTicks(low, high).map((tick) => svg("g", {},
      svg("line", { class: "grid", x1: x(tick), x2: x(tick), y1: top, y2: bottom }),
      svgText(x(tick), bottom + 17, show(tick), { "text-anchor": "middle" }))),
    svgText((left + right) / 2, height - 6, axis, { class: "axis", "text-anchor": "middle" }),
  ];
  const at = Math.min(right, Math.max(left, x(budget)));
  const rule = svg("g", { class: "rule" },
    svg("rect", { x: left, y: top, width: at - left, height: bottom - top }),
    svg("line", { x1: at, x2: at, y1: top, y2: bottom }));
  // One run has a label at every point that stands apart from those before and the chosen one.
  const apart = (each, index) => each.points.every((point, other) =>
    other === index || (other > index && other !== each.chosen)
      || Math.abs(x(point.x) - x(each.points[index].x)) > 40);
  const line = (values) => values.map((point) => `${x(point.x)},${y(point.y)}`).join(" ");
  const lines = series.map((each) => svg("g", { class: colour(each.run) },
    each.dashed.length ? svg("polyline", { class: "dashed", points: line(each.dashed) }) : null,
    svg("polyline", { class: "line", points: line(each.points) }),
    each.points.map((point, index) => {
      const chosen = index === each.chosen;
      const labelled = chosen || (series.length === 1 && apart(each, index));
      return svg("g", { class: chosen ? "chosen" : null },
        svg("title", {}, `${each.name}, ${point.label}: ${percent(point.y, 2)}, ${show(point.x)}`),
        chosen ? svg("circle", { class: "ring", cx: x(point.x), cy: y(point.y), r: 10 }) : null,
        marker(each.run, x(point.x), y(point.y), { class: "mark" }),
        labelled ? besides(each.run, x(point.x), y(point.y), point.label, right) : null);
    })));
  return svg("svg", { width, height, role: "img", "aria-label": label }, rule, grid, lines);
}

// Accuracy by confidence in bins; a well calibrated model keeps to the diagonal.
function reliabilityDiagram(width, reliability, label) {
  const histogram = 26, left = 30, top = 8, right = width - 6;
  const side = right - left, bottom = top + side, height = bottom + histogram + 30;
  const bins = reliability.count.length, step = side / bins;
  const most = Math.max(...reliability.count);
  const x = (value) => left + side * value, y = (value) => bottom - side * value;
  const bars = reliability.count.map((count, bin) => {
    if (!count) return null;
    const accuracy = reliability.accuracy[bin], confidence = reliability.confidence[bin];
    const from = left + bin * step + 0.5;
    const tall = Math.max(1, histogram * count / most);
    return svg("g", {},
      svg("title", {}, `${count} images, confidence ${percent(confidence)}, right ${percent(accuracy)}`),
      svg("rect", { class: "bar", x: from, width: step - 1, y: y(accuracy), height: side * accuracy }),
      svg("rect", {
        class: "gap", x: from, width: step - 1,
        y: y(Math.max(accuracy, confidence)), height: side * Math.abs(accuracy - confidence),
      }),
      svg("rect", {
        class: "count", x: from, width: step - 1,
        y: bottom + 4 + histogram - tall, height: tall,
      }));
  });
  const ticks = [0, 0.5, 1].map((tick) => svg("g", {},
    svgText(left - 5, y(tick) + 4, String(100 * tick), { "text-anchor": "end" }),
    svgText(x(tick), height - 6, String(100 * tick), { "text-anchor": tick === 1 ? "end" : "middle" })));
  return svg("svg", { width, height, role: "img", "aria-label": label },
    svg("rect", { class: "frame", x: left, y: top, width: side, height: side }),
    bars, svg("line", { class: "diagonal", x1: left, y1: bottom, x2: right, y2: top }), ticks);
}
