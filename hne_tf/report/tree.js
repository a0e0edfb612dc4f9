// A tree from left to right with a row per leaf, and beside it what its prefixes cost and reach.

function treeDrawing(width, { run, number, chosen, affordable, label }) {
  const { columns, nodes, active } = run.tree;
  const narrow = width < 560;
  const rowHeight = run.leaves <= 20 ? 25 : run.leaves <= 40 ? 18 : 13;
  const top = 46, height = top + rowHeight * run.leaves + 4;
  const measures = prefixColumns(run, narrow);
  const cell = narrow ? 62 : 96;
  const left = 14, right = Math.min(width - cell * measures.length - (narrow ? 18 : 28), left + 150 * (columns.length - 1));
  const tableLeft = right + (narrow ? 10 : 28);
  const gap = (right - left) / Math.max(1, columns.length - 1);
  const x = (node) => left + gap * node.column;
  const y = (node) => top + rowHeight * (node.row + 0.5);
  const used = new Set(chosen === null ? [] : active[chosen.size]);

  const edges = nodes.map((node, index) => {
    if (node.parent === null) return null;
    const parent = nodes[node.parent];
    const from = [x(parent), y(parent)], to = [x(node), y(node)];
    const middle = (from[0] + to[0]) / 2;
    const path = `M${from}C${middle},${from[1]} ${middle},${to[1]} ${to}`;
    return svg("path", { class: used.has(index) ? "edge used" : "edge", d: path });
  });
  const dots = nodes.map((node, index) => svg("circle", {
    class: used.has(index) ? "node used" : "node", cx: x(node), cy: y(node),
    r: rowHeight > 15 ? 5.5 : 4,
  }, svg("title", {}, node.name)));
  const headings = columns.map((heading, index) => {
    const short = narrow && columns.length > 2 ? String(index) : heading;
    const anchor = index ? "middle" : "start";
    return svgText(index ? left + gap * index : 0, 16, short, { "text-anchor": anchor });
  });

  const end = (column) => tableLeft + cell * (column + 1) - (narrow ? 2 : 12);
  const titles = measures.map(({ heading }, column) => heading.map((line, row) =>
    svgText(end(column), 16 + 15 * row, line, { "text-anchor": "end" })));
  const sizes = new Map(run.evaluation.sizes.map((row) => [row.size, row]));
  const rows = Array.from({ length: run.leaves }, (_, leaf) => {
    const row = sizes.get(leaf + 1) || null;
    const middle = top + rowHeight * (leaf + 0.5);
    const answers = row !== null && row === chosen;
    const kind = answers ? "prefix answers" : row && affordable(row) ? "prefix" : "prefix beyond";
    return svg("g", { class: kind },
      answers ? svg("rect", {
        class: "band", x: tableLeft, y: middle - rowHeight / 2 + 1, rx: 5,
        width: end(measures.length - 1) + 8 - tableLeft, height: rowHeight - 2,
      }) : null,
      measures.map(({ show }, column) => {
        const text = show(row, leaf);
        return text === null ? null : svgText(end(column), middle + 4, text, { "text-anchor": "end" });
      }));
  });
  return svg("svg", { class: `tree ${colour(number)}`, width, height, role: "img", "aria-label": label },
    headings, titles, edges, dots, rows);
}

// What stands beside the leaves; `show` gets the figures of the prefix that ends there, or null.
function prefixColumns(run, narrow) {
  const leaf = run.kind === "exits" ? "exit" : "leaf";
  const together = run.average === "last" ? "exit" : "first";
  const of = (show) => (row) => row === null ? null : show(row);
  const columns = [
    { heading: [together, "n"], show: of((row) => String(row.size)) },
    { heading: ["multiply-", "adds"], show: of((row) => short(row.multiply_adds)) },
    { heading: ["", "accuracy"], show: of((row) => percent(row.accuracy)) },
  ];
  const alone = {
    heading: [leaf, "alone"],
    show: (_, index) => run.leaves <= 20 ? percent(run.evaluation.leaf_accuracy[index]) : null,
  };
  return narrow || run.average === "last" ? columns : [alone, ...columns];
}
