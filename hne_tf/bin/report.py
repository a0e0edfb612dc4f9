"""Shows runs on one page of HTML: hne-report runs/digits runs/exits --output=report.html.

Accuracy against cost, calibration, the tree, test images, and a slider for the budget that shows
which size answers and what it gets right. The runs must have been evaluated with hne-evaluate;
latencies come from the manifests of models that were exported from them (--models). The page is
one file that needs no network.

Test images need an extra, unless --pictures=0: pip install 'hne_tf[data]'
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from hne_tf.bin import app


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this binary."""
    del argv
    # Flags may come after the workdirs.
    values.set_gnu_getopt()
    app.define_path(values, "output", "report.html", "The page to write.")
    app.define_paths(
        values,
        "models",
        [],
        "Versions' folders and TFLite files exported from the runs, with commas between them, "
        "whose manifests tell latencies.",
    )
    flags.DEFINE_integer(
        "pictures",
        40,
        "Test images to show of each run; 0 for none, which needs no data set.",
        lower_bound=0,
        upper_bound=1000,
        flag_values=values,
    )
    app.define_path(values, "data_dir", None, "Where the data sets lie, if they have moved.")


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Reports with the parsed flags."""
    with app.quiet_import():
        from hne_tf.exported.model import load
        from hne_tf.report import data, page
        from hne_tf.training.workdir import Workdir

    workdirs = [Workdir(pathlib.Path(path)) for path in positional]
    models = [load(path) for path in values.models]
    collected = data.collect(workdirs, models, values.pictures, values.data_dir)
    output = pathlib.Path(values.output)
    page.write(output, collected)
    print(f"Written: {output}")


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the binary; returns its exit code."""
    return app.run("hne-report", define_flags, main, argv, app.in_batches)


if __name__ == "__main__":
    sys.exit(run())
