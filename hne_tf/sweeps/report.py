"""The table and the picture of a sweep: mean and standard deviation over seeds."""

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from hne_tf.errors import extra
from hne_tf.evaluation.tables import aligned
from hne_tf.files import replacing
from hne_tf.sweeps import comparison
from hne_tf.sweeps.earlier import Earlier
from hne_tf.sweeps.plan import Run, Sweep
from hne_tf.sweeps.store import Evaluations
from hne_tf.training.config import default, differences

with extra("sweeps"):
    import matplotlib
    from matplotlib.figure import Figure

# Figures of a run that are one number each; those per size come under `accuracy`.
_SINGLE_FIGURES = ("mean_leaf_accuracy", "gain", "disagreement", "train_accuracy")

# Networks with exits are shown in all ways in which they answer.
_EXITS_ANSWER = {
    "last": "each exit alone",
    "logits": "exits together",
    "probabilities": "exits' probabilities together",
    "sum": "exits added up",
}


def summarise(
    sweep: Sweep,
    found: Mapping[tuple[str, int], Evaluations],
    earlier: Earlier | None = None,
) -> dict[str, Any]:
    """The figures of a sweep, as they are written beside its page.

    Args:
      sweep: the sweep.
      found: evaluations by `(group, seed)` on the sweep's split and on train;
        runs that failed are missing.
      earlier: groups that were measured before, which are taken as they are.

    Returns:
      `title`, `split`, `seeds` and `groups`: per group, or per group and way in
      which its exits answer, its `name`, `overrides`,
      `multiply_adds` per size, `runs` with the figures of each, and `mean` and
      `deviation` (of the sample; None for a single run) of those figures:
      `accuracy` per size, `mean_leaf_accuracy`, and at full size `gain` over
      the mean leaf, `disagreement` and `train_accuracy`.
    """
    groups = []
    for name, overrides in sweep.groups.items():
        if earlier and name in earlier:
            groups.extend(earlier[name])
            continue
        made = {
            run: found[name, run.seed]
            for run in sweep.runs
            if run.group == name and (name, run.seed) in found
        }
        some = next(iter(made.values()), {}).get(sweep.split, {})
        for average in some.get("sizes_by_average") or (None,):
            groups.append(
                {
                    "name": name if average is None else f"{name}, {_EXITS_ANSWER[average]}",
                    "overrides": dict(overrides),
                    **_figures(made, sweep.split, average),
                }
            )
    seeds = list(sweep.seeds)
    return {"title": sweep.title, "split": sweep.split, "seeds": seeds, "groups": groups}


def _figures(made: Mapping[Run, Evaluations], split: str, average: str | None) -> dict[str, Any]:
    """What a group's runs measured, each and together.

    Args:
      made: evaluations by run.
      split: the sweep's.
      average: how exits answer; None for the way that the run itself has.
    """
    runs, multiply_adds = [], {}
    for run, evaluations in made.items():
        rows, train_rows = (
            evaluations[each]["sizes_by_average"][average]
            if average
            else evaluations[each]["sizes"]
            for each in (split, "train")
        )
        mean_leaf = evaluations[split]["mean_leaf_accuracy"]
        multiply_adds = {str(row["size"]): row["multiply_adds"] for row in rows}
        runs.append(
            {
                "seed": run.seed,
                "digest": run.digest,
                "accuracy": {str(row["size"]): row["accuracy"] for row in rows},
                "mean_leaf_accuracy": mean_leaf,
                "gain": rows[-1]["accuracy"] - mean_leaf,
                "disagreement": rows[-1]["disagreement"],
                "train_accuracy": train_rows[-1]["accuracy"],
            }
        )
    return {
        "multiply_adds": multiply_adds,
        "runs": runs,
        "mean": _over_runs(statistics.fmean, runs) if runs else None,
        "deviation": _over_runs(statistics.stdev, runs) if len(runs) > 1 else None,
    }


