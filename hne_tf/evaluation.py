"""One pass over a split gives every figure of every ensemble size."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf


def inference(model: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """The model as a graph function of images, in inference mode."""
    return tf.function(lambda images: model(images, training=False), reduce_retracing=True)


def measure(
    predict: Callable[[tf.Tensor], tf.Tensor],
    batches: Iterable[tuple[Any, Any]],
    metrics: Sequence[keras.metrics.Metric],
) -> dict[str, float]:
    """Runs all metrics over the batches in one pass.

    Args:
      predict: images `[batch, height, width, channels]` to leaf logits.
      batches: `(images, labels)`.
      metrics: metrics with a dictionary as their result, see `metrics.py`.

    Returns:
      The metrics' results in one dictionary.
    """
    for images, labels in batches:
        leaf_logits = predict(images)
        for metric in metrics:
            metric.update_state(labels, leaf_logits)
    return {name: float(value) for metric in metrics for name, value in metric.result().items()}
