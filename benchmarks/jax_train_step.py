"""Training steps on JAX: images per second of each form of a config's model.

    KERAS_BACKEND=jax python benchmarks/jax_train_step.py --config=configs/cifar10_small.py

Takes steps as `hne-train` does, on images made up, with the device at hand, and prints how
many FLOP/s they amount to: 2 for a multiply-add, 3 times the forward pass. Beside it stand
those of one large matrix product. Compiling is a column of its own. Needs no TensorFlow.

    python benchmarks/jax_train_step.py --measured=grouped.json,branched.json \\
        --results=results/jax_train_step.md

makes a page of what `--json` wrote on a machine with an accelerator.
"""

import dataclasses
import datetime
import itertools
import json
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import flags

from hne_tf.bin import app, config_file
from hne_tf.errors import InputError
from hne_tf.files import write_json, write_text

FORMS, PRECISIONS = ("grouped", "branched"), ("float32", "bfloat16")


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this benchmark."""
    config_file.define(values, argv, "Config file of the experiment.")
    flags.DEFINE_list("forms", list(FORMS), "Some of grouped and branched.", flag_values=values)
    flags.DEFINE_list(
        "precisions", list(PRECISIONS), "Some of float32 and bfloat16.", flag_values=values
    )
    flags.DEFINE_list("batch_sizes", [], "Images per step; the config's.", flag_values=values)
    flags.DEFINE_bool(
        "depthwise_library",
        False,
        "Also measure with depthwise convolutions of XLA's own.",
        flag_values=values,
    )
    flags.DEFINE_integer("calls", 4, "Timed calls of steps_per_call.", 1, flag_values=values)
    flags.DEFINE_integer("matrix", 8192, "Rows of the matrices; 0 for none.", 0, flag_values=values)
    app.define_path(values, "json", None, "Also write the rows to this file.")
    app.define_paths(values, "measured", [], "Files of rows to make the page of; measure nothing.")
    app.define_path(values, "results", None, "Also write the table to this Markdown page.")


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Prints rows as soon as they are measured, and the table of them."""
    app.reject_positional(positional)
    if values.measured:
        measured = [json.loads(pathlib.Path(path).read_text()) for path in values.measured]
    else:
        measured = [_measure(values)]
    page = _page(measured)
    print(page)
    if values.results:
        write_text(pathlib.Path(values.results), page)


def _measure(values: flags.FlagValues) -> dict[str, Any]:
    """What `--json` holds: the device, and a row of figures for each way to take steps."""
    _check(values)
    import jax

    device = jax.devices()[0]
    config = ml_collections.ConfigDict(values.config)
    multiply_adds = _multiply_adds(config)
    result = {
        "command": ["python", *app.command("benchmarks/jax_train_step.py", values)],
        "date": datetime.date.today().isoformat(),
        "device": device.device_kind,
        "jax": jax.__version__,
        "multiply_adds": multiply_adds,
        "matrix_tflops": {each: _matrix_tflops(values.matrix, each) for each in values.precisions},
        "rows": [],
    }
    print(f"{result['device']}, JAX {result['jax']}, {multiply_adds / 1e6:.1f} M multiply-adds")
    print(f"matrix product: {result['matrix_tflops']} TFLOP/s", flush=True)
    sizes = app.integers("batch_sizes", values.batch_sizes) or [config.training.batch_size]
    for form, size, precision in itertools.product(values.forms, sizes, values.precisions):
        kinds = ("shifted", "library") if values.depthwise_library else ("shifted",)
        for depthwise in kinds:
            row = _measured(config, (form, precision, size, depthwise), values.calls)
            row["tflops"] = 6 * multiply_adds * row["images_per_s"] / 1e12
            result["rows"].append(row)
            print("  ".join(f"{name}={_told(value)}" for name, value in row.items()), flush=True)
            if values.json:
                write_json(pathlib.Path(values.json), result)
    return result


def _page(measured: Sequence[dict[str, Any]]) -> str:
    """Markdown of what was measured on one device, the fastest rows first."""
    from hne_tf.evaluation.tables import aligned

    first = measured[0]
    words = ["layers", "precision", "depthwise"]
    header = [*words, "batch", "step (ms)", "images/s", "TFLOP/s", "build (s)", "compile (s)"]
    rows = sorted(
        (row for each in measured for row in each["rows"]), key=lambda row: row["step_ms"]
    )
    cells = [
        [
            *(row["form"], row["precision"], row["depthwise"], str(row["batch_size"])),
            *(f"{row['step_ms']:.2f}", f"{row['images_per_s']:,.0f}", f"{row['tflops']:.2f}"),
            *(f"{row['build_s']:.0f}", f"{row['compile_s']:.0f}"),
        ]
        for row in rows
    ]
    commands = "\n".join(f"KERAS_BACKEND=jax {shlex.join(each['command'])}" for each in measured)
    products = ", ".join(
        f"{tflops:.0f} TFLOP/s in {precision}"
        for precision, tflops in first["matrix_tflops"].items()
        if tflops
    )
    return (
        f"# Cost of a training step on JAX\n\n```bash\n{commands}\n```\n\n"
        f"{first['date']}; {first['device']}; jax {first['jax']}.\n\n"
        f"{aligned(header, cells, words)}\n\n"
        f"An image takes {first['multiply_adds'] / 1e6:.1f} M multiply-adds forward, and 3 times "
        "as many in a step, of 2 FLOP each. A large matrix product reaches "
        f"{products or 'what was not measured'}.\n"
    )


