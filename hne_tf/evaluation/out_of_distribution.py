"""Whether a model is less sure of images that are of none of its classes."""

from typing import Any

from scipy import stats

from hne_tf.data.labelled import Labelled
from hne_tf.evaluation import evaluation
from hne_tf.models.ensemble import TreeEnsemble


def evaluate(model: TreeEnsemble, known: Labelled, other: Labelled) -> dict[str, Any]:
    """How well the highest probability tells a model's own images from others.

    Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution
    Examples in Neural Networks", ICLR 2017.

    Args:
      model: trained in whatever way.
      known: held-out images and labels of its classes, see `labelled.batches`.
      other: images of other classes; their labels don't count.

    Returns:
      JSON values: `examples`, the number of other images; and by size `auroc`, the probability
      that the model is surer of one of its own images than of another one. Keys are strings.

    Raises:
      InputError: for images that the model cannot take.
    """
    own, others = (evaluation.answers(model, data).scores["confidence"] for data in (known, other))
    sizes = model.tree.sizes
    # Its statistic counts pairs in which the first is surer, and half of those that are equal.
    counts = [stats.mannwhitneyu(own[:, n - 1], others[:, n - 1]).statistic for n in sizes]
    shares = [float(count / (len(own) * len(others))) for count in counts]
    return {"examples": len(others), "auroc": dict(zip(map(str, sizes), shares, strict=True))}
