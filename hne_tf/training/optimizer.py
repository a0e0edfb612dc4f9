"""The optimiser that runs train with."""

import keras
import ml_collections
import tensorflow as tf

from hne_tf.errors import InputError
from hne_tf.training.config import default
from hne_tf.training.schedule import Schedule


class FusedSGD(keras.optimizers.SGD):
    """`keras.optimizers.SGD`, with one TensorFlow kernel for a weight where Keras takes nine.

    A tree of 16 has hundreds of small weights. Their updates were a quarter of the operations of
    a step, each of which is traced, placed and optimised before the first one is taken.
    """

    def update_step(
        self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor
    ) -> None:
        if not self.momentum or isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable, learning_rate)
            return
        velocity = self.momentums[self._get_variable_index(variable)].value
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=velocity.handle,
            lr=tf.cast(learning_rate, variable.dtype),
            grad=gradient,
            momentum=tf.cast(self.momentum, variable.dtype),
            use_nesterov=self.nesterov,
        )


def sgd(config: ml_collections.ConfigDict, schedule: Schedule) -> keras.Optimizer:
    """SGD with Nesterov momentum, linear warm-up and cosine decay to 0.

    Raises:
      InputError: for a learning rate of 0 or below, a momentum outside [0, 1)
        or a warm-up below 0 or as long as the run; the default one is shortened.
    """
    section = config.optimizer
    warmup = round(section.warmup_epochs * schedule.steps_per_epoch)
    if not section.learning_rate > 0:
        raise InputError(f"optimizer.learning_rate must be above 0, got {section.learning_rate}")
    if not 0 <= section.momentum < 1:
        raise InputError(f"optimizer.momentum must lie in [0, 1), got {section.momentum}")
    if warmup >= schedule.total and section.warmup_epochs == default().optimizer.warmup_epochs:
        # Nobody has chosen it for so short a run.
        warmup = schedule.total // 2
    if not 0 <= warmup < schedule.total:
        raise InputError(
            "optimizer.warmup_epochs must be 0 or more and shorter than the run, "
            f"got {section.warmup_epochs}"
        )
    rate = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else section.learning_rate,
        decay_steps=schedule.total - warmup,
        warmup_target=section.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    return FusedSGD(rate, momentum=section.momentum, nesterov=section.momentum > 0, name="sgd")
