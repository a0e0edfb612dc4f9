"""Labels as objectives and metrics take them."""

from typing import Any

from keras import ops

from hne_tf.errors import InputError


def targets(labels: Any, like: Any, smoothing: float = 0.0) -> Any:
    """Class probabilities `[batch, classes]` of labels.

    Args:
      labels: class numbers `[batch]` or `[batch, 1]`, or a row per example `[batch,
        classes]`, one-hot or soft, which is taken as it is.
      like: a tensor `[..., classes]` that gives the number of classes and the type.
      smoothing: part of them that is spread evenly over all classes (Szegedy et al.,
        "Rethinking the Inception Architecture for Computer Vision", CVPR 2016).

    Raises:
      InputError: for labels of another shape.
    """
    labels, classes = ops.convert_to_tensor(labels), like.shape[-1]
    if _is_row(labels, classes):
        rows = ops.cast(labels, like.dtype)
    else:
        rows = ops.one_hot(_numbers(labels), classes, dtype=like.dtype)
    return (1.0 - smoothing) * rows + smoothing / classes if smoothing else rows


def check_smoothing(smoothing: float) -> float:
    """The part of labels that is spread over all classes.

    Raises:
      InputError: unless it lies in [0, 1).
    """
    if not 0 <= smoothing < 1:
        raise InputError(f"label_smoothing must lie in [0, 1), got {smoothing}")
    return smoothing


def class_numbers(labels: Any, classes: int) -> Any:
    """Class numbers `[batch]`, int32, of labels that `targets` takes.

    Raises:
      InputError: for labels of another shape.
    """
    labels = ops.convert_to_tensor(labels)
    if _is_row(labels, classes):
        return ops.cast(ops.argmax(labels, axis=-1), "int32")
    return _numbers(labels)


def _is_row(labels: Any, classes: int) -> bool:
    """Whether each example has a row of probabilities."""
    shape = tuple(labels.shape)
    if len(shape) < 2 or shape[1:] == (1,):
        return False
    if shape[1:] != (classes,):
        raise InputError(
            f"labels must be class numbers [batch] or rows [batch, {classes}], got shape {shape}"
        )
    return True


def _numbers(labels: Any) -> Any:
    return ops.cast(ops.reshape(labels, (-1,)), "int32")
