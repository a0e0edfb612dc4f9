// Tables that unfold below the figures of a run.

// Risk by coverage: what is wrong of the answers if only the surest images are answered.
function selectiveTable({ sizes }) {
  const parts = Object.keys(sizes[0].selective).filter((name) => name !== "area").map(Number);
  parts.sort((one, other) => one - other);
  return html("details", {}, html("summary", {}, "Answering only the surest images"),
    table("Share of wrong answers among the surest images, by their share of all; below, the mean over all shares.",
      [["answered", (part) => part === "area" ? "mean" : percent(part, 0)],
        ...sizes.map(({ size, selective }) => [`n = ${size}`,
          (part) => percent(part === "area" ? selective.area : 1 - selective[part], 2)])],
      [...parts, "area"]));
}

function stoppingTable({ curve, examples, split }) {
  return html("details", {}, html("summary", {}, "Early stopping"),
    table(`Each image stops at the first size that is sure enough; thresholds fitted on ${whole(examples)} `
      + `${split} images. Last column: all images at one size, for the same cost.`,
    [["mean multiply-adds", (row) => whole(row.multiply_adds)], ["mean size", (row) => row.mean_size.toFixed(2)],
      ["accuracy", (row) => percent(row.accuracy, 2)], ["at one size", (row) => percent(row.anytime_accuracy, 2)]],
    curve));
}

function rulesTable(byRule) {
  const targets = byRule.confidence.curve.map((row) => row.target_multiply_adds);
  const accuracy = (rule, target) => {
    const row = byRule[rule].curve.find((each) => each.target_multiply_adds === target);
    return row ? percent(row.accuracy, 2) : "\u2013";
  };
  return html("details", {}, html("summary", {}, "Stopping rules"),
    table("Accuracy where each image stops by another rule, within a mean cost.",
      [["mean multiply-adds", (target) => whole(target)],
        ...Object.keys(byRule).map((rule) => [rule, (target) => accuracy(rule, target)])], targets));
}

function corruptionsTable({ accuracy, mean, severities, examples }) {
  const sizes = Object.keys(mean);
  const average = (rows, size) => rows.reduce((sum, row) => sum + row[size], 0) / rows.length;
  const rows = Object.entries(accuracy).map(([name, bySeverity]) =>
    [name.replaceAll("_", " "), (size) => average(Object.values(bySeverity), size)]);
  rows.push(["mean", (size) => mean[size]]);
  return html("details", {}, html("summary", {}, "Corrupted images"),
    table(`Accuracy by size on ${whole(examples)} corrupted test images, mean over severities `
      + `${severities.join(", ")}.`,
    [["corruption", ([name]) => name],
      ...sizes.map((size) => [`n = ${size}`, ([, of]) => percent(of(size), 2)])], rows));
}
