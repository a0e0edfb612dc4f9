"""A metric of one's own."""

import keras
from keras import ops

import hne_tf as hne


@keras.saving.register_keras_serializable("my_metric")
class Confidence(hne.metrics.PerSize):
    """Mean probability of the most probable class."""

    def score(self, labels, log_probabilities):
        return ops.exp(ops.max(log_probabilities, axis=-1))
