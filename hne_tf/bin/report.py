"""One HTML page on runs that have been evaluated: hne-report runs/digits --output=report.html.

The page needs no network. It draws accuracy against compute for all runs, and for each its
tree, reliability diagrams, tables, and a slider for the budget that shows which ensemble
answers and what it gets right. Latencies come from exports of the runs, named by --models.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from hne_tf.bin import app
from hne_tf.errors import InputError


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this binary."""
    del argv
    flags.DEFINE_string("output", "report.html", "The page to write.", flag_values=values)
    flags.DEFINE_string("title", "hne_tf report", "Heading of the page.", flag_values=values)
    flags.DEFINE_list(
        "models",
        [],
        "Folders of versions exported from the runs, e.g. models/digits/1, for their latencies.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "pictures", 48, "Test images to show.", lower_bound=0, upper_bound=1000, flag_values=values
    )
    flags.DEFINE_string(
        "data_dir", None, "Where the data set lies, if it has moved.", flag_values=values
    )


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Writes the page with the parsed flags."""
    paths = [pathlib.Path(argument) for argument in positional]
    if not paths:
        raise InputError("hne-report must be given one workdir or more, got none")
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise InputError(f"workdirs must differ, got {' '.join(positional)}")
    with app.quiet_import():
        from hne_tf import config, trained
        from hne_tf.files import write_text
        from hne_tf.report import data, page
        from hne_tf.workdir import Workdir

    latencies = data.latencies([pathlib.Path(model) for model in values.models])
    # What has not been evaluated is said before anything is loaded.
    workdirs = [Workdir(path) for path in paths]
    evaluations = [data.read_evaluation(workdir) for workdir in workdirs]
    names = [path.name for path in resolved]
    runs = []
    for workdir, evaluation, path in zip(workdirs, evaluations, resolved, strict=True):
        run = trained.restore(workdir, values.data_dir)
        name = path.name if names.count(path.name) == 1 else str(workdir.path)
        latency = latencies.pop(config.digest(run.config), None)
        runs.append(data.describe(name, run, evaluation, latency, values.pictures))
    if latencies:
        raise InputError(
            f"--models must be exports of the runs, got {len(latencies)} of other runs among "
            f"{','.join(values.models)}"
        )
    output = pathlib.Path(values.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, page.render(values.title, runs))
    print(f"Written: {output}")


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the binary; returns its exit code."""
    return app.run("hne-report", define_flags, main, argv)


if __name__ == "__main__":
    sys.exit(run())