def _check(values: flags.FlagValues) -> None:
    import keras

    if values.config is None:
        raise InputError("--config must name a config file, got none")
    if keras.backend.backend() != "jax":
        raise InputError(f"KERAS_BACKEND must be jax, got {keras.backend.backend()}")
    for name, known in (("forms", FORMS), ("precisions", PRECISIONS)):
        if odd := set(getattr(values, name)) - set(known):
            raise InputError(f"--{name} takes some of {', '.join(known)}, got {', '.join(odd)}")


def _told(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _measured(config, row: tuple[str, str, int, str], calls: int) -> dict[str, Any]:
    """Compile time and images per second of one way to compute the step."""
    from hne_tf.image_spec import ImageSpec
    from hne_tf.training.backends import on_jax
    from hne_tf.training.backends.jax_run import JaxRun
    from hne_tf.training.machines.cluster import Cluster
    from hne_tf.training.schedule import Schedule

    form, precision, batch_size, depthwise = row
    config = ml_collections.ConfigDict(config.to_dict())
    config.training.update(factory=form, precision=precision, batch_size=batch_size)
    devices = on_jax.devices_of(config, Cluster())
    images = ImageSpec((32, 32, 3), tuple("0123456789"), (125.0,) * 3, (63.0,) * 3)
    started = time.perf_counter()
    model = _model(config, images, devices[0].platform != "cpu", depthwise)
    run = JaxRun(config, images, Schedule.of(config, 45_000), devices, model)
    built_s = time.perf_counter() - started
    random = np.random.default_rng(0)
    batch = (
        random.integers(0, 256, (batch_size, *images.shape)).astype(np.uint8),
        random.integers(0, 10, batch_size).astype(np.int32),
    )
    batches, count = itertools.repeat(batch), config.training.steps_per_call
    started = time.perf_counter()
    run.take_steps(batches, count)
    first_s = time.perf_counter() - started
    seconds = []
    for _ in range(calls):
        started = time.perf_counter()
        run.take_steps(batches, count)
        seconds.append((time.perf_counter() - started) / count)
    step_s = float(np.median(seconds))
    return {
        "form": form,
        "precision": precision,
        "batch_size": batch_size,
        "depthwise": depthwise,
        "build_s": built_s,
        "compile_s": first_s - count * step_s,
        "step_ms": 1000 * step_s,
        "images_per_s": batch_size / step_s,
    }


def _model(config, images, accelerated: bool, depthwise: str):
    """The model of the settings, with one kind of depthwise convolution."""
    from hne_tf.training import build

    model = build.training_model(config, images, accelerated, 1, config.training.precision)
    if depthwise == "shifted":
        return model
    layers = dataclasses.replace(model.factory, shifted=False)
    return type(model)(model.architecture, model.tree, images, layers, model.average)


def _multiply_adds(config) -> int:
    """Of one image through all networks."""
    from hne_tf.evaluation import cost
    from hne_tf.image_spec import ImageSpec
    from hne_tf.models.layers.deploy import DeployLayers
    from hne_tf.training import build

    images = ImageSpec((32, 32, 3), tuple("0123456789"), (125.0,) * 3, (63.0,) * 3)
    model = build.ensemble(config, DeployLayers(), images)
    leaves = model.tree.leaves
    return cost.per_size(model, [leaves])[leaves].multiply_adds


def _matrix_tflops(rows: int, precision: str) -> float | None:
    """What one product of square matrices reaches."""
    if not rows:
        return None
    import jax
    from jax import numpy as jnp

    matrix = jax.random.normal(jax.random.key(0), (rows, rows), jnp.dtype(precision))
    product = jax.jit(lambda x: jnp.matmul(x, x))
    product(matrix).block_until_ready()
    repeats = 10
    started = time.perf_counter()
    for _ in range(repeats):
        result = product(matrix)
    result.block_until_ready()
    return 2 * rows**3 * repeats / (time.perf_counter() - started) / 1e12


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    return app.run("jax_train_step", define_flags, main, argv)


if __name__ == "__main__":
    sys.exit(run())
