"""The loop that trains a compressed model further."""

import dataclasses
import math
import time
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hne_tf.data import labelled
from hne_tf.data.labelled import Labelled
from hne_tf.errors import InputError, extra
from hne_tf.metrics import EnsembleAccuracy
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.training import build
from hne_tf.training.progress import Progress
from hne_tf.training.trained import TrainedRun

if typing.TYPE_CHECKING:
    import tf_keras

# Kernels with a batch norm folded in are of very different sizes, and nothing
# normalises what an unlucky step does to them: without the bound, a learning
# rate that trains one tree destroys another.
_GRADIENT_NORM = 1.0
# What losses ask for that a compressed model does not have.
_BESIDES = ("activations", "teacher", "adversary")


# Batches of `(images, labels)` for so many steps.
Batches = Callable[[int], Iterable[tuple[Any, Any]]]


@dataclasses.dataclass(frozen=True)
class Training:
    """What fine-tuning trains with.

    Attributes:
      batches: training batches for a number of steps.
      batch_size: images in each.
      examples: images in an epoch.
      loss: what is minimised, over labels `[batch]` and leaf logits
        `[batch, leaves, classes]`.
      momentum: of SGD, Nesterov's.
      weight_decay: coefficient of the gradient of the L2 penalty on kernels.
      steps_per_call: steps between two looks at the loss.
    """

    batches: Batches
    batch_size: int
    examples: int
    loss: keras.losses.Loss
    momentum: float = 0.9
    weight_decay: float = 0.0
    steps_per_call: int = 50

    def steps(self, epochs: float) -> int:
        """Steps of so many epochs, at least 1 unless there are no epochs."""
        return max(1, round(epochs * self.examples / self.batch_size)) if epochs else 0

    @classmethod
    def of_run(cls, run: TrainedRun) -> "Training":
        """The data and final objective of a run, from where its batches ended."""
        config = run.config

        def batches(steps: int) -> tf.data.Dataset:
            return run.data_set.train_batches(
                batch_size=config.training.batch_size,
                start_step=run.step,
                total_steps=run.step + steps,
                seed=config.seed,
            )

        return cls(
            batches,
            config.training.batch_size,
            run.data_set.examples("train"),
            build.objective(config, steps_per_epoch=None),
            config.optimizer.momentum,
            config.optimizer.weight_decay,
            config.training.steps_per_call,
        )

    @classmethod
    def of_data(
        cls,
        data: Labelled,
        model: TreeEnsemble,
        loss: keras.losses.Loss,
        batch_size: int = 64,
        seed: int = 0,
    ) -> "Training":
        """Labelled images of the user's, shuffled anew in every epoch and not augmented."""
        pairs = list(labelled.batches(data, model.images.shape, batch_size))
        images, labels = (np.concatenate(part) for part in zip(*pairs, strict=True))

        def batches(steps: int) -> tf.data.Dataset:
            examples = tf.data.Dataset.from_tensor_slices((images, labels))
            shuffled = examples.shuffle(len(images), seed).repeat()
            return shuffled.batch(batch_size, drop_remainder=True).take(steps)

        return cls(batches, batch_size, len(images), loss)


def fine_tune(
    model: "tf_keras.Model",
    ensemble: TreeEnsemble,
    training: Training,
    steps: int,
    learning_rate: float,
) -> float:
    """Trains a flat model.

    SGD with gradients scaled down to a norm of 1, and a learning rate that decays
    to 0 by a cosine. The model's own losses, its weight decay, are added.

    Args:
      model: images to leaf logits `[batch, leaves, classes]`; changed in place.
      ensemble: the model that it is the flat form of.
      training: data and objective.
      steps: to take.
      learning_rate: of the first step.

    Returns:
      The mean objective over the last steps between two looks at it.

    Raises:
      InputError: if the loss becomes infinite or not a number.
    """
    take_steps = _stepper(model, ensemble, training, steps, learning_rate)
    tree = ensemble.tree
    progress = Progress(steps, (tree.sizes[0], tree.leaves))
    step, record, source = 0, {"loss": math.nan}, iter(training.batches(steps))
    with progress.started_at(0):
        while step < steps:
            count = min(training.steps_per_call, steps - step)
            started = time.perf_counter()
            record = take_steps(source, count)
            step += count
            if not math.isfinite(record["loss"]):
                raise InputError(
                    f"the loss must stay finite, got {record['loss']} by step {step} of the "
                    "fine-tuning; try a lower --learning_rate"
                )
            record["images_per_s"] = count * training.batch_size / (time.perf_counter() - started)
            progress.show(step, record)
    return record["loss"]


def _stepper(
    model: "tf_keras.Model",
    ensemble: TreeEnsemble,
    training: Training,
    steps: int,
    learning_rate: float,
) -> Callable[[Iterator[Any], int], dict[str, float]]:
    """Takes so many steps on batches; returns their mean loss and accuracies."""
    with extra("compress"):
        import tf_keras

    momentum = training.momentum
    optimizer = tf_keras.optimizers.SGD(
        tf_keras.optimizers.schedules.CosineDecay(learning_rate, steps),
        momentum=momentum,
        nesterov=momentum > 0,
        global_clipnorm=_GRADIENT_NORM,
    )
    # Before the graph is made, which may create no variables.
    optimizer.build(model.trainable_variables)
    if any(getattr(training.loss, each, None) for each in _BESIDES):
        raise InputError(
            "a compressed model is trained further by a loss of leaf logits alone, got "
            f"{training.loss.name}, which asks for more"
        )
    mean_loss = tf_keras.metrics.Mean()
    accuracy = EnsembleAccuracy(ensemble.tree.sizes, ensemble.average)
    accuracy.build(model.output_shape)

    def one_step(images: tf.Tensor, labels: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            leaf_logits = model(images, training=True)
            per_example = training.loss.call(labels, leaf_logits)
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
