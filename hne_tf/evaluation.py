"""One pass over a split gives every figure of every ensemble size."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from hne_tf import cost
from hne_tf.metrics import (
    BrierScore,
    Disagreement,
    EnsembleAccuracy,
    ExpectedCalibrationError,
    LeafAccuracy,
    NegativeLogLikelihood,
)
from hne_tf.trained import TrainedRun

# Figures per ensemble size, in the order of tables.
FIGURES = ("accuracy", "nll", "ece", "brier", "disagreement")


def evaluate(
    run: TrainedRun, split: str, sizes: Sequence[int] | None = None, batch_size: int = 256
) -> dict[str, Any]:
    """Measures a run on a split.

    Args:
      run: the trained run.
      split: `"test"`, `"validation"` or `"train"`.
      sizes: ensemble sizes, `tree.sizes` by default.
      batch_size: images per call.

    Returns:
      `sizes`: a row per ensemble size with its `size`, `accuracy`, `nll`
      (nats), `ece`, `brier`, `disagreement`, `multiply_adds` and `parameters`;
      `leaf_accuracy`: one per leaf; `mean_leaf_accuracy`; and `split`,
      `examples`, `step` and `total_steps`.
    """
    tree, average = run.model.tree, run.config.objective.average
    sizes = tuple(sizes or tree.sizes)
    metrics = [
        EnsembleAccuracy(sizes, average),
        NegativeLogLikelihood(sizes, average),
        ExpectedCalibrationError(sizes, average=average),
        BrierScore(sizes, average),
        Disagreement(sizes),
        LeafAccuracy(tree.leaves),
    ]
    batches = run.data_set.evaluation_batches(split, batch_size)
    measured = measure(inference(run.model), batches, metrics)
    leaves = [measured[f"leaf_accuracy_{leaf}"] for leaf in range(tree.leaves)]
    costs = cost.per_size(run.model, sizes)
    return {
        "split": split,
        "examples": run.data_set.examples(split),
        "step": run.step,
        "total_steps": run.total_steps,
        "sizes": [
            {
                "size": size,
                **{figure: measured[f"{figure}_{size}"] for figure in FIGURES},
                "multiply_adds": costs[size].multiply_adds,
                "parameters": costs[size].parameters,
            }
            for size in sizes
        ],
        "leaf_accuracy": leaves,
        "mean_leaf_accuracy": sum(leaves) / len(leaves),
    }


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
