// The page: a section per run, all following one budget.

const RUNS = JSON.parse(document.getElementById("data").textContent).runs;
const STEPS = 100;
const slider = document.getElementById("budget");

// What a budget can be counted in: a size's cost in it (null: unknown), and how it is written.
const COSTS = {
  multiply_adds: {
    name: "multiply-adds",
    of: (run, row) => row.multiply_adds,
    show: short,
    write: (value) => `${short(value)} multiply-adds`,
  },
  latency: {
    name: "latency",
    of: (run, row) => run.latency === null ? null : run.latency.p50_ms[row.size] ?? null,
    show: milliseconds,
    write: milliseconds,
  },
};

function costsOf(unit) {
  return RUNS.flatMap((run) => run.evaluation.sizes.map((row) => COSTS[unit].of(run, row)))
    .filter((cost) => cost !== null);
}

const units = Object.keys(COSTS).filter((unit) => costsOf(unit).length > 0);
const state = { unit: "multiply_adds", budget: 0 };

// The slider goes from a little below the lowest cost, where nothing answers, to the highest.
function range() {
  const costs = costsOf(state.unit);
  return [0.85 * Math.min(...costs), Math.max(...costs)];
}

function budgetAt(position) {
  const [low, high] = range();
  return position === STEPS ? high : low * (high / low) ** (position / STEPS);
}

function positionOf(budget) {
  const [low, high] = range();
  const position = STEPS * Math.log(budget / low) / Math.log(high / low);
  return Math.min(STEPS, Math.max(0, Math.round(position)));
}

function affordable(run, row) {
  const cost = COSTS[state.unit].of(run, row);
  return cost !== null && cost <= state.budget;
}

// The figures of the largest size that the budget pays for, or null.
function choose(run) {
  return run.evaluation.sizes.filter((row) => affordable(run, row)).at(-1) ?? null;
}

function sizeName(run, size) {
  if (run.kind === "tree") return run.leaves === 1 ? "the network" : `${size} of ${run.leaves} networks`;
  return run.average === "last" ? `exit ${size} of ${run.leaves}` : `first ${size} of ${run.leaves} exits`;
}

function costText(run, row) {
  const latency = COSTS.latency.of(run, row);
  const adds = COSTS.multiply_adds.write(row.multiply_adds);
  return latency === null ? adds : `${adds}, ${milliseconds(latency)}`;
}

function nothing(run) {
  return state.unit === "latency" && run.latency === null ? "latency not measured" : "no size fits";
}

// A figure that is drawn for the width it has; `draw(width, chosen rows)` gives its content.
function figure(title, note, draw, attributes = {}) {
  const canvas = html("div", { class: "canvas" });
  const element = html("figure", attributes,
    title ? html("figcaption", {}, html("strong", {}, title), note ? ` ${note}` : null) : null, canvas);
  const update = () => {
    if (canvas.clientWidth > 0) canvas.replaceChildren(draw(canvas.clientWidth));
  };
  return { element, update };
}

function costFigure(unit) {
  const { of, show, name } = COSTS[unit];
  const runs = RUNS.filter((run) => run.evaluation.sizes.some((row) => of(run, row) !== null));
  const medians = unit === "latency" ? "median latency of one image (log scale)" : "multiply-adds per image (log scale)";
  const draw = (width) => {
    const series = runs.map((run) => {
      const rows = run.evaluation.sizes.filter((row) => of(run, row) !== null);
      const stopping = unit === "latency" ? null : run.evaluation.early_stopping;
      return {
        run: RUNS.indexOf(run),
        name: run.name,
        points: rows.map((row) => ({ x: of(run, row), y: row.accuracy, label: `n = ${row.size}` })),
        dashed: (stopping?.curve ?? []).map((row) => ({ x: row.multiply_adds, y: row.accuracy })),
        chosen: rows.indexOf(choose(run)),
      };
    });
    const budget = unit === state.unit ? state.budget : 0;
    const label = `Test accuracy against ${name}: ` + series.map((each) =>
      `${each.name} ${each.points.map((p) => `${percent(p.y)} at ${show(p.x)}`).join(", ")}`).join("; ");
    return costChart(width, { series, budget, show, axis: medians, label });
  };
  const stops = unit === "multiply_adds" && runs.some((run) => run.evaluation.early_stopping?.curve.length);
  const note = stops ? "Dashed: each image stops at the first size that is sure enough of it." : null;
  return figure(`Accuracy against ${name}`, note, draw);
}