def _over_runs(statistic: Any, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A statistic of each figure over the runs of a group."""
    sizes = runs[0]["accuracy"]
    return {
        "accuracy": {size: statistic([run["accuracy"][size] for run in runs]) for size in sizes},
        **{figure: statistic([run[figure] for run in runs]) for figure in _SINGLE_FIGURES},
    }


def markdown(summary: dict[str, Any]) -> str:
    """A Markdown table with a row per group, and what its figures are below."""
    sizes = sorted({int(size) for group in summary["groups"] for size in group["multiply_adds"]})
    header = ["group", "seeds", *map(str, sizes), "mean leaf", "gain", "disagreement", "train"]
    rows = []
    for group in summary["groups"]:
        mean, deviation = _flat(group["mean"]), _flat(group["deviation"])
        made, planned = len(group["runs"]), len(summary["seeds"])
        columns = [(str(size), 100, 1) for size in sizes]
        columns += [("mean_leaf_accuracy", 100, 1), ("gain", 100, 1), ("disagreement", 1, 3)]
        columns += [("train_accuracy", 100, 1)]
        rows.append(
            [
                group["name"],
                str(made) if made == planned else f"{made} of {planned}",
                *(_cell(mean.get(k), deviation.get(k), by, places) for k, by, places in columns),
            ]
        )
    return "\n".join(
        [
            aligned(header, rows, words={"group"}),
            "",
            f"Accuracy in percent on the {summary['split']} split at each ensemble size and of the "
            "mean single leaf; at full size the gain over the mean leaf, the disagreement between "
            "leaves and the accuracy on the training split. Mean ± sample standard deviation over "
            "seeds.",
        ]
    )


def comparisons(sweep: Sweep, summary: dict[str, Any]) -> str:
    """Markdown sections with the comparisons that the sweep asks for; empty for none."""
    sections = []
    if sweep.reference and (table := comparison.against_reference(summary, sweep.reference)):
        sections += [f"## Against {sweep.reference}", table]
    if sweep.equal_computation and any(group["runs"] for group in summary["groups"]):
        sections += ["## At equal computation", comparison.at_equal_computation(summary)]
    return "\n\n".join(sections)


def _flat(figures: dict[str, Any] | None) -> dict[str, float]:
    """Figures with those per size under the size's own name."""
    if figures is None:
        return {}
    return {**figures["accuracy"], **{name: figures[name] for name in _SINGLE_FIGURES}}


def _cell(mean: float | None, deviation: float | None, by: int, places: int) -> str:
    if mean is None:
        return "–"  # noqa: RUF001 - the dash of tables
    text = f"{by * mean:.{places}f}"
    return text if deviation is None else f"{text} ± {by * deviation:.{places}f}"


def settings(sweep: Sweep) -> str:
    """Markdown that tells the settings of the sweep's groups."""
    base = [
        f"--config.{field}={value!r}"
        for field, (_, value) in differences(default(), sweep.base)
        if field != "seed"
    ]
    groups = [
        f"- {name}: " + (", ".join(f"`{k}={v!r}`" for k, v in overrides.items()) or "as it is")
        for name, overrides in sweep.groups.items()
    ]
    seeds = ", ".join(map(str, sweep.seeds))
    return "\n".join(
        [
            "All runs have these overrides of the default settings:",
            "",
            "```",
            *base,
            "```",
            "",
            f"Seeds {seeds}. The groups change:",
            "",
            *groups,
        ]
    )


def plot(summary: dict[str, Any], path: pathlib.Path) -> None:
    """Draws accuracy against multiply-adds, a line per group, error bars of one deviation.

    Args:
      summary: see `summarise`.
      path: file to write; the ending gives the format.
    """
    groups = [group for group in summary["groups"] if group["runs"]]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    colours = matplotlib.colormaps["tab10" if len(groups) <= 10 else "turbo"]
    for index, group in enumerate(groups):
        sizes = list(group["multiply_adds"])
        deviation = group["deviation"]
        axes.errorbar(
            [group["multiply_adds"][size] / 1e6 for size in sizes],
            [100 * group["mean"]["accuracy"][size] for size in sizes],
            yerr=[100 * deviation["accuracy"][size] for size in sizes] if deviation else None,
            color=colours(index if len(groups) <= 10 else index / (len(groups) - 1)),
            marker="o",
            markersize=4,
            capsize=3,
            label=group["name"],
        )
    axes.set_xlabel("multiply-adds per image (millions)")
    axes.set_ylabel(f"{summary['split']} accuracy (%)")
    axes.set_title(summary["title"])
    axes.grid(alpha=0.3)
    if groups:
        figure.legend(loc="outside right upper", fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=150)
