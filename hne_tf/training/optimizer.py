"""The optimiser that runs train with."""

import keras
import ml_collections

from hne_tf.errors import InputError
from hne_tf.training.config import default
from hne_tf.training.schedule import Schedule


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
    kind = keras.optimizers.SGD
    if keras.backend.backend() == "tensorflow":
        from hne_tf.training.backends import fused_sgd

        kind = fused_sgd.FusedSGD
    return kind(rate, momentum=section.momentum, nesterov=section.momentum > 0, name="sgd")
