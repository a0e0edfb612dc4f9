"""A load test as a table and as a picture."""

import math
import pathlib
from collections.abc import Sequence

from hne_tf.errors import extra
from hne_tf.evaluation.tables import aligned
from hne_tf.files import replacing
from serving.load import Bar, Outcome, Point

with extra("serving"):
    from matplotlib.figure import Figure

_COLUMNS = (
    "load (1/s)",
    "x knee",
    "client",
    "in budget",
    "goodput (1/s)",
    "p50 (ms)",
    "p99 (ms)",
    "late",
    "rejected",
    "failed",
    "mean size",
    "full size",
    "accuracy",
    "right in time",
)


def table(points: Sequence[Point], knee: float | None) -> str:
    """A Markdown table with a row per load and client."""
    rows = [
        [
            f"{point.load:.1f}",
            f"{point.load / knee:.2f}" if knee else "",
            point.client,
            f"{point.inside:.2%}",
            f"{point.goodput:.1f}",
            f"{point.p50_ms:.1f}",
            f"{point.p99_ms:.1f}",
            *(
                f"{point.outcomes[outcome] / point.arrivals:.2%}"
                for outcome in (Outcome.LATE, Outcome.REJECTED, Outcome.FAILED)
            ),
            _unless_nan(point.mean_size, ".2f"),
            _unless_nan(point.full_share, ".1%"),
            _unless_nan(point.accuracy, ".2%"),
            f"{point.right_in_time:.2%}",
        ]
        for point in sorted(points, key=lambda point: (point.load, point.client))
    ]
    return aligned(_COLUMNS, rows, words={"client"})


def bars_table(bars: Sequence[Bar]) -> str:
    """A Markdown table of what should be reached beside what was."""
    words = {True: "yes", False: "**no**", None: ""}
    rows = [[bar.what, bar.wanted, bar.measured, words[bar.met]] for bar in bars]
    return aligned(["bar", "wanted", "measured", "met"], rows, words={"bar", "met"})


def plot(
    points: Sequence[Point], knee: float | None, budget_ms: float, title: str, path: pathlib.Path
) -> None:
    """Draws both clients against the offered load.

    Args:
      points: of both clients.
      knee: where the fixed client begins to miss, drawn as a line.
      budget_ms: drawn as a line beside the latencies.
      title: heading of the picture.
      path: file to write; the ending gives the format.
    """
    # Per panel: what it shows, and by style of line what is drawn.
    panels = (
        ("goodput: answers inside the budget (1/s)", {"-": lambda p: p.goodput}),
        (
            "latency: 99th percentile, dashed: median (ms)",
            {"-": lambda p: p.p99_ms, "--": lambda p: p.p50_ms},
        ),
        ("mean ensemble size", {"-": lambda p: p.mean_size}),
        ("accuracy of answers inside the budget (%)", {"-": lambda p: 100 * p.accuracy}),
    )
    figure = Figure(figsize=(9, 6), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True)
    for axes, (label, lines) in zip(grid.flat, panels, strict=True):
        for client, color, marker in (("fixed", "C0", "s"), ("adaptive", "C1", "o")):
            drawn = sorted((p for p in points if p.client == client), key=lambda p: p.load)
            loads = [point.load for point in drawn]
            for style, value in lines.items():
                name = client if style == "-" else None
                axes.plot(loads, list(map(value, drawn)), style, c=color, marker=marker, label=name)
        if knee:
            axes.axvline(knee, linestyle=":", color="grey", label="knee")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
    grid[0, 1].axhline(budget_ms, linestyle="-.", color="grey", label="budget")
    handles, labels = grid[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    for axes in grid[1]:
        axes.set_xlabel("offered load (requests per second)")
    figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=150)


def _unless_nan(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)
