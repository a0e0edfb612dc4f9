"""Measures every ensemble size of a run in one pass: hne-evaluate --workdir=runs/digits.

Prints a table, and one of early stopping unless the split is validation, on which the
thresholds are fitted; with --corruption_examples also one of corrupted test images, and with
--other_data a line on images of other classes. Writes evaluation.json and accuracy.png and .svg
into the workdir; with --pretrained there is none.

Needs extras: pip install 'hne_tf[data,report]'
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import ml_collections
from absl import flags

from hne_tf.bin import app
from hne_tf.errors import InputError
from hne_tf.training.config import default, differences


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this binary."""
    del argv
    app.define_run_flags(values)
    flags.DEFINE_enum(
        "split", "test", ["test", "validation", "train"], "Split to use.", flag_values=values
    )
    app.define_average(values)
    flags.DEFINE_integer(
        "corruption_examples",
        0,
        "With --split=test: also measure that many test images under common corruptions; 0 for "
        "none.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_string(
        "other_data",
        None,
        "With --split=test: also measure how well the model tells its test images from those of "
        "this data set, named as --config.data.name.",
        flag_values=values,
    )
    app.define_path(values, "other_data_dir", None, "Where it lies, if not where TFDS keeps it.")
    flags.DEFINE_float(
        "coverage",
        0.9,
        "Probability that a prediction set holds the label.",
        flag_values=values,
    )
    app.define_path(
        values,
        "results",
        None,
        "Also write a page of results, e.g. results/digits.md, and the picture beside it.",
    )


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Evaluates with the parsed flags."""
    app.reject_positional(positional)
    examples, other = values.corruption_examples, values.other_data
    for flag, value in (("corruption_examples", examples), ("other_data", other)):
        if value and values.split != "test":
            raise InputError(
                f"--{flag} goes with the test split, got {value} with --split={values.split}"
            )
    with app.quiet_import():
        from hne_tf.evaluation import plots, results, tables

        if examples:
            from hne_tf.evaluation import robustness
        if other:
            from hne_tf.evaluation import out_of_distribution

    run = app.restore_run(values)
    app.set_average(run, values)
    result = run.evaluate(values.split, coverage=values.coverage)
    result["corruptions"] = (
        robustness.evaluate(run.model, run.batches("test"), examples) if examples else None
    )
    result["out_of_distribution"] = None
    if other:
        others = run.other_batches(other, values.other_data_dir)
        found = out_of_distribution.evaluate(run.model, run.batches("test"), others)
        result["out_of_distribution"] = {"data_set": other, **found}
    written = _write_into_workdir(values, result) if values.workdir else []
    print(tables.markdown(result))
    if values.results:
        page = pathlib.Path(values.results)
        body = f"![Accuracy against multiply-adds]({page.stem}.png)\n\n{tables.markdown(result)}"
        body += "\n\nTrained by `hne-train` with these overrides of the default settings:\n\n"
        body += f"```\n{_settings(run.config)}\n```"
        results.write_page(page, page.stem, app.command("hne-evaluate", values), body)
        written += [page, page.with_suffix(".png")]
        plots.plot(result, page.stem, written[-1:])
    if written:
        print(f"Written: {', '.join(map(str, written))}")


def _write_into_workdir(values: flags.FlagValues, result: dict[str, Any]) -> list[pathlib.Path]:
    """Writes the figures and their pictures; returns where."""
    from hne_tf.evaluation import plots
    from hne_tf.files import write_json
    from hne_tf.training.workdir import Workdir

    workdir = Workdir(pathlib.Path(values.workdir))
    path = workdir.evaluation_path(values.split, values.average)
    write_json(path, result)
    name = path.stem.replace("evaluation", "accuracy")
    pictures = [workdir.path / f"{name}.{kind}" for kind in ("png", "svg")]
    plots.plot(result, workdir.path.resolve().name, pictures)
    return [path, *pictures]


def _settings(config: ml_collections.ConfigDict) -> str:
    """The overrides that make the run from the defaults, a line each."""
    return "\n".join(
        f"--config.{field}={value!r}" for field, (_, value) in differences(default(), config)
    )


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the binary; returns its exit code."""
    return app.run("hne-evaluate", define_flags, main, argv, app.in_batches)


if __name__ == "__main__":
    sys.exit(run())
