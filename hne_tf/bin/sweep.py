"""Runs what a sweep lacks and shows its table.

    hne-sweep --config=configs/sweeps/objectives_digits.py \\
        --root=runs/sweeps/objectives_digits --results=results/objectives_digits.md

Runs are kept in the root by the digest of their settings: those that are
finished are not run again, whichever sweep they were made for. It may be
stopped or killed at any time; the same command goes on from there.

With the figures beside an earlier page, groups can be added to a sweep whose root
is gone: --figures=results/objectives_digits.json.

Needs an extra: pip install 'hne_tf[sweeps]'
"""

import pathlib
import sys
import typing
from collections.abc import Sequence
from typing import Any

import ml_collections
from absl import flags

from hne_tf.bin import app, config_file
from hne_tf.errors import InputError, InterruptedRunError

if typing.TYPE_CHECKING:
    from hne_tf.sweeps.plan import Sweep


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this binary."""
    config_file.define(
        values, argv, "Config file of the sweep, e.g. configs/sweeps/objectives_digits.py."
    )
    app.define_path(values, "root", None, "Folder that keeps the runs.")
    flags.DEFINE_integer("jobs", 1, "Runs at a time.", lower_bound=1, flag_values=values)
    app.define_path(values, "data_dir", None, "Where the data set lies, if not in its usual place.")
    app.define_path(
        values,
        "figures",
        None,
        "JSON beside an earlier page of results: groups with all runs in it are not run again.",
    )
    app.define_path(
        values,
        "results",
        None,
        "Also write a page of results, e.g. results/objectives.md, and beside it the picture and "
        "the figures of every run as JSON.",
    )
    flags.mark_flags_as_required(["config", "root"], values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Runs the sweep with the parsed flags."""
    app.reject_positional(positional)
    config = ml_collections.ConfigDict(values.config)
    # TensorFlow is loaded for the page only: the runs have processes of their own.
    from hne_tf.sweeps import earlier, plan, report
    from hne_tf.sweeps.runner import Runner
    from hne_tf.sweeps.store import Store

    if values.data_dir is not None and "base" in config:
        config.base.data.data_dir = values.data_dir
    sweep = plan.parse(config)
    splits = (sweep.split, "train")
    figures = pathlib.Path(values.figures) if values.figures else None
    known = earlier.measured(figures, sweep) if figures else {}
    store = Store(pathlib.Path(values.root))
    with store.claimed(_say) as lock:
        missing = [
            run
            for run in sweep.runs
            if run.group not in known and store.evaluations(run, splits) is None
        ]
        _say(f"{len(sweep.runs)} runs, {len(sweep.runs) - len(missing)} of them finished")
        outcome = Runner(store, lock, splits, values.jobs, _say).run(missing)
        evaluations = {
            (run.group, run.seed): found
            for run in sweep.runs
            if (found := store.evaluations(run, splits)) is not None
        }
    summary = report.summarise(sweep, evaluations, known)
    print(report.markdown(summary))
    print(report.comparisons(sweep, summary))
    if outcome.stopped:
        raise InterruptedRunError("stopped before the end; the same command goes on from there")
    if values.results:
        note = earlier.described(known, figures) if known else ""
        _write_page(pathlib.Path(values.results), sweep, summary, _command(values), note)
    if outcome.failed:
        raise InputError(f"{len(outcome.failed)} of {len(sweep.runs)} runs failed, see above")


def _command(values: flags.FlagValues) -> list[str]:
    """The command that these flags were given by, for the page.

    Without the place of the data, which is no part of what was measured.
    """
    command = ["hne-sweep"]
    for name in values:
        flag = values[name]
        if not flag.present or name == "data_dir":
            continue
        # The flag of a tuple has a list, and is serialised as a flag for each item.
        is_tuple = isinstance(flag.value, list)
        command.append(f"--{name}={tuple(flag.value)!r}" if is_tuple else flag.serialize())
    return command


def _write_page(
    page: pathlib.Path, sweep: "Sweep", summary: dict[str, Any], command: list[str], note: str
) -> None:
    """Writes the page, the picture and the figures."""
    with app.quiet_import():
        from hne_tf.evaluation import results
    from hne_tf.files import write_json
    from hne_tf.sweeps import report

    picture, figures = page.with_suffix(".png"), page.with_suffix(".json")
    body = (
        f"![Accuracy against multiply-adds]({picture.name})\n\n{report.markdown(summary)}\n\n"
        f"[Figures of every run]({figures.name}). {note}".strip()
        + f"\n\n{report.comparisons(sweep, summary)}\n\n## Settings\n\n{report.settings(sweep)}"
    )
    results.write_page(page, sweep.title, command, body)
    report.plot(summary, picture)
    write_json(figures, summary)
    print(f"Written: {page}, {picture}, {figures}")


def _say(line: str) -> None:
    """Prints a line at once: a sweep is watched for hours, through a file perhaps."""
    print(line, flush=True)


def _by_each_run(values: flags.FlagValues) -> None:
    """Runs have processes of their own, which choose as `hne-train` does."""
    del values


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the binary; returns its exit code."""
    return app.run("hne-sweep", define_flags, main, argv, _by_each_run)


if __name__ == "__main__":
    sys.exit(run())
