"""Labelled image data sets as `tf.data` pipelines that resume exactly.

Every data set has a train, a validation and a test split; validation is a fixed
part of train unless an image folder brings its own.

    section = hne_tf.training.config.default().data
    section.name = "cifar10"
    batches = load(section).train_batches(batch_size=128, start_step=0, total_steps=100, seed=1)
"""

from hne_tf.data.pipeline import SPLITS, DataSet, Split
from hne_tf.data.sources import load

__all__ = ["SPLITS", "DataSet", "Split", "load"]
