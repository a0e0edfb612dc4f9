"""The loop that trains a compressed model further, on its run's data and objective."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections
import tensorflow as tf
import tf_keras

from hne_tf.errors import InputError
from hne_tf.metrics import EnsembleAccuracy
from hne_tf.training import build
from hne_tf.training.progress import Progress
from hne_tf.training.trained import TrainedRun

# Kernels with a batch norm folded in are of very different sizes, and nothing
# normalises what an unlucky step does to them: without the bound, a learning
# rate that trains one tree destroys another.
_GRADIENT_NORM = 1.0


def steps_of(run: TrainedRun, epochs: float) -> int:
    """Steps of so many epochs over the run's training split, at least 1 unless there are none."""
    steps = epochs * run.data_set.examples("train") / run.config.training.batch_size
    return max(1, round(steps)) if epochs else 0


def fine_tune(model: tf_keras.Model, run: TrainedRun, steps: int, learning_rate: float) -> float:
    """Trains a flat model with the run's objective, from where the run's batches ended.

    SGD with the run's momentum (Nesterov's), gradients scaled down to a norm of
    1, and a learning rate that decays to 0 by a cosine. The model's own losses,
    its weight decay, are added. A ramp of the objective has come to its end.

    Args:
      model: images to leaf logits `[batch, leaves, classes]`; changed in place.
      run: gives data, objective, batch size and seed.
      steps: to take.
      learning_rate: of the first step.

    Returns:
      The mean objective over the last steps between two looks at it.

    Raises:
      InputError: if the loss becomes infinite or no number.
    """
    config = run.config
    if config.training.deterministic:
        tf.config.experimental.enable_op_determinism()
    batch_size = config.training.batch_size
    batches = run.data_set.train_batches(
        batch_size=batch_size, start_step=run.step, total_steps=run.step + steps, seed=config.seed
    )
    take_steps = _stepper(model, config, run.model.tree.sizes, steps, learning_rate)
    tree = run.model.tree
    progress = Progress(steps, (tree.sizes[0], tree.leaves))
    step, record, source = 0, {"loss": math.nan}, iter(batches)
    with progress.started_at(0):
        while step < steps:
            count = min(config.training.steps_per_call, steps - step)
            started = time.perf_counter()
            record = take_steps(source, count)
            step += count
            if not math.isfinite(record["loss"]):
                raise InputError(
                    f"the loss must stay finite, got {record['loss']} by step {step} of the "
                    "fine-tuning; try a lower --learning_rate"
                )
            record["images_per_s"] = count * batch_size / (time.perf_counter() - started)
            progress.show(step, record)
    return record["loss"]


def _stepper(
    model: tf_keras.Model,
    config: ml_collections.ConfigDict,
    sizes: tuple[int, ...],
    steps: int,
    learning_rate: float,
) -> Callable[[Iterator[Any], int], dict[str, float]]:
    """Takes so many steps on batches; returns their mean loss and accuracies."""
    momentum = config.optimizer.momentum
    optimizer = tf_keras.optimizers.SGD(
        tf_keras.optimizers.schedules.CosineDecay(learning_rate, steps),
        momentum=momentum,
        nesterov=momentum > 0,
        global_clipnorm=_GRADIENT_NORM,
    )
    # Before the graph is made, which may create no variables.
    optimizer.build(model.trainable_variables)
    objective = build.objective(config, steps_per_epoch=None)
    if getattr(objective, "activations", ()):
        raise InputError(
            "a compressed model is trained further without activations of nodes, which "
            f"{config.objective.name} asks for"
        )
    mean_loss = tf_keras.metrics.Mean()
    accuracy = EnsembleAccuracy(sizes, config.objective.average)

    def one_step(images: tf.Tensor, labels: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            leaf_logits = model(images, training=True)
            per_example = objective.call(labels, leaf_logits)
            loss = tf.reduce_mean(per_example)
            if model.losses:
                loss += tf.add_n(model.losses)
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        mean_loss.update_state(per_example)
        accuracy.update_state(labels, leaf_logits)

    @tf.function
    def several_steps(batches: Iterator[Any], count: tf.Tensor) -> None:
        for _ in tf.range(count):
            one_step(*next(batches))

    def take_steps(batches: Iterator[Any], count: int) -> dict[str, float]:
        mean_loss.reset_state()
        accuracy.reset_state()
        several_steps(batches, tf.constant(count))
        accuracies = {name: float(value) for name, value in accuracy.result().items()}
        return {"loss": float(mean_loss.result()), **accuracies}

    return take_steps
