"""What an ensemble checks when it is compiled."""

from collections.abc import Callable
from typing import Any

import keras

from hne_tf.errors import InputError


def check_loss(loss: Any) -> None:
    """Raises `InputError` for a loss of Keras's own, which takes one answer per example."""
    if _is_keras_own(loss):
        raise InputError(
            "the loss must take leaf logits [batch, leaves, classes], such as "
            f"hne_tf.losses.Independent(), got Keras's {_name(loss)}"
        )


def check_metrics(metrics: Any) -> None:
    """Raises `InputError` for a metric of Keras's own, which takes one answer per example."""
    for metric in keras.tree.flatten(metrics):
        if _is_keras_own(metric):
            raise InputError(
                "metrics must take leaf logits [batch, leaves, classes], such as "
                f"hne_tf.metrics.EnsembleAccuracy(), got Keras's {_name(metric)}"
            )


def build_metrics(metrics: Any, leaf_logits_shape: tuple[int | None, ...]) -> None:
    """Makes the state of metrics that are built by the shape of leaf logits, as ours are."""
    for metric in keras.tree.flatten(metrics):
        if hasattr(metric, "build"):
            metric.build(leaf_logits_shape)


def _is_keras_own(measure: str | Callable[..., Any] | None) -> bool:
    """Whether a loss or metric is Keras's; one that wraps a function is the function's."""
    if measure is None or isinstance(measure, str):
        return measure is not None
    function = getattr(measure, "fn", None) or getattr(measure, "_fn", measure)
    return function.__module__.split(".")[0] == "keras"


def _name(measure: Any) -> str:
    if isinstance(measure, str):
        return repr(measure)
    return getattr(measure, "__name__", type(measure).__name__)
