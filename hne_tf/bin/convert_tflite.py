"""Writes a run as a TFLite file: hne-convert-tflite --workdir=runs/digits --output=digits.tflite.

One file with one signature per ensemble size and per depth-first step, which share the
weights. It is verified, and its accuracy measured with the file itself, before it appears.

The data set of a run needs an extra: pip install 'hne_tf[data]'
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from hne_tf.bin import app
from hne_tf.exported import tflite_file

_FLOAT32_BYTES = 4


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this binary."""
    del argv
    app.define_run_flags(values)
    app.define_average(values)
    app.define_path(values, "output", None, "File to write, e.g. models/digits.tflite.")
    flags.DEFINE_enum(
        "mode",
        "float32",
        list(tflite_file.MODES),
        "Numbers in the file. float16: weights in half the bytes; dynamic_range: large weights in "
        "8 bits; int8: weights and activations in 8 bits, for a run trained with quantisation or "
        "by the ranges of some training images.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "sizes", [], "Ensemble sizes; powers of two and N if not given.", flag_values=values
    )
    flags.DEFINE_integer(
        "representative_images",
        500,
        "Training images that set the ranges of int8 after training.",
        flag_values=values,
    )
    app.define_uncertainty(values)
    flags.mark_flags_as_required(["output"], values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Converts with the parsed flags."""
    app.reject_positional(positional)
    sizes = app.integers("sizes", values.sizes)
    output = pathlib.Path(values.output)
    with app.quiet_import():
        from hne_tf.export import tflite

    tflite.check_path(output)
    run = app.restore_run(values)
    app.set_average(run, values)
    # The converter and the interpreter greet on standard error as TensorFlow does.
    with app.quiet_import():
        manifest = tflite.convert_tflite(
            run.model,
            output,
            values.mode,
            representative=run.representative(values.representative_images),
            test=run.batches("test"),
            validation=run.batches("validation"),
            sizes=sizes,
            stopping_rule=values.stopping_rule,
            calibrate=values.calibrate,
            coverage=values.coverage,
            record=run.record,
        )
    leaves = manifest.sizes[-1]
    parameter_bytes = _FLOAT32_BYTES * manifest.cost[leaves].parameters
    size_bytes = output.stat().st_size
    print(
        f"{size_bytes} bytes, {size_bytes / parameter_bytes:.2f} times the "
        f"{parameter_bytes} bytes of its parameters in float32"
    )
    accuracy = manifest.accuracy
    print(f"accuracy of the file on {accuracy.examples} {accuracy.split} images:")
    for size, value in accuracy.by_size.items():
        print(f"  {size:>3} of {leaves}: {value:.4f}")
    print(f"written {output}")


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the binary; returns its exit code."""
    return app.run("hne-convert-tflite", define_flags, main, argv, app.in_batches)


if __name__ == "__main__":
    sys.exit(run())
