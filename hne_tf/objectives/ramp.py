"""Weights of a loss that grow as training goes on."""

from typing import Any

import keras
from keras import ops

from hne_tf.errors import InputError


def check_ramp(steps: int) -> int:
    """Returns `steps`; raises `InputError` if it is negative."""
    if not steps >= 0:
        raise InputError(f"ramp_steps must be 0 or more, got {steps}")
    return steps


def ramped(value: float, steps: int, iterations: keras.Variable | None) -> Any:
    """A weight that grows linearly from 0 to `value` over so many steps, if any.

    Raises:
      InputError: if there are steps that nothing counts.
    """
    if not steps:
        return value
    if iterations is None:
        raise InputError(
            f"ramp_steps={steps} must be counted: compile an ensemble with the "
            "loss, or set its iterations to optimizer.iterations"
        )
    return value * ops.minimum(ops.cast(iterations, "float32") / steps, 1.0)