function hardwareText({ model, hardware, threads, runs }) {
  const accelerators = hardware.accelerators?.length ? `, ${hardware.accelerators.join(", ")}` : "";
  return `${model} on ${hardware.processor}, ${hardware.cores} cores${accelerators}, ${hardware.system}; `
    + `${threads === null ? "" : `${threads} ${threads === 1 ? "thread" : "threads"}, `}median of ${runs} calls`;
}

function latencySide() {
  const measured = RUNS.filter((run) => run.latency !== null);
  if (measured.length) {
    const view = costFigure("latency");
    view.element.append(html("p", { class: "note" },
      `Measured: ${measured.map((run) => hardwareText(run.latency)).join("; ")}.`));
    return view;
  }
  const element = html("figure", { class: "missing" },
    html("figcaption", {}, html("strong", {}, "Accuracy against latency")),
    html("p", {}, "Latency is measured when a run is exported. Export it and name the export:"),
    html("pre", {}, "hne-export --workdir=WORKDIR --model_base_path=models/NAME\n"
      + "hne-report WORKDIR --models=models/NAME/1"));
  return { element, update: () => {} };
}

// The run's answer in one line, above everything.
function chip(run, number) {
  const text = html("span");
  const element = html("li", { class: colour(number), "data-run": run.name }, key(number),
    html("strong", {}, run.name), text);
  const update = () => {
    const row = choose(run);
    text.textContent = row === null ? nothing(run) : `${sizeName(run, row.size)}, ${percent(row.accuracy)}`;
    element.dataset.size = row === null ? "" : row.size;
  };
  return { element, update };
}

// What the chosen size gets right, in large type.
function verdict(run) {
  const accuracy = html("p", { class: "large" });
  const size = html("p", { class: "strong" });
  const detail = html("p", { class: "note" });
  const update = () => {
    const row = choose(run);
    accuracy.textContent = row === null ? NONE : percent(row.accuracy);
    size.textContent = row === null ? nothing(run) : sizeName(run, row.size);
    const { examples } = run.evaluation;
    detail.textContent = row === null ? "Raise the budget for an answer."
      : `${whole(Math.round(row.accuracy * examples))} of ${whole(examples)} test images right, `
        + `for ${costText(run, row)}`;
  };
  return { element: html("div", { class: "verdict" }, accuracy, html("div", {}, size, detail)), update };
}

function treeFigure(run, number) {
  const draw = (width) => {
    const chosen = choose(run);
    const answers = chosen === null ? nothing(run) : `${sizeName(run, chosen.size)} answer`;
    const label = `The ${run.kind === "exits" ? "network with its exits" : "tree of networks"}. `
      + `${answers}. Costs and accuracies are in the table of sizes.`;
    return treeDrawing(width, { run, number, chosen, affordable: (row) => affordable(run, row), label });
  };
  const title = run.kind === "exits" ? "The network and its exits" : "The tree";
  return figure(title, "Filled: what the answer needs. Nodes are shared by the answers right of them.", draw);
}

function galleryCard(run, image) {
  const { classes } = run.gallery;
  const answer = html("span"), mark = html("span", { class: "verdict-mark" });
  const label = classes[image.label];
  const picture = html("img", { src: image.picture, alt: `test image ${image.index}, ${label}` });
  const element = html("li", { "data-index": image.index }, picture, mark, html("span", { class: "answer" }, answer));
  const update = () => {
    const row = choose(run);
    const column = run.evaluation.sizes.indexOf(row);
    const right = row !== null && image.answers[column] === image.label;
    element.className = row === null ? "unanswered" : right ? "right" : "wrong";
    mark.textContent = row === null ? "?" : right ? "\u2713 right" : "\u2717 wrong";
    answer.textContent = row === null ? label
      : right ? classes[image.answers[column]] : `${classes[image.answers[column]]}, is ${label}`;
    answer.title = row === null ? "" : `confidence ${percent(image.confidences[column])}`;
    return right;
  };
  return { element, update };
}

