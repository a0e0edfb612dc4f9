"""Makes a trained run smaller: hne-compress --workdir=RUN --method=quantize --output=FOLDER.

quantize rounds weights and activations to 8-bit integers; prune sets the smallest weights to 0;
cluster leaves few distinct weights. With --epochs the run is trained further meanwhile. The new
folder is a run for hne-evaluate and hne-export.

Needs extras: pip install 'hne_tf[compress,data]'
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from hne_tf.bin import app
from hne_tf.errors import InputError

# Flags that count for one method only.
_METHOD_FLAGS = {"sparsity": "prune", "structure": "prune", "clusters": "cluster"}
# Quantisation does without training and hardly moves the weights; the others
# have an accuracy to win back.
_DEFAULTS = {
    "quantize": {"epochs": 0.0, "learning_rate": 0.001},
    "prune": {"epochs": 5.0, "learning_rate": 0.01},
    "cluster": {"epochs": 5.0, "learning_rate": 0.01},
}


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this binary."""
    del argv
    app.define_run_flags(values)
    flags.DEFINE_enum(
        "method", None, ["quantize", "prune", "cluster"], "What to do.", flag_values=values
    )
    app.define_path(values, "output", None, "Folder to make.")
    flags.DEFINE_float(
        "epochs",
        None,
        "Epochs of fine-tuning: 0 for quantize and 5 for the others, if not given.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "learning_rate",
        None,
        "Learning rate of the first step: 0.01 for prune, else 0.001, if not given.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "sparsity",
        None,
        "For prune: share of zeros in each kernel; 0.5 if not given.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "structure",
        None,
        ["2:4"],
        "For prune, instead of --sparsity: zeros in two of every four input channels.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "clusters",
        None,
        "For cluster: distinct values in each kernel; 16 if not given.",
        flag_values=values,
    )
    flags.mark_flags_as_required(["method", "output"], values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Compresses with the parsed flags."""
    app.reject_positional(positional)
    _check_flags(values)
    with app.quiet_import():
        from hne_tf.compression.compressed_run import compress_run
        from hne_tf.compression.compressor import Settings

    names = ("epochs", "learning_rate", "sparsity", "structure", "clusters")
    given = {name: values[name].value for name in names if values[name].value is not None}
    settings = Settings(values.method, **(_DEFAULTS[values.method] | given))
    output = pathlib.Path(values.output)
    compress_run(app.restore_run(values), settings, output)


def _check_flags(values: flags.FlagValues) -> None:
    """Raises `InputError` for a flag that would count for nothing."""
    for flag, method in _METHOD_FLAGS.items():
        if values[flag].value is not None and values.method != method:
            raise InputError(
                f"--{flag} is for --method={method}, got it with --method={values.method}"
            )
    if values.sparsity is not None and values.structure is not None:
        raise InputError(
            "one of --sparsity and --structure can be given, got "
            f"--sparsity={values.sparsity} and --structure={values.structure}"
        )
    epochs = _DEFAULTS[values.method]["epochs"] if values.epochs is None else values.epochs
    if values.learning_rate is not None and epochs == 0:
        raise InputError(
            f"--learning_rate is for fine-tuning, got {values.learning_rate} without --epochs"
        )


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the binary; returns its exit code."""
    return app.run("hne-compress", define_flags, main, argv, app.in_batches)


if __name__ == "__main__":
    sys.exit(run())
