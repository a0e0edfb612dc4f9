"""Calibration of a pretrained model: temperatures, corrupted images, prediction sets.

    python benchmarks/calibration.py cifar10_cpu --data_dir=/data/tfds

Temperatures and limits are fitted on the validation split of the model's data and judged on the
test split, and on corrupted test images; see `hne_tf.evaluation.calibration`. Three minutes a model
on 2 cores.
"""

import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from hne_tf.bin import app
from hne_tf.errors import InputError

if TYPE_CHECKING:
    from hne_tf.evaluation.calibration import SplitAnswers
    from hne_tf.training.trained import TrainedRun

COVERAGES = (0.8, 0.9, 0.95)
SEVERITIES = (1, 3, 5)


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this benchmark."""
    del argv
    # Flags may come after the models.
    values.set_gnu_getopt()
    app.define_path(values, "data_dir", None, "Where the data lie, if not where TFDS keeps them.")
    flags.DEFINE_integer(
        "corruption_examples",
        2000,
        "Test images that are corrupted.",
        lower_bound=1,
        flag_values=values,
    )
    app.define_path(values, "results", None, "Also write the tables to this Markdown page.")


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Prints three tables for each pretrained model."""
    if not positional:
        raise InputError("models to measure must be named, such as cifar10_cpu, got none")
    with app.quiet_import():
        from hne_tf import pretrained
        from hne_tf.evaluation import results

        runs = {name: pretrained.restore(name, values.data_dir) for name in positional}
    examples = values.corruption_examples
    body = "\n\n".join(_section(name, run, examples) for name, run in runs.items())
    print(body)
    if values.results:
        command = ["python", *app.command("benchmarks/calibration.py", values), *positional]
        results.write_page(pathlib.Path(values.results), "Calibration", command, body)


def _section(name: str, run: "TrainedRun", examples: int) -> str:
    """The tables of a model, Markdown."""
    from hne_tf.evaluation import calibration, evaluation

    validation = evaluation.split_answers(run.model, run.batches("validation"))
    test = evaluation.split_answers(run.model, run.batches("test"))
    temperatures = calibration.fit_temperatures(validation)
    sizes = run.model.tree.sizes
    corrupted = [evaluation.split_answers(run.model, pair) for pair in _corrupted(run, examples)]
    return "\n\n".join(
        (
            f"## {name}",
            f"Fitted on {len(validation.labels):,} validation images, judged on "
            f"{len(test.labels):,} test images, before -> after the temperature of each size:",
            _figures([test], temperatures, sizes, ("ece", "adaptive_ece", "nll", "brier")),
            f"{examples:,} test images, corrupted in {len(corrupted)} ways (severities "
            f"{', '.join(map(str, SEVERITIES))}); means over the ways, with the same temperatures:",
            _figures(corrupted, temperatures, sizes, ("ece", "nll")),
            "Prediction sets: how many of the test images' hold the label, and their mean number "
            "of classes:",
            _sets(validation, test, sizes),
        )
    )


def _corrupted(run: "TrainedRun", examples: int) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """The first test images, corrupted in one way after the other."""
    from hne_tf.data.corruptions import CORRUPTIONS, corrupt

    ((images, labels),) = run.data_set.evaluation_batches("test", examples).take(1)
    images, labels = images.numpy(), labels.numpy()
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            yield corrupt(images, name, severity, 0), labels


def _figures(
    splits: Sequence["SplitAnswers"],
    temperatures: Sequence[float],
    sizes: Sequence[int],
    names: Sequence[str],
) -> str:
    """A row per size: figures before and after its temperature, means over splits."""
    from hne_tf.evaluation import calibration
    from hne_tf.evaluation.tables import aligned

    after = [calibration.rescaled(split, temperatures) for split in splits]
    rows = []
    for size in sizes:
        pairs = [
            [np.mean([calibration.figures(each, size)[name] for each in group]) for name in names]
            for group in (splits, after)
        ]
        cells = (f"{a:.4f} -> {b:.4f}" for a, b in zip(*pairs, strict=True))
        rows.append([str(size), f"{temperatures[size - 1]:.3f}", *cells])
    return aligned(["size", "temperature", *names], rows)


def _sets(validation: "SplitAnswers", test: "SplitAnswers", sizes: Sequence[int]) -> str:
    """A row per coverage that was asked for and method, a column per size."""
    from hne_tf.evaluation import calibration
    from hne_tf.evaluation.tables import aligned

    rows = []
    for coverage in COVERAGES:
        measured = calibration.measured(validation, test, sizes, coverage)
        for method in measured["limits"]:
            found = [row["sets"][method] for row in measured["sizes"]]
            cells = (f"{each['coverage']:.1%} of {each['size']:.2f}" for each in found)
            rows.append([f"{coverage:.0%}", method, *cells])
    return aligned(["asked for", "method", *(f"size {size}" for size in sizes)], rows, {"method"})


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    return app.run("calibration", define_flags, main, argv, app.in_batches)


if __name__ == "__main__":
    sys.exit(run())
