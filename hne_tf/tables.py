"""Evaluations as a table and as a picture of accuracy against compute."""

import pathlib
from typing import Any

import matplotlib

from hne_tf.files import replacing

_COLUMNS = {
    "size": "{:d}",
    "accuracy": "{:.2%}",
    "nll": "{:.4f}",
    "ece": "{:.4f}",
    "brier": "{:.4f}",
    "disagreement": "{:.4f}",
    "multiply_adds": "{:,d}",
    "parameters": "{:,d}",
}


def markdown(evaluation: dict[str, Any]) -> str:
    """A Markdown table with a row per ensemble size, and the leaves' accuracy below."""
    rows = [
        [form.format(row[key]) for key, form in _COLUMNS.items()] for row in evaluation["sizes"]
    ]
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    rule = [f"{'-' * (width - 1)}:" for width in widths]
    lines = [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (list(_COLUMNS), rule, *rows)
    ]
    leaves = " ".join(f"{accuracy:.2%}" for accuracy in evaluation["leaf_accuracy"])
    return "\n".join(
        [
            *lines,
            "",
            f"{evaluation['split']} split, {evaluation['examples']} examples, "
            f"weights of step {evaluation['step']} of {evaluation['total_steps']}.",
            f"Accuracy of each leaf: {leaves} (mean {evaluation['mean_leaf_accuracy']:.2%}).",
        ]
    )


def plot(evaluation: dict[str, Any], title: str, paths: list[pathlib.Path]) -> None:
    """Draws accuracy against multiply-adds, a point per ensemble size.

    Args:
      evaluation: see `evaluation.evaluate`.
      title: heading of the picture.
      paths: files to write; the ending gives the format (`.png`, `.svg`).
    """
    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = evaluation["sizes"]
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(
        [row["multiply_adds"] / 1e6 for row in rows],
        [100 * row["accuracy"] for row in rows],
        marker="o",
        label="first n leaves",
    )
    for row in rows:
        axes.annotate(
            f"n = {row['size']}",
            (row["multiply_adds"] / 1e6, 100 * row["accuracy"]),
            textcoords="offset points",
            xytext=(6, -12),
        )
    mean_leaf = 100 * evaluation["mean_leaf_accuracy"]
    axes.axhline(mean_leaf, linestyle=":", color="grey", label="mean single leaf")
    axes.set_xlabel("multiply-adds per image (millions)")
    axes.set_ylabel(f"{evaluation['split']} accuracy (%)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.margins(x=0.1, y=0.15)
    axes.legend(loc="lower right")
    for path in paths:
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=_metadata(path))
    pyplot.close(figure)


def _metadata(path: pathlib.Path) -> dict[str, None]:
    """Without a date, the same evaluation gives the same file."""
    return {"Date": None} if path.suffix == ".svg" else {}
