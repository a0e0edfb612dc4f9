"""The optimiser that runs train with."""

from typing import Any

import keras
import ml_collections

from hne_tf.errors import InputError
from hne_tf.training.config import default
from hne_tf.training.schedule import Schedule


def optimizer(config: ml_collections.ConfigDict, schedule: Schedule) -> keras.Optimizer:
    """SGD with Nesterov momentum or AdamW, with linear warm-up and cosine decay to 0.

    Raises:
      InputError: for another name, a learning rate of 0 or below, a momentum outside
        [0, 1) or a warm-up below 0 or as long as the run; the default one is shortened.
    """
    section = config.optimizer
    if section.name not in _KINDS:
        raise InputError(f"optimizer.name must be one of {', '.join(_KINDS)}, got {section.name!r}")
    if not 0 <= section.momentum < 1:
        raise InputError(f"optimizer.momentum must lie in [0, 1), got {section.momentum}")
    return _KINDS[section.name](section, _learning_rate(section, schedule))


def _learning_rate(
    section: ml_collections.ConfigDict, schedule: Schedule
) -> keras.optimizers.schedules.LearningRateSchedule:
    warmup = round(section.warmup_epochs * schedule.steps_per_epoch)
    if not section.learning_rate > 0:
        raise InputError(f"optimizer.learning_rate must be above 0, got {section.learning_rate}")
    if warmup >= schedule.total and section.warmup_epochs == default().optimizer.warmup_epochs:
        # Nobody has chosen it for so short a run.
        warmup = schedule.total // 2
    if not 0 <= warmup < schedule.total:
        raise InputError(
            "optimizer.warmup_epochs must be 0 or more and shorter than the run, "
            f"got {section.warmup_epochs}"
        )
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else section.learning_rate,
        decay_steps=schedule.total - warmup,
        warmup_target=section.learning_rate if warmup else None,
        warmup_steps=warmup,
    )


def _sgd(section: ml_collections.ConfigDict, rate: Any) -> keras.Optimizer:
    kind = keras.optimizers.SGD
    if keras.backend.backend() == "tensorflow":
        from hne_tf.training.backends import fused_sgd

        kind = fused_sgd.FusedSGD
    return kind(rate, momentum=section.momentum, nesterov=section.momentum > 0, name="sgd")


def _adamw(section: ml_collections.ConfigDict, rate: Any) -> keras.Optimizer:
    if not section.weight_decay >= 0:
        raise InputError(f"weight_decay must be 0 or more, got {section.weight_decay}")
    adamw = keras.optimizers.AdamW(
        rate, weight_decay=section.weight_decay, beta_1=section.momentum, name="adamw"
    )
    adamw.exclude_from_weight_decay(var_names=_NOT_DECAYED)
    return adamw


_KINDS = {"sgd": _sgd, "adamw": _adamw}
# Names of weights that are not the kernels of layers.
_NOT_DECAYED = ["bias", "gamma", "beta"]
