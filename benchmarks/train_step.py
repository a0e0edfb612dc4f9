"""Cost of a training step of the tree against what its multiply-adds predict.

    python benchmarks/train_step.py

One process times a step of the N = 16 bottleneck tree and of the single network
(1, 1, 1, 1, 1) in turns. Were time proportional to multiply-adds, the tree's step
would take the single network's times the ratio of their multiply-adds; the last
column is the measured share of that.
"""

import pathlib
import sys
import time
from collections.abc import Sequence

import numpy as np
from absl import flags

from hne_tf.bin import app


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of this benchmark."""
    del argv
    flags.DEFINE_integer("batch_size", 32, "Images per step.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("rounds", 5, "Timed steps of each.", lower_bound=1, flag_values=values)
    flags.DEFINE_string(
        "results", None, "Also write the table to this Markdown page.", flag_values=values
    )


def main(values: flags.FlagValues, positional: list[str]) -> None:
    """Prints the table."""
    app.reject_positional(positional)
    with app.quiet_import():
        from hne_tf import cost, results

    trees = {"single network": (1, 1, 1, 1, 1), "tree, N = 16": (1, 2, 2, 2, 2)}
    steps, multiply_adds = {}, {}
    for name, branching in trees.items():
        model, step = _training_step(branching, values.batch_size)
        step()
        steps[name] = step
        multiply_adds[name] = cost.per_size(model, [model.tree.leaves])[
            model.tree.leaves
        ].multiply_adds
    seconds = {name: [] for name in trees}
    for _ in range(values.rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    single = "single network"
    base_s = float(np.median(seconds[single]))
    lines = [
        "| network | multiply-adds | step (ms) | images/s | share of predicted time |",
        "| :--- | ---: | ---: | ---: | ---: |",
    ]
    for name in trees:
        step_s = float(np.median(seconds[name]))
        ratio = multiply_adds[name] / multiply_adds[single]
        lines.append(
            f"| {name} | {multiply_adds[name]:,} | {1000 * step_s:.0f} "
            f"| {values.batch_size / step_s:.0f} | {step_s / (base_s * ratio):.3f} |"
        )
    table = "\n".join(lines)
    print(table)
    if values.results:
        command = ["python", *app.command("benchmarks/train_step.py", values)]
        results.write_page(pathlib.Path(values.results), "Cost of a training step", command, table)


def _training_step(branching: tuple[int, ...], batch_size: int):
    """A model with the small preset, and a function that takes one step with it."""
    import keras
    import tensorflow as tf

    from hne_tf.image_spec import ImageSpec
    from hne_tf.models.ensemble import TreeEnsemble
    from hne_tf.models.layers import TrainingLayers
    from hne_tf.models.resnet import PRESETS
    from hne_tf.objectives import HierarchicalDistillationLoss
    from hne_tf.tree import Tree

    cifar = ImageSpec((32, 32, 3), tuple("0123456789"), (125.0,) * 3, (63.0,) * 3)
    model = TreeEnsemble(PRESETS["small"], Tree(branching), TrainingLayers(5e-4), cifar)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)
    optimizer.build(model.trainable_variables)
    objective = HierarchicalDistillationLoss(model.tree.sizes)
    random = np.random.default_rng(0)
    images = tf.constant(random.integers(0, 256, (batch_size, 32, 32, 3)), tf.uint8)
    labels = tf.constant(random.integers(0, 10, batch_size), tf.int32)

    @tf.function
    def take_step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(objective.call(labels, model(images, training=True)))
            loss += tf.add_n(model.losses)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    return model, lambda: take_step().numpy()


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    return app.run("train_step", define_flags, main, argv)


if __name__ == "__main__":
    sys.exit(run())