function galleryFigure(run) {
  const { images, telling, candidates } = run.gallery;
  const cards = images.map((image) => galleryCard(run, image));
  const count = html("strong");
  const chosen = telling
    ? `${telling} of them on which sizes differ, picked from the first ${whole(candidates)} test images; `
      + "the others are the first ones left. So they are harder than the average."
    : `The first of ${whole(candidates)} test images; on none of them do sizes differ.`;
  const element = html("figure", { class: "gallery" },
    html("figcaption", {}, count, ` ${chosen}`), html("ul", {}, cards.map((card) => card.element)));
  const update = () => {
    const right = cards.map((card) => card.update()).filter(Boolean).length;
    count.textContent = `${right} of these ${cards.length} images right.`;
  };
  return { element, update };
}

function sizesTable(run) {
  const columns = [
    ["n", (row) => String(row.size)],
    ["accuracy", (row) => percent(row.accuracy, 2)],
    ["gain", (row) => signedPercent(row.gain)],
    ["NLL", (row) => fixed(row.nll)],
    ["ECE", (row) => fixed(row.ece)],
    ["Brier", (row) => fixed(row.brier)],
    ["disagreement", (row) => fixed(row.disagreement)],
    ["variance", (row) => fixed(row.variance)],
    ["multiply-adds", (row) => whole(row.multiply_adds)],
    ["parameters", (row) => whole(row.parameters)],
  ];
  if (run.latency !== null) {
    columns.push(["p50", (row) => milliseconds(run.latency.p50_ms[row.size] ?? null)],
      ["p95", (row) => milliseconds(run.latency.p95_ms[row.size] ?? null)]);
  }
  const element = table("Every size. Gain: over the mean accuracy of the members that answer.",
    columns, run.evaluation.sizes, (row) => ({ "data-size": row.size }));
  const update = () => {
    const size = String(choose(run)?.size ?? "");
    for (const line of element.querySelectorAll("tbody tr")) {
      line.classList.toggle("answers", line.dataset.size === size);
      if (line.dataset.size === size) line.setAttribute("aria-current", "true");
      else line.removeAttribute("aria-current");
    }
  };
  return { element, update };
}

// The two answers that an exit can give, side by side; null for a tree.
function averagesTable(run) {
  const { last: alone, logits: together } = run.evaluation.sizes_by_average;
  if (!alone) return null;
  const show = ({ accuracy, multiply_adds: adds }) => `${percent(accuracy, 2)} for ${short(adds)}`;
  return table("What the exits answer alone and together, for how many multiply-adds.",
    [["exit n", (index) => String(alone[index].size)], ["alone", (index) => show(alone[index])],
      ["first n together", (index) => show(together[index])]], [...alone.keys()]);
}

function reliabilityFigures(run, number) {
  const views = run.evaluation.sizes.map((row) => {
    const label = `Reliability of ${sizeName(run, row.size)}: expected calibration error ${fixed(row.ece)}`;
    const draw = (width) => reliabilityDiagram(width, row.reliability, label);
    const calibrated = run.evaluation.calibration?.sizes.find((each) => each.size === row.size);
    const after = calibrated
      ? `, ${fixed(calibrated.after.ece)} with temperature ${calibrated.temperature.toFixed(2)}` : "";
    const view = figure(`n = ${row.size}`, `ECE ${fixed(row.ece)}${after}`, draw);
    const update = () => {
      view.element.classList.toggle("answers", row === choose(run));
      view.update();
    };
    return { element: view.element, update };
  });
  const element = html("div", { class: `reliability ${colour(number)}` }, views.map((view) => view.element));
  return { element, update: () => views.forEach((view) => view.update()) };
}

