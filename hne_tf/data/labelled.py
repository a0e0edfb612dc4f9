"""Labelled images as users have them, in batches: arrays or a `tf.data.Dataset`."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hne_tf.errors import InputError

# A pair of arrays, images uint8 `[examples, height, width, channels]` and labels
# `[examples]` or one-hot `[examples, classes]`, or a `tf.data.Dataset` of such pairs.
Labelled = tuple[Any, Any] | tf.data.Dataset


def batches(
    data: Labelled, image_shape: Sequence[int], batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Goes through labelled images once, in order.

    Args:
      data: arrays, or a data set of batches or of single examples.
      image_shape: `(height, width, channels)` that the model takes.
      batch_size: images per batch of what comes without batches.

    Yields:
      Images uint8 `[batch, height, width, channels]` and labels int `[batch]`.

    Raises:
      InputError: for anything else, or if there are no images.
    """
    empty = True
    for images, labels in _pairs(data, batch_size):
        checked = _checked_images(images, image_shape)
        # A batch whose images were all left out as corrupt.
        if len(checked):
            yield checked, _indices(labels, len(checked))
            empty = False
    if empty:
        raise InputError("data must hold at least one image, got none")


def _pairs(data: Labelled, batch_size: int) -> Iterator[tuple[Any, Any]]:
    if isinstance(data, tf.data.Dataset):
        yield from _batched(data, batch_size).as_numpy_iterator()
        return
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise InputError(
            "data must be a pair (images, labels) or a tf.data.Dataset of such pairs, "
            f"got {type(data).__name__}"
        )
    images, labels = map(np.asarray, data)
    if not images.ndim or not labels.ndim or len(images) != len(labels):
        raise InputError(
            "images and labels must be of one length, got shapes "
            f"{list(images.shape)} and {list(labels.shape)}"
        )
    for start in range(0, len(images), batch_size):
        yield images[start : start + batch_size], labels[start : start + batch_size]


def _batched(data: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    """The data set in batches; single examples are gathered."""
    spec = data.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise InputError(f"a data set must give pairs (images, labels), got {spec}")
    return data.batch(batch_size) if spec[0].shape.rank == 3 else data


def _checked_images(images: Any, image_shape: Sequence[int]) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.shape[1:] != tuple(image_shape):
        raise InputError(
            f"images must be uint8 of shape [batch, {', '.join(map(str, image_shape))}], "
            f"got {images.dtype.name} of {list(images.shape)}"
        )
    return images


def _indices(labels: Any, count: int) -> np.ndarray:
    """Labels as class indices; those of one-hot rows are where they are largest."""
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] > 1:
        labels = labels.argmax(axis=1)
    return labels.reshape(count)
