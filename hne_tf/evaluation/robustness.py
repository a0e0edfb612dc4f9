"""Accuracy of every ensemble size on corrupted test images."""

import statistics
from collections.abc import Sequence
from typing import Any

from hne_tf.data.corruptions import CORRUPTIONS, corrupt
from hne_tf.errors import InputError
from hne_tf.evaluation.evaluation import inference, measure
from hne_tf.metrics import EnsembleAccuracy
from hne_tf.training.trained import TrainedRun

_BATCH_SIZE = 250


def evaluate(
    run: TrainedRun, examples: int, severities: Sequence[int] = (1, 3, 5)
) -> dict[str, Any]:
    """Measures a run on corrupted test images.

    Args:
      run: the trained run.
      examples: how many test images, from the first one; all there are, if fewer.
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
    sizes, average = run.model.tree.sizes, run.config.objective.average
    examples = min(examples, run.data_set.examples("test"))
    clean = run.data_set.evaluation_batches("test", _BATCH_SIZE).unbatch().take(examples)
    batches = list(clean.batch(_BATCH_SIZE).as_numpy_iterator())
    predict = inference(run.model)
    accuracy: dict[str, dict[str, dict[str, float]]] = {}
    for name in CORRUPTIONS:
        accuracy[name] = {}
        for severity in severities:
            corrupted = (
                (corrupt(images, name, severity, index * _BATCH_SIZE), labels)
                for index, (images, labels) in enumerate(batches)
            )
            measured = measure(predict, corrupted, [EnsembleAccuracy(sizes, average)])
            accuracy[name][str(severity)] = {
                str(size): measured[f"accuracy_{size}"] for size in sizes
            }
    rows = [row for by_severity in accuracy.values() for row in by_severity.values()]
    return {
        "examples": examples,
        "severities": list(severities),
        "accuracy": accuracy,
        "mean": {size: statistics.fmean(row[size] for row in rows) for size in map(str, sizes)},
    }
