"""Labelled image data sets as `tf.data` pipelines that resume exactly.

Every data set has a train, a validation and a test split; validation is a fixed
part of train unless an image folder brings its own.

    section = hne_tf.training.config.default().data
    section.name = "cifar10"
    batches = load(section).train_batches(batch_size=128, start_step=0, total_steps=100, seed=1)
"""

import importlib
from typing import Any

# Loaded when first used: only pipelines need TensorFlow.
_LAZY = {
    "SPLITS": "hne_tf.data.data_set",
    "DataSet": "hne_tf.data.pipeline",
    "Split": "hne_tf.data.pipeline",
    "load": "hne_tf.data.sources",
}

__all__ = ["SPLITS", "DataSet", "Split", "load"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
