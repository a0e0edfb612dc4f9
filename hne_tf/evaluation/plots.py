"""Pictures of accuracy against compute: evaluations and profiles."""

import pathlib
import typing
from collections.abc import Sequence
from typing import Any

from hne_tf.errors import extra
from hne_tf.evaluation.tables import EXIT_ANSWERS, threads_text
from hne_tf.files import replacing

with extra("report"):
    from matplotlib import ticker
    from matplotlib.figure import Figure

if typing.TYPE_CHECKING:
    from hne_tf.exported.profiling.profile import ProfiledModel


def plot(evaluation: dict[str, Any], title: str, paths: list[pathlib.Path]) -> None:
    """Draws accuracy against multiply-adds: the ensemble sizes, and early stopping.

    Args:
      evaluation: see `evaluation.evaluate`.
      title: heading of the picture.
      paths: files to write; the ending gives the format (`.png`, `.svg`).
    """
    rows = evaluation["sizes"]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    answers = evaluation.get("sizes_by_average") or {"": rows}
    for average, each in answers.items():
        axes.plot(
            [row["multiply_adds"] / 1e6 for row in each],
            [100 * row["accuracy"] for row in each],
            marker="o",
            label=EXIT_ANSWERS.get(average, "first n leaves").lower(),
        )
    for row in rows:
        axes.annotate(
            f"n = {row['size']}",
            (row["multiply_adds"] / 1e6, 100 * row["accuracy"]),
            textcoords="offset points",
            xytext=(6, -12),
        )
    if stopping := evaluation.get("early_stopping"):
        axes.plot(
            [row["multiply_adds"] / 1e6 for row in stopping["curve"]],
            [100 * row["accuracy"] for row in stopping["curve"]],
            marker=".",
            label="each image until sure",
        )
    mean_leaf = 100 * evaluation["mean_leaf_accuracy"]
    axes.axhline(mean_leaf, linestyle=":", color="grey", label="mean single leaf")
    axes.set_xlabel("multiply-adds per image (millions)")
    axes.set_ylabel(f"{evaluation['split']} accuracy (%)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.margins(x=0.1, y=0.15)
    axes.legend(loc="lower right")
    _save(figure, paths)


def plot_profiles(
    profiles: Sequence["ProfiledModel"],
    threads: int,
    batch_size: int,
    paths: Sequence[pathlib.Path],
) -> None:
    """Draws accuracy against median latency: a line per model, a point per ensemble size.

    Args:
      profiles: see `exported.profile.profile`.
      threads: number of threads of the latencies.
      batch_size: images per call.
      paths: files to write; the ending gives the format.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    # Without an accuracy there is nothing to draw.
    measured = [each for each in profiles if each.accuracy]
    for each in measured:
        axes.plot(
            [each.latency(size, batch_size, threads).p50_ms for size in each.accuracy],
            [100 * accuracy for accuracy in each.accuracy.values()],
            marker="o",
            markersize=4,
            label=f"{each.name} ({each.mode})",
        )
    axes.set_xscale("log")
    # Latencies often lie within one decade, where a log axis has hardly a label.
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    images = "one image" if batch_size == 1 else f"{batch_size} images"
    axes.set_xlabel(f"median latency of {images}, {threads_text(threads)} (ms)")
    splits = sorted({each.manifest.accuracy.split for each in measured})
    axes.set_ylabel(f"{' and '.join(splits)} accuracy (%)")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
    _save(figure, paths)


def _save(figure: Figure, paths: Sequence[pathlib.Path]) -> None:
    for path in paths:
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=_metadata(path))


def _metadata(path: pathlib.Path) -> dict[str, None]:
    """Without a date, the same evaluation gives the same file."""
    return {"Date": None} if path.suffix == ".svg" else {}