function settingsTable(run) {
  return html("details", {}, html("summary", {}, "Settings"),
    table("What the run sets besides the defaults.",
      [["setting", ([field]) => field], ["value", ([, value]) => value]], run.settings));
}

function subtitle(run) {
  const { examples, step, total_steps: total } = run.evaluation;
  const shape = run.kind === "exits" ? `a network with ${run.leaves} exits`
    : `a tree of ${run.shape.join("\u202f\u00d7\u202f")}, ${run.leaves} ${run.leaves === 1 ? "network" : "networks"}`;
  return `${run.data_set}, ${shape}; ${whole(examples)} test images; weights of step ${whole(step)} of ${whole(total)}.`;
}

function section(run, number) {
  const answer = verdict(run), tree = treeFigure(run, number), sizes = sizesTable(run);
  const images = run.gallery === null ? null : galleryFigure(run);
  const reliability = reliabilityFigures(run, number);
  const { early_stopping: stopping, early_stopping_by_rule: byRule, corruptions, calibration } = run.evaluation;
  const element = html("section", { class: `run ${colour(number)}`, "data-run": run.name },
    html("h2", {}, key(number), run.name), html("p", { class: "note" }, subtitle(run)),
    answer.element, tree.element, images?.element ?? null,
    html("h3", {}, "Sizes"), sizes.element, averagesTable(run),
    html("h3", {}, "Calibration"),
    html("p", { class: "note" }, "Accuracy (%) of the images in each bin of confidence (%). Outlined: the gap "
      + "to their confidence. Below: how many images fall into the bin."), reliability.element,
    calibration?.sizes[0].selective ? selectiveTable(calibration) : null,
    stopping?.curve.length ? stoppingTable(stopping) : null,
    byRule?.confidence.curve.length ? rulesTable(byRule) : null,
    corruptions ? corruptionsTable(corruptions) : null,
    settingsTable(run));
  const views = [answer, tree, images, sizes, reliability].filter((view) => view !== null);
  return { element, update: () => views.forEach((view) => view.update()) };
}

function unitChoice(unit) {
  const input = html("input", { type: "radio", name: "unit", value: unit, id: `unit-${unit}` });
  input.addEventListener("change", () => {
    // The other unit begins where the slider stands.
    state.unit = unit;
    state.budget = budgetAt(Number(slider.value));
    keep();
    update();
  });
  return html("label", {}, input, COSTS[unit].name);
}

// The address tells the budget, so that it can be passed on.
function keep() {
  history.replaceState(null, "", `#budget=${state.budget}&unit=${state.unit}`);
}

function follow() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  if (units.includes(wanted.get("unit"))) state.unit = wanted.get("unit");
  const budget = Number(wanted.get("budget"));
  state.budget = budget > 0 ? budget : budgetAt(0.6 * STEPS);
  update();
}

const views = [];

function update() {
  const text = COSTS[state.unit].write(state.budget);
  slider.value = positionOf(state.budget);
  slider.setAttribute("aria-valuetext", text);
  document.getElementById("budget-value").textContent = text;
  document.getElementById(`unit-${state.unit}`).checked = true;
  views.forEach((view) => view.update());
}

function start() {
  const curves = [costFigure("multiply_adds"), latencySide()];
  const chips = RUNS.map(chip), sections = RUNS.map(section);
  views.push(...curves, ...chips, ...sections);
  document.getElementById("answers").append(...chips.map((view) => view.element));
  document.getElementById("units").append(...units.map(unitChoice));
  document.getElementById("units").hidden = units.length < 2;
  document.getElementById("report").append(
    html("div", { class: "curves" }, curves.map((view) => view.element)),
    ...sections.map((view) => view.element));
  slider.addEventListener("input", () => {
    state.budget = budgetAt(Number(slider.value));
    update();
  });
  slider.addEventListener("change", keep);
  addEventListener("hashchange", follow);
  addEventListener("resize", update);
  document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  follow();
}

start();
