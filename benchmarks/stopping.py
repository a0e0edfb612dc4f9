"""Accuracy against mean cost, where each image stops by one rule or another.

And right answers that turn wrong with more leaves, for averages that keep answers or do not.

    python benchmarks/stopping.py cifar10_cpu --data_dir=/data/tfds

Thresholds are fitted on the validation split of the model's data and judged on the test split, see
`hne_tf.evaluation.early_stopping`. A minute a model on 2 cores.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from hne_tf.bin import app
from hne_tf.errors import InputError

if TYPE_CHECKING:
    from hne_tf.training.trained import TrainedRun

# For trees, whose leaves are equals.
_AVERAGES = (
    "logits",
    "probabilities",
    "product",
    "cached_logits",
    "cached_probabilities",
    "cached_product",
)


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this benchmark."""
    del argv
    # Flags may come after the models.
    values.set_gnu_getopt()
    app.define_path(values, "data_dir", None, "Where the data lie, if not where TFDS keeps them.")
    app.define_path(values, "results", None, "Also write the tables to this Markdown page.")


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Prints four tables for each pretrained model."""
    if not positional:
        raise InputError("models to measure must be named, such as cifar10_cpu, got none")
    with app.quiet_import():
        from hne_tf import pretrained
        from hne_tf.evaluation import results

        runs = {name: pretrained.restore(name, values.data_dir) for name in positional}
    body = "\n\n".join(_section(name, run) for name, run in runs.items())
    print(body)
    if values.results:
        command = ["python", *app.command("benchmarks/stopping.py", values), *positional]
        results.write_page(pathlib.Path(values.results), "Stopping rules", command, body)


def _section(name: str, run: "TrainedRun") -> str:
    """The tables of a model, Markdown."""
    evaluation = run.evaluate("test")
    by_rule = {
        rule: {row["target_multiply_adds"]: row for row in stopping["curve"]}
        for rule, stopping in evaluation["early_stopping_by_rule"].items()
    }
    targets = sorted({target for curve in by_rule.values() for target in curve})
    full = evaluation["sizes"][-1]
    fitted_on = evaluation["early_stopping"]["examples"]
    return "\n\n".join(
        (
            f"## {name}",
            f"All leaves: {full['accuracy']:.2%} at {full['multiply_adds']:,} multiply-adds. "
            f"{evaluation['examples']:,} test images; thresholds fitted on {fitted_on:,} "
            "validation images. Costs are those of walking leaf by leaf, means over images.",
            "Test accuracy within each mean cost; the last column stops all images at one size, "
            "for what confidence has cost:",
            _table(targets, by_rule, "accuracy", "{:.2%}", anytime=True),
            "What was spent of it, on the test split:",
            _table(targets, by_rule, "multiply_adds", "{:,d}", anytime=False),
            "Accuracy, and lost: answers that some smaller ensemble, of any size, gets right and "
            "this one does not; for other averages of the same weights, see "
            "`hne_tf/models/averaging.py`:",
            _averages_table(run),
        )
    )


def _table(
    targets: Sequence[int],
    by_rule: dict[str, dict[int, Any]],
    figure: str,
    form: str,
    anytime: bool,
) -> str:
    """A row per target, a column per rule, and the mean over the targets that all rules meet."""
    from hne_tf.evaluation.tables import aligned

    columns = {
        rule: {target: row[figure] for target, row in curve.items()}
        for rule, curve in by_rule.items()
    }
    if anytime:
        rows = by_rule["confidence"].items()
        columns["one size"] = {target: row["anytime_accuracy"] for target, row in rows}
    cells = [
        [f"{target:,}", *(form.format(c[target]) if target in c else "-" for c in columns.values())]
        for target in targets
    ]
    common = [target for target in targets if all(target in c for c in columns.values())]
    if anytime and common:
        means = (np.mean([column[target] for target in common]) for column in columns.values())
        cells.append([f"mean of {len(common)}", *map(form.format, means)])
    return aligned(["mean multiply-adds", *columns], cells)


def _averages_table(run: "TrainedRun") -> str:
    """A row per average; a column per size, and per size after the first what is lost."""
    from hne_tf.evaluation.evaluation import inference
    from hne_tf.evaluation.measuring import measure
    from hne_tf.evaluation.tables import aligned
    from hne_tf.metrics import EnsembleAccuracy, LostAnswers

    sizes = run.model.tree.sizes
    metrics = [
        kind(sizes, average, f"{average}_{name}")
        for average in _AVERAGES
        for name, kind in (("accuracy", EnsembleAccuracy), ("lost", LostAnswers))
    ]
    measured = measure(inference(run.model), run.batches("test"), metrics)
    rows = [
        [
            average,
            *(f"{measured[f'{average}_accuracy_{size}']:.2%}" for size in sizes),
            *(f"{measured[f'{average}_lost_{size}']:.2%}" for size in sizes[1:]),
        ]
        for average in _AVERAGES
    ]
    heads = [*(f"accuracy, {size}" for size in sizes), *(f"lost, {size}" for size in sizes[1:])]
    return aligned(["average", *heads], rows)


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    return app.run("stopping", define_flags, main, argv, app.in_batches)


if __name__ == "__main__":
    sys.exit(run())
