"""Publishes a run: hne-export --workdir=runs/digits --model_base_path=models/digits.

A SavedModel with one signature per ensemble size and per depth-first step, verified before
it appears.

The data set of a run needs an extra: pip install 'hne_tf[data]'
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
    app.define_run_flags(values)
    app.define_average(values)
    app.define_path(
        values, "model_base_path", None, "Folder of the model's versions; its name is the model's."
    )
    flags.DEFINE_integer(
        "version",
        None,
        "Number of the version; the next free one if not given.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "sizes", [], "Ensemble sizes; powers of two and N if not given.", flag_values=values
    )
    flags.DEFINE_list(
        "spread",
        [],
        "Numbers of servers that shall compute an answer together, such as 2,4: the leaves are "
        "parted in as many signatures leaves_<a>_<b>, for hne_tf.SpreadClient.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "batch_sizes", ["1"], "Batch sizes to warm up and to profile.", flag_values=values
    )
    flags.DEFINE_bool(
        "litert",
        False,
        "Also put the model as a TFLite file into the version, which hne-serve computes with "
        "LiteRT where that is faster.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "threads",
        [],
        "Numbers of threads to measure latency with, as hne-profile does; in this process if not "
        "given.",
        flag_values=values,
    )
    app.define_uncertainty(values)
    app.define_path(
        values,
        "weights",
        None,
        "Also write the weights, for hne_tf.from_pretrained, to this .npz file.",
    )
    flags.mark_flags_as_required(["model_base_path"], values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Exports with the parsed flags."""
    app.reject_positional(positional)
    sizes = app.integers("sizes", values.sizes)
    batch_sizes = app.integers("batch_sizes", values.batch_sizes)
    spread = app.integers("spread", values.spread)
    threads = app.integers("threads", values.threads)
    with app.quiet_import():
        from hne_tf import pretrained
        from hne_tf.export.exporter import export
        from hne_tf.exported.interface import split
        from hne_tf.exported.manifest import read_manifest

    weights_path = pathlib.Path(values.weights) if values.weights else None
    if weights_path and values.average:
        # Their description says how the run answers.
        raise InputError(f"--weights must be written without --average, got {values.average!r}")
    run = app.restore_run(values)
    app.set_average(run, values)
    if weights_path:
        pretrained.check(run, weights_path)
    parts = {part: None for number in spread for part in split(run.model.tree.leaves, number)}
    folder = export(
        run.model,
        values.model_base_path,
        test=run.batches("test"),
        validation=run.batches("validation"),
        version=values.version,
        sizes=sizes,
        leaves=[(part.first, part.stop) for part in parts],
        batch_sizes=batch_sizes,
        stopping_rule=values.stopping_rule,
        calibrate=values.calibrate,
        coverage=values.coverage,
        litert=values.litert,
        threads=threads,
        record=run.record,
    )
    print(f"published {folder}")
    if weights_path:
        pretrained.save(run, read_manifest(folder), weights_path)
        print(f"written {weights_path}")


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the binary; returns its exit code."""
    return app.run("hne-export", define_flags, main, argv, app.in_calls)


if __name__ == "__main__":
    sys.exit(run())
