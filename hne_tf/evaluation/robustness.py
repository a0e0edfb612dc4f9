"""Accuracy of every ensemble size on corrupted test images."""

import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hne_tf.data import labelled
from hne_tf.data.corruptions import CORRUPTIONS, corrupt
from hne_tf.data.labelled import Labelled
from hne_tf.errors import InputError
from hne_tf.evaluation.evaluation import inference
from hne_tf.evaluation.measuring import measure
from hne_tf.metrics import EnsembleAccuracy
from hne_tf.models.ensemble import TreeEnsemble

_BATCH_SIZE = 250


def evaluate(
    model: TreeEnsemble,
    data: Labelled,
    examples: int,
    severities: Sequence[int] = (1, 3, 5),
) -> dict[str, Any]:
    """Measures a model on corrupted images.

    Args:
      model: trained in whatever way.
      data: clean images and labels, see `labelled.batches`.
      examples: how many of the images, from the first one; all there are, if fewer.
      severities: from 1 to 5.

    Returns:
      `examples`, `severities`, `accuracy` by corruption, severity and size, and
      `mean`: by size, over all corruptions and severities. Keys are strings, as
      they are in JSON.

    Raises:
      InputError: for less than one example, or images that cannot be corrupted.
    """
    if examples < 1:
        raise InputError(f"examples must be 1 or more, got {examples}")
    sizes = model.tree.sizes
    batches = _first(labelled.batches(data, model.images.shape, _BATCH_SIZE), examples)
    # Data sets come in batches of their own size.
    firsts = itertools.accumulate((len(labels) for _, labels in batches[:-1]), initial=0)
    numbered = list(zip(firsts, batches, strict=True))
    predict = inference(model)
    accuracy: dict[str, dict[str, dict[str, float]]] = {}
    for name in CORRUPTIONS:
        accuracy[name] = {}
        for severity in severities:
            corrupted = (
                (corrupt(images, name, severity, first), labels)
                for first, (images, labels) in numbered
            )
            measured = measure(predict, corrupted, [EnsembleAccuracy(sizes, model.average)])
            accuracy[name][str(severity)] = {
                str(size): measured[f"accuracy_{size}"] for size in sizes
            }
    rows = [row for by_severity in accuracy.values() for row in by_severity.values()]
    return {
        "examples": sum(len(labels) for _, labels in batches),
        "severities": list(severities),
        "accuracy": accuracy,
        "mean": {size: statistics.fmean(row[size] for row in rows) for size in map(str, sizes)},
    }


def _first(
    batches: Iterable[tuple[np.ndarray, np.ndarray]], examples: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The batches of the first examples."""
    taken: list[tuple[np.ndarray, np.ndarray]] = []
    for images, labels in batches:
        missing = examples - sum(len(each) for _, each in taken)
        if missing <= 0:
            break
        taken.append((images[:missing], labels[:missing]))
    return taken
