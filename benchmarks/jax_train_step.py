"""Training steps on JAX: images per second of each form of a config's model.

    KERAS_BACKEND=jax python benchmarks/jax_train_step.py --config=configs/cifar10_small.py

Takes steps as `hne-train` does, on images made up, with the device at hand, and prints how
many FLOP/s they amount to: 2 for a multiply-add, 3 times the forward pass. Beside it stand
those of one large matrix product. Compiling is a column of its own. Needs no TensorFlow.
"""

import dataclasses
import itertools
import json
import pathlib
import sys
import time
from collections.abc import Sequence

import ml_collections
import numpy as np
from absl import flags

from hne_tf.bin import app, config_file
from hne_tf.errors import InputError

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
    flags.mark_flags_as_required(["config"], values)


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Prints a row as soon as it is measured."""
    app.reject_positional(positional)
    _check(values)
    import jax

    device = jax.devices()[0]
    config = ml_collections.ConfigDict(values.config)
    multiply_adds = _multiply_adds(config)
    result = {
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
                pathlib.Path(values.json).write_text(json.dumps(result, indent=2) + "\n")


def _check(values: flags.FlagValues) -> None:
    import keras

    if keras.backend.backend() != "jax":
        raise InputError(f"KERAS_BACKEND must be jax, got {keras.backend.backend()}")
    for name, known in (("forms", FORMS), ("precisions", PRECISIONS)):
        if odd := set(getattr(values, name)) - set(known):
            raise InputError(f"--{name} takes some of {', '.join(known)}, got {', '.join(odd)}")


def _told(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _measured(config, row: tuple[str, str, int, str], calls: int) -> dict[str, object]:
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
